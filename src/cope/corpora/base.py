"""The contract of a corpus: documents of text in three splits, streamed in an order that never changes.

A corpus knows nothing of tokens: :mod:`cope.corpora.prepared` turns its documents into token ids once and keeps them. So
that a prepared corpus can be told from an outdated one without reading the text again, a corpus says cheaply what its
documents depend on (:meth:`Corpus.identity`).

Where a corpus has no splits of its own, a hash of something stable (a title, a path, a repository) decides: the same
document is in the same split on every machine, whatever else the corpus holds.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from cope.errors import UserError, check_between, nearest
from cope.files import digest_of, user_path

SPLITS = ("train", "validation", "test")


class LeftOut(NamedTuple):
    """Stands where a document would, so that what was left out can be counted."""

    reason: str  # such as "files that are not UTF-8, in train"


@dataclass(kw_only=True)
class Corpus(ABC):
    """What every corpus offers. The fields of a corpus are the keys of its file in ``configs/corpus``."""

    if_empty: ClassVar[str] = "Give it a larger share: corpus.{split}_fraction."  # what to do about a split without documents

    name: str

    @property
    @abstractmethod
    def license(self) -> str:
        """Printed wherever the corpus is used."""

    @abstractmethod
    def documents(self, split: str) -> Iterator[str | LeftOut]:
        """The texts of ``train``, ``validation`` or ``test``, one by one, in the same order each time.

        Raises:
            UserError: the text cannot be found or read.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that determines the documents, as JSON can hold it; must not read them.

        Raises:
            UserError: the text cannot be found.
        """

    @property
    def note(self) -> str:
        """How documents and splits were decided on, where that is not as asked for; printed beside the licence."""
        return ""

    def size_of_tiny(self) -> tuple[int, int] | None:
        """Bytes and different characters of a text that is too small for an ordinary vocabulary; None of any other."""
        return None


def split_by_hash(key: str, validation_fraction: float, test_fraction: float) -> str:
    """The split that ``key`` falls into: a function of the key and the fractions alone."""
    position = int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


@dataclass(kw_only=True)
class HashedCorpus(Corpus):
    """A corpus without splits of its own: a hash decides.

    Args:
        validation_fraction, test_fraction: of the documents, or of what they are grouped by.
    """

    validation_fraction: float
    test_fraction: float

    def __post_init__(self) -> None:
        check_between("corpus.validation_fraction", self.validation_fraction, 0, 1)
        check_between("corpus.test_fraction", self.test_fraction, 0, 1)
        if self.validation_fraction + self.test_fraction >= 1:
            raise UserError(
                f"corpus.validation_fraction={self.validation_fraction} and corpus.test_fraction={self.test_fraction} leave "
                "nothing for training; allowed: a sum below 1."
            )

    @property
    def fractions(self) -> tuple[float, float]:
        """Of validation and test."""
        return self.validation_fraction, self.test_fraction


def files_digest(files: Iterable[tuple[str, Path]]) -> str:
    """A digest of files by name, size and time of change, for :meth:`Corpus.identity`; their content is not read."""
    described = [[name, (status := path.stat()).st_size, status.st_mtime_ns] for name, path in files]
    return digest_of(described)


NO_NETWORK_NEEDED = (
    "Text that needs no network: corpus=enwiki_sample, corpus=python_stdlib, or your own with corpus=files "
    "corpus.train=/path/to/text"
)


def check_source(source: str) -> None:
    """Raise UserError unless ``source`` is ``hub`` or a folder."""
    if source != "hub" and not user_path("corpus.source", source).is_dir():
        raise UserError(
            f"corpus.source={source} is not a folder; allowed: hub, or the path of a folder.{nearest(source, ('hub',))} "
            f"{NO_NETWORK_NEEDED}"
        )
