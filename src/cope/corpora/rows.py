"""What local files hold: text exactly as it is, and rows: JSON lines, parquet, and what ``save_to_disk`` wrote.

How a file is read its name says, in capitals or not:

    .jsonl .ndjson .json        JSON lines: one object a line
    .parquet                    rows
    no ending, or one of TEXT   plain text, in UTF-8
    each of the above + .gz     the same, gunzipped; not parquet, which is packed already
    a folder of save_to_disk    rows

Anything else is refused by name. A byte-order mark of UTF-8 at a file's beginning says how it is encoded, and is no part of
the text. Text is read as bytes, so that nothing is translated and what is wrong can be said with its place.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from cope.corpora.base import NO_NETWORK_NEEDED
from cope.corpora.hub import first_line, load_hub_dataset
from cope.errors import UserError, nearest
from cope.files import user_path
from cope.memory import machine_bytes

SHARE_OF_MEMORY = 4  # what is unpacked at once may take one part in so many
VERSION = 2  # of this reading: corpora that were prepared by another one are prepared anew
JSON_LINES = (".jsonl", ".json", ".ndjson")
PARQUET = ".parquet"
TEXT = (
    # prose and markup
    *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".wiki", ".xml", ".html", ".htm", ".log"),
    # programs
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu", ".cuh", ".java", ".kt", ".scala", ".js", ".jsx"),
    *(".ts", ".tsx", ".go", ".rs", ".rb", ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".m", ".swift", ".cs", ".fs", ".hs"),
    *(".ml", ".mli", ".clj", ".lisp", ".scm", ".el", ".erl", ".ex", ".sh", ".bash", ".sql", ".css", ".toml", ".yaml", ".yml"),
    *(".ini", ".cfg", ".asm", ".s", ".f", ".f90", ".v", ".sv", ".vhd", ".proto", ".cmake"),
)
# What save_to_disk leaves in a folder: of several splits, or of one.
SAVED = (("dataset_dict.json",), ("dataset_info.json", "state.json"))
# UTF-32 first: its mark begins with that of UTF-16.
OTHER_UNICODE = {"UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}


def find_files(key: str, pattern: str) -> list[tuple[str, Path]]:
    """``(name, path)`` of the files that ``pattern`` means, sorted by name: a file, a glob, or all that lie under a folder.

    Raises:
        UserError: there is none; names ``key`` and the nearest match.
    """
    path = user_path(key, pattern)
    if path.is_dir():
        found = files_below(path)
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


def files_below(folder: Path) -> list[Path]:
    """Every file under ``folder``, also where a folder is linked to; none that is hidden, or in a hidden folder.

    Raises:
        UserError: a folder that cannot be read, or a link that leads nowhere or back.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error

    found = []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for inner in (Path(parent, name) for name in folders):
            if inner.is_symlink() and Path(parent).resolve().is_relative_to(inner.resolve()):
                raise UserError(f"{inner} is a link to a folder that it lies in. Remove it, or name files with a glob.")
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        for path in paths:
            if path.is_symlink() and not path.exists():
                raise UserError(f"{path} is a link to {os.readlink(path)}, which does not exist. Mend or remove it.")
        found += paths
    return found


def has_rows(path: Path) -> bool:
    """Whether the name says JSON lines or parquet."""
    ending, is_packed = _ending(path)
    return ending in JSON_LINES or (ending == PARQUET and not is_packed)


def check_readable(path: Path) -> None:
    """Raise UserError unless the name says how the file is to be read."""
    ending, _ = _ending(path)
    if not has_rows(path) and ending and ending not in TEXT:
        raise UserError(
            f"{path} cannot be read, since its name ends with {ending}; allowed: plain text (.txt, .md, .py and the like, or "
            "no ending) and JSON lines (.jsonl, .ndjson, .json), both also with .gz, .parquet, and folders of save_to_disk. "
            "Convert it, rename it if it is plain text, or choose others with a glob such as 'folder/**/*.txt'."
        )


