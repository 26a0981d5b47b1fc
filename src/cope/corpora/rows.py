"""What local files hold: text exactly as it is, and rows (JSON lines, parquet, saved data sets) as ``datasets`` reads them.

Text is read as bytes, so that nothing is translated and what is wrong can be said with its place.
"""

from __future__ import annotations

import glob
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cope.corpora.base import NO_NETWORK_NEEDED
from cope.corpora.hub import first_line, load_hub_dataset
from cope.errors import UserError, nearest

JSON_LINES = (".jsonl", ".json", ".ndjson")
# What save_to_disk leaves in a folder: of several splits, or of one.
SAVED = (("dataset_dict.json",), ("dataset_info.json", "state.json"))


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


def has_rows(path: Path) -> bool:
    """Whether the name says JSON lines (also gzipped) or parquet."""
    return path.name.removesuffix(".gz").endswith(JSON_LINES) or path.suffix == ".parquet"


def is_saved(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder."""
    return any(all((path / name).is_file() for name in names) for names in SAVED)


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


def read_columns(path: Path, columns: list[str], key: str, split: str = "train") -> Iterator[list[str]]:
    """The ``columns`` of each row of a JSON-lines or parquet file, or of a folder that ``save_to_disk`` wrote.

    Args:
        path: the file or folder.
        columns: their names; all hold text.
        key: the setting that names them, for messages.
        split: of a saved data set of several splits.

    Raises:
        UserError: the file is damaged, or a row has no such column or something else than text there.
    """
    try:
        for number, row in enumerate(_rows(path, split), 1):
            for column in columns:
                if column not in row:
                    there = ", ".join(row)
                    hint = nearest(column, row)
                    raise UserError(f"{key}={column}: row {number} of {path} has no such column; it has: {there}.{hint}")
                if not isinstance(row[column], str):
                    kind = type(row[column]).__name__
                    raise UserError(f"{key}={column}: row {number} of {path} holds {kind} there; allowed: text.")
            yield [row[column] for column in columns]
    except UserError:
        raise
    except Exception as error:  # datasets raises the errors of half a dozen libraries, which share no base class
        allowed = "allowed: one JSON object a line, parquet, or what save_to_disk wrote"
        raise UserError(f"{path} cannot be read ({first_line(error)}); {allowed}.") from error


def read_hub(
    corpus: str, dataset: str, columns: list[str], configuration: str | None = None, **how: Any
) -> Iterator[list[str]]:
    """The ``columns`` of each row of a data set of the Hub; ``how`` as in :func:`cope.corpora.hub.load_hub_dataset`."""
    rows = load_hub_dataset(f"corpus={corpus}", dataset, configuration, instead=NO_NETWORK_NEEDED, **how)
    try:
        for row in rows:
            yield [row[column] for column in columns]
    except Exception as error:  # a network that fails on the way, in the words of half a dozen libraries
        raise UserError(
            f"corpus={corpus}: {dataset} cannot be read to the end ({first_line(error)}). {NO_NETWORK_NEEDED}"
        ) from error


def _rows(path: Path, split: str) -> Any:
    import datasets  # a second to import

    if not is_saved(path):
        kind = "parquet" if path.suffix == ".parquet" else "json"
        return datasets.load_dataset(kind, data_files=glob.escape(str(path)), split="train", streaming=True)
    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UserError(f"{path} has no split {split!r}; it has: {', '.join(saved)}.")
        saved = saved[split]
    return saved


def _decoded(content: bytes, path: Path, offset: int) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise UserError(
            f"{path} is not UTF-8: byte 0x{byte:02X} at offset {offset + error.start}. Convert or leave it out."
        ) from error
