"""Paths as users type them, files that are whole or not there (written beside, then put in place in one step), and folders that
one process has."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import logging
import os
import platform
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from cope.errors import AlreadyRunning, UserError

log = logging.getLogger(__name__)


def user_path(key: str, text: str | Path) -> Path:
    """The path that a user gave for ``key``: ``~`` is the home folder, as in a shell. Every path that is typed comes by here.

    Raises:
        UserError: it is empty, or names the home of a user who is not known.
    """
    if not str(text).strip():
        raise UserError(f"{key}= is empty; allowed: a path, such as . for the folder that the command runs in.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={text}: there is no home folder of that name; allowed: ~/..., or a whole path.") from error


def cache_folder() -> Path:
    """Where is kept what can be made again: ``$COPE_CACHE``, or ``cope-lab`` in the user's cache folder.

    Raises:
        UserError: there is no home folder; a clause, to be read after a colon.
    """
    try:
        if os.environ.get("COPE_CACHE"):
            return Path(os.environ["COPE_CACHE"]).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cope-lab"
    except RuntimeError as error:
        raise UserError("there is no home folder to keep it in; set COPE_CACHE to a folder") from error


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step.

    Raises:
        UserError: the folder cannot be written or the disk is full; what was at ``path`` is still there.
    """
    # Opened by name, not by tempfile, whose files nobody else may read: here the user's umask decides.
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # still there only if something above failed
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise UserError(
            f"{path} cannot be written: {getattr(error, 'strerror', None) or error}. Free some space, or choose another folder "
            "with output_dir=...; nothing that was there before is lost."
        ) from error


def _remove_leftovers(path: Path) -> None:
    """Delete what processes of this machine that were killed while they wrote ``path`` have left beside it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(platform.node())}.*.*"):
        number = left.name.rsplit(".", 2)[1]
        if number.isdecimal() and not _is_alive(int(number)):
            left.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":  # where to ask would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` atomically. NaN is refused: JSON has none."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def append_json_line(path: Path, content: Any) -> None:
    """Add ``content`` to ``path`` as a line of its own.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with path.open("a") as file:
            file.write(json.dumps(content) + "\n")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}. Free some space and run the same command again."
        ) from error


def read_json(path: Path) -> Any:
    """What ``path`` holds.

    Raises:
        UserError: it is not there, damaged, or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


_left_out: set[Path] = set()


def tell_left_out(path: Path, problem: object) -> None:
    """Say once that ``path`` is damaged and left out, so that others can be seen."""
    if path not in _left_out:
        _left_out.add(path)
        log.warning("left out: %s", problem)


def digest_of(content: Any, digits: int = 64) -> str:
    """Hexadecimal digits that stand for ``content``, which JSON can hold; in whatever order its keys are."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:digits]


def lock(path: Path, wait: str | None = None) -> FileLock:
    """Keep ``path`` to this process until it ends or the lock is released; it may be any file, and stays empty.

    Args:
        wait: what to log while another process has it, which is waited for.

    Raises:
        AlreadyRunning: another process has it, and there is nothing to wait for.
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found = FileLock(path)
    try:
        found.acquire(timeout=0)
    except Timeout as error:
        if not path.exists():  # who had it has deleted it just now, or there can be no such file
            try:
                found.acquire(timeout=1)
                return found
            except Timeout:
                if not path.exists():
                    raise OSError(errno.EACCES, "no file can be made there", str(path)) from error
        if wait is None:
            raise AlreadyRunning(f"{path.parent} is being written by another process.") from error
        log.info(wait)
        found.acquire()
    return found
