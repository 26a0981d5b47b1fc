"""Files of a prepared corpus: each is written under a temporary name and then moved into place, and no pickle is read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from cope.errors import UserError


class CannotWrite(UserError):
    """No room or no permission. A class of its own, so that what was half made can be removed to give back the room."""

    @classmethod
    def because(cls, path: Path, error: OSError) -> CannotWrite:
        """The message for a system error at ``path``."""
        reason = error.strerror or str(error) or type(error).__name__
        return cls(
            f"data_dir: cannot write {path} ({reason}). Make room or get write permission there, or choose another folder: "
            "data_dir=/another/folder"
        )


def write(path: Path, fill: Callable[[IO[bytes]], None]) -> None:
    """Let ``fill`` write a temporary file beside ``path``, then move it into place.

    Raises:
        CannotWrite: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # still there only if something above failed
    except OSError as error:
        raise CannotWrite.because(path, error) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``; see :func:`write`."""

    def fill(file: IO[bytes]) -> None:
        file.write(content)

    write(path, fill)


def write_array_header(file: IO[bytes], length: int, dtype: np.dtype) -> None:
    """The first part of a ``.npy`` file for ``length`` numbers, which are to follow as plain bytes.

    A file made this way reports a full disk as an error; a memory-mapped one is killed by it.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)
