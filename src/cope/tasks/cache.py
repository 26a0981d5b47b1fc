"""Generated examples kept on disk, so that the next run reads in milliseconds what this one generated.

Why: a fixed training set and the evaluation splits are functions of their settings and seed alone. Each is stored under
``<data_dir>/<task name>/<hash>.npz``, where the hash covers the generator's version, every setting, the seed and the name of
the random stream: changing any of them is a new file, and no file is ever out of date.

A file is written under a temporary name and then moved into place, so readers see all of it or none of it, and several
processes that generate the same thing at once merely do the work twice. A damaged file is never used: it is generated again.
Files hold plain arrays and are read without pickle, so reading one cannot run code.

Picture: one file holds, for sequences padded to a common length (here ``print a 3`` after ``a = 0 ;`` and three increments)

    tokens    a  =  0  ;  a  ++; a  ++; a  ++; print a  3  <pad>
    answers   .  .  .  .  .  .   .  .   .  .   .     .  x  .
    lengths   13
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cope.errors import UserError
from cope.tasks.base import Examples

log = logging.getLogger(__name__)

# What NumPy and zipfile raise on a file that was cut short, overwritten, or is something else altogether.
DAMAGED = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def load_or_generate(data_dir: str | Path, name: str, key: Mapping[str, Any], generate: Callable[[], Examples]) -> Examples:
    """The examples stored for ``key``; on the first call, and if the file is damaged, ``generate()``, which is then stored.

    Args:
        data_dir: the folder of all tasks' data.
        name: the task's name, which is the folder inside it.
        key: everything the examples depend on; must be representable as JSON.
        generate: makes the examples.

    Raises:
        UserError: the folder cannot be written.
    """
    description = json.dumps(key, sort_keys=True)
    path = Path(data_dir).expanduser() / name / f"{hashlib.sha256(description.encode()).hexdigest()[:20]}.npz"
    try:
        return _read(path, description)
    except FileNotFoundError:
        pass
    except DAMAGED as error:
        log.warning("Cannot use %s (%s): generating it again.", path, error or type(error).__name__)
    _make_folder(data_dir, path)  # before the work of generating, so that a wrong folder is reported at once
    examples = generate()
    _write(data_dir, path, description, examples)
    return examples


def _read(path: Path, description: str) -> Examples:
    """Read and check a file; raises one of DAMAGED, or FileNotFoundError. Decompression checks every array's CRC."""
    with np.load(path, allow_pickle=False) as stored:
        if str(stored["description"]) != description:
            raise ValueError("it was made with other settings")
        examples = Examples(stored["tokens"], stored["lengths"], stored["answers"], int(stored["num_cut"]))
    tokens, lengths, answers = examples.tokens, examples.lengths, examples.answers
    if tokens.ndim != 2 or answers.shape != tokens.shape or answers.dtype != np.bool_ or lengths.shape != tokens.shape[:1]:
        raise ValueError("its arrays do not fit together")
    return examples


def _write(data_dir: str | Path, path: Path, description: str, examples: Examples) -> None:
    """Write under a temporary name in the same folder (a move within one file system is atomic), then move into place."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                np.savez_compressed(
                    file,
                    description=np.array(description),
                    tokens=examples.tokens,
                    lengths=examples.lengths,
                    answers=examples.answers,
                    num_cut=np.array(examples.num_cut),
                )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # still there only if something above failed
    except OSError as error:
        raise _cannot_write(data_dir, path, error) from error


def _make_folder(data_dir: str | Path, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(data_dir, path.parent, error) from error


def _cannot_write(data_dir: str | Path, path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(
        f"data_dir={data_dir}: cannot write {path} ({reason}). "
        "Make room or get write permission there, or choose another folder: data_dir=/another/folder"
    )
