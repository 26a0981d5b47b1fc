"""Your own text: plain files, JSON lines, parquet, or a data set saved with ``save_to_disk`` of the package ``datasets``.

Which file is read how is the table in :mod:`cope.corpora.rows`.

Text is taken as it is: every character counts, NUL among them, and nothing is stripped. What is not UTF-8 is refused with its
place, rather than read as something else. Splits that are not given are split off from the training text: of many documents by
a hash of each one's content; of a few files by position, the beginning of each for training and its end for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cope.corpora.base import HashedCorpus, files_digest, split_by_hash
from cope.corpora.rows import VERSION, check_readable, find_files, holds_rows, is_saved, read_columns, read_lines, read_text
from cope.errors import check_choice
from cope.files import user_path

MOST_FILES_TO_CUT = 20
TINY_BYTES = 200_000


@dataclass(kw_only=True)
class Files(HashedCorpus):
    """Documents in the order of the files' names.

    Args:
        train: a file, a glob, a folder of files, or a folder written by ``save_to_disk``.
        validation: likewise; None takes that split of a saved data set, or splits off ``validation_fraction``.
        test: likewise.
        text_column: where rows (JSON lines, parquet, saved data sets) hold the text.
        document: of plain text: ``file``, ``line``, ``position`` (each file is cut into its splits, at a paragraph or line) or
            ``auto``: ``position`` where there are few files and splits to be cut off, else ``file``.
    """

    if_empty: ClassVar[str] = (
        "Give it text of its own (corpus.{split}=...), a larger share (corpus.{split}_fraction), or take each line as a "
        "document (corpus.document=line)."
    )

    train: str
    validation: str | None
    test: str | None
    text_column: str
    document: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("corpus.document", self.document, ("auto", "file", "line", "position"))
        own = _splits_of_saved(self.train)
        self.sources = {
            "train": self.train,
            "validation": self.train if self.validation is None and "validation" in own else self.validation,
            "test": self.train if self.test is None and "test" in own else self.test,
        }
        for split, source in self.sources.items():
            if source is not None:
                self._places(split, source)  # so that a wrong path is reported at once
        self.by_position = self.document == "position" or (self.document == "auto" and self._is_few())

    def _is_few(self) -> bool:
        """Whether the training text is so few plain files that a hash of each could leave a split empty."""
        places = self._places("train", self.train)
        return len(places) <= MOST_FILES_TO_CUT and any(self.fractions) and not any(map(holds_rows, places))

    @property
    def note(self) -> str:
        if not self.by_position:
            return ""
        validation, test = (f"{fraction:.0%}" for fraction in self.fractions)
        number = len(self._places("train", self.train))
        of_what = "the file" if number == 1 else f"each of {number} files"
        return f"by position: of {of_what} the last {test} are for testing, {validation} before them for validation"

    def size_of_tiny(self) -> tuple[int, int] | None:
        places = self._places("train", self.train)
        if any(map(holds_rows, places)):
            return None
        num_bytes = sum(path.stat().st_size for path in places)
        return (num_bytes, len(set().union(*map(read_text, places)))) if num_bytes <= TINY_BYTES else None

    @property
    def license(self) -> str:
        return "that of your files"

    @property
    def fractions(self) -> tuple[float, float]:
        """Nothing is split off for a split that has text of its own."""
        validation, test = super().fractions
        return 0.0 if self.sources["validation"] else validation, 0.0 if self.sources["test"] else test

    def documents(self, split: str) -> Iterator[str]:
        source = self.sources[split]
        if source is not None and split != "train":
            yield from self._texts(split, source)
            return
        for text in self._texts("train", self.train):
            if self.by_position:
                if part := _part(text, split, *self.fractions):
                    yield part
            elif split_by_hash(text, *self.fractions) == split:
                yield text

    def identity(self) -> dict[str, Any]:
        sources = {split: source for split, source in self.sources.items() if source is not None}
        return {
            "files": {split: files_digest(find_files(f"corpus.{split}", source)) for split, source in sources.items()},
            "fractions": list(self.fractions),
            "text_column": self.text_column,
            "document": "position" if self.by_position else "file" if self.document == "auto" else self.document,
            "reading": VERSION,
        }

    def _texts(self, split: str, source: str) -> Iterator[str]:
        for path in self._places(split, source):
            if holds_rows(path):
                for (text,) in read_columns(path, [self.text_column], "corpus.text_column", split):
                    yield text
            elif self.document == "line":
                yield from read_lines(path)
            else:
                yield read_text(path)

    def _places(self, split: str, source: str) -> list[Path]:
        """The files that ``source`` means, or the folder that ``save_to_disk`` wrote."""
        folder = user_path(f"corpus.{split}", source)
        if is_saved(folder):
            return [folder]
        paths = [path for _, path in find_files(f"corpus.{split}", source)]
        for path in paths:
            check_readable(path)
        return paths


def _splits_of_saved(train: str) -> set[str]:
    """The names of the splits that a saved data set of several splits has; none of anything else."""
    folder = user_path("corpus.train", train)
    return {path.parent.name for path in folder.glob("*/state.json")} if (folder / "dataset_dict.json").is_file() else set()


def _part(text: str, split: str, validation: float, test: float) -> str:
    """What of ``text`` belongs to ``split``: its beginning to training, then validation, its end to testing."""
    starts = [0, _break_after(text, 1 - validation - test), _break_after(text, 1 - test), len(text)]
    place = ("train", "validation", "test").index(split)
    return text[starts[place] : starts[place + 1]]


def _break_after(text: str, fraction: float) -> int:
    """Where the next paragraph begins, else the next line, if that is near; else the very place."""
    place = round(fraction * len(text))
    for end in ("\n\n", "\n"):
        found = text.find(end, place, place + max(200, len(text) // 20))
        if found >= 0 and place < len(text):
            return found + len(end)
    return place
