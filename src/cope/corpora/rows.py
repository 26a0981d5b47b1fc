"""Rows of local files, a few at a time: lines of text, JSON lines (also gzipped) and parquet.

Files are read as bytes, so that nothing is translated and what is wrong can be said with its place.
"""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cope.errors import UserError, nearest

JSON_LINES = (".jsonl", ".json", ".ndjson")
ROWS_AT_ONCE = 256


def find_files(key: str, pattern: str) -> list[tuple[str, Path]]:
    """``(name, path)`` of the files that ``pattern`` means, sorted by name: a file, a glob, or all that lie under a folder.

    Raises:
        UserError: there is none; names ``key`` and the nearest match.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = [inner for inner in path.rglob("*") if not any(part.startswith(".") for part in inner.relative_to(path).parts)]
    else:
        found = [path] if path.is_file() else [Path(name) for name in glob.glob(str(path), recursive=True)]
    files = sorted((str(file), file) for file in found if file.is_file())
    if not files:
        siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"{key}={pattern}: there is no such file; allowed: the path of a file, a glob, or a folder with files."
            f"{nearest(path.name, siblings)}"
        )
    return files


def is_json_lines(path: Path) -> bool:
    """Whether the name says JSON lines."""
    return path.name.removesuffix(".gz").endswith(JSON_LINES)


def read_text(path: Path) -> str:
    """The whole file, exactly as it is."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return _decoded(content, path, 0)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file without their newlines (``\\n`` or ``\\r\\n``), gunzipped if its name ends with ``.gz``."""
    offset = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                yield _decoded(line.removesuffix(b"\n").removesuffix(b"\r"), path, offset)
                offset += len(line)
    except (OSError, EOFError) as error:  # EOFError: a gzip file that was cut short
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def read_columns(path: Path, columns: list[str], key: str) -> Iterator[list[str]]:
    """The ``columns`` of each row of a JSON-lines or parquet file.

    Args:
        path: the file.
        columns: their names; all hold text.
        key: the setting that names them, for messages.

    Raises:
        UserError: the file is damaged, or a row has no such column or something else than text there.
    """
    rows = _json_rows(path) if is_json_lines(path) else _parquet_rows(path, columns, key)
    for number, row in enumerate(rows, 1):
        values = []
        for column in columns:
            if column not in row:
                there = ", ".join(row)
                raise UserError(
                    f"{key}={column}: row {number} of {path} has no such column; it has: {there}.{nearest(column, row)}"
                )
            if not isinstance(row[column], str):
                kind = type(row[column]).__name__
                raise UserError(f"{key}={column}: row {number} of {path} holds {kind} there; allowed: text.")
            values.append(row[column])
        yield values


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error}); allowed: one JSON object a line.") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} holds {type(row).__name__}; allowed: one JSON object a line.")
        yield row


def _parquet_rows(path: Path, columns: list[str], key: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{path} needs the package pyarrow: pip install -e '.[text]'") from error
    try:
        with ParquetFile(path) as file:
            there = file.schema_arrow.names
            for column in columns:
                if column not in there:
                    listed = ", ".join(there)
                    raise UserError(f"{key}={column}: {path} has no such column; it has: {listed}.{nearest(column, there)}")
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}.") from error


def _decoded(content: bytes, path: Path, offset: int) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise UserError(
            f"{path} is not UTF-8: byte 0x{byte:02X} at offset {offset + error.start}. Convert or leave it out."
        ) from error
