"""A corpus of documents in a dictionary, and what was prepared of it as plain lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cope.corpora.base import Corpus
from cope.corpora.prepared import Documents, PreparedCorpus
from cope.corpora.tokenizer import TokenizerSettings

SETTINGS = TokenizerSettings("bpe", 300, True)
SPLITS = ("train", "validation", "test")
ARRAYS = ("tokens", "starts", "num_words", "num_bytes")


def made_up(split: str, number: int) -> list[str]:
    """Documents that differ, with what makes a tokenizer stumble."""
    return [f"{split} {index}: the dog and\n\tthe fox é {'jump ' * (index % 7)}" for index in range(number)]


class Listed(Corpus):
    """Documents from a dictionary; notes on disk each time they are read, so that other processes' readings count too."""

    name = "listed"
    license = "none"

    def __init__(self, folder: Path, texts: dict[str, list[str]] | None = None, **identity: Any) -> None:
        self.texts = texts or {
            "train": made_up("train", 40),
            "validation": made_up("validation", 5),
            "test": made_up("test", 4),
        }
        self.readings = folder / "readings"
        self.described = identity

    def documents(self, split: str) -> Iterator[str]:
        with self.readings.open("a") as file:
            file.write(f"{split}\n")
        yield from self.texts[split]

    def identity(self) -> dict[str, Any]:
        return {"documents": len(self.texts["train"]), **self.described}

    @property
    def num_readings(self) -> int:
        return len(self.readings.read_text().splitlines()) if self.readings.exists() else 0


def texts_of(corpus: PreparedCorpus, split: str) -> list[str]:
    documents: Documents = getattr(corpus, split)
    starts = documents.starts
    return [corpus.tokenizer.decode(documents.tokens[starts[i] : starts[i + 1]]) for i in range(len(documents))]


def arrays(corpus: PreparedCorpus) -> dict[str, list[int]]:
    return {f"{split}.{array}": getattr(getattr(corpus, split), array).tolist() for split in SPLITS for array in ARRAYS}


def folders(data_dir: Path) -> list[str]:
    return sorted(path.name for path in (data_dir / "corpora" / "listed").iterdir() if path.is_dir())