def _ending(path: Path) -> tuple[str, bool]:
    """What the name ends with, in small letters, and whether ``.gz`` follows."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix, name.endswith(".gz")


def is_saved(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder."""
    return any(all((path / name).is_file() for name in names) for names in SAVED)


def holds_rows(path: Path) -> bool:
    """Whether it is no plain text."""
    return is_saved(path) or has_rows(path)


def saved_split(path: Path, split: str) -> Any:
    """The rows of one split of what ``save_to_disk`` wrote; all of them where it was no more than one split."""
    import datasets  # a second to import

    saved = datasets.load_from_disk(str(path))
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if split not in saved:
        raise UserError(f"{path} has no split {split!r}; it has: {', '.join(saved)}.")
    return saved[split]


def files_of_split(key: str, folder: Path, files: Iterable[Path], split: str) -> list[Path]:
    """Those of ``files``, which lie in ``folder``, that are named after a split as the Hub's are, in order."""
    # "val.parquet" and "val-00000-of-00002.parquet", and not "val*", which would take in val_dense.parquet.
    named = re.compile(rf"{split}(-.*)?\.parquet")
    found = sorted(path for path in files if named.fullmatch(path.name))
    if not found:
        raise UserError(f"{key}: there is no file {split}.parquet or {split}-*.parquet in {folder}.")
    return found


def read_text(path: Path) -> str:
    """The whole file, exactly as it is."""
    most = (machine_bytes() or sys.maxsize) // SHARE_OF_MEMORY
    try:
        with _opened(path) as file:
            content = file.read(most)
            if file.read(1):
                raise _too_large(path, "more", most)
            return _decoded(content, path, 0)
    except (OSError, EOFError) as error:
        raise _unreadable(path, error) from error


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file without their newlines (``\\n`` or ``\\r\\n``)."""
    offset = 0
    try:
        with _opened(path) as file:
            for line in file:
                yield _decoded(line.removesuffix(b"\n").removesuffix(b"\r"), path, offset)
                offset += len(line)
    except (OSError, EOFError) as error:
        raise _unreadable(path, error) from error


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if _ending(path)[1] else path.open("rb")  # type: ignore[return-value]  # it reads like one


def _too_large(path: Path, size: str, most: int) -> UserError:
    return UserError(f"{path} unpacks to {size}; allowed here: {most / 2**20:,.0f} MiB at once. Cut it into several files.")


def _unreadable(path: Path, error: OSError | EOFError) -> UserError:
    """EOFError: a gzip file that was cut short."""
    return UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.")


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
        allowed = "allowed: parquet, or what save_to_disk wrote"
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
    if is_saved(path):
        return saved_split(path, split)
    if _ending(path)[0] in JSON_LINES:
        return _json_lines(path)
    import datasets  # a second to import
    import pyarrow.parquet as pq

    # Rows come in groups, each unpacked at once.
    metadata = pq.read_metadata(path)
    largest = max((metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)), default=0)
    most = (machine_bytes() or sys.maxsize) // SHARE_OF_MEMORY
    if largest > most:
        raise _too_large(path, f"{largest / 2**20:,.0f} MiB", most)
    return datasets.load_dataset("parquet", data_files=glob.escape(str(path)), split="train", streaming=True)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} cannot be read (line {number} is not JSON: {error}); allowed: one JSON object a line."
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{path} cannot be read (line {number} is no object); allowed: one JSON object a line.")
        yield row


def _decoded(content: bytes, path: Path, offset: int) -> str:
    """``content`` from ``offset`` in the file as text."""
    if offset == 0:
        for encoding, marks in OTHER_UNICODE.items():
            if content.startswith(marks):
                raise UserError(
                    f"{path} is not UTF-8 but begins with the byte-order mark of {encoding}. Convert it: "
                    f"iconv -f {encoding} -t UTF-8 {path.name} > utf8-{path.name}"
                )
        content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise UserError(
            f"{path} is not UTF-8: byte 0x{byte:02X} at offset {offset + error.start}. Convert or leave it out."
        ) from error
