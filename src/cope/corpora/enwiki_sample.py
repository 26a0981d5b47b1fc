"""A hundred English Wikipedia articles that come with the test data of the package gensim: 6 MB of markup, no network needed.

Why: a corpus of encyclopedic prose that ``pip install`` brings along, small enough to prepare in seconds. It is a shortened
dump of 2015 in Wikipedia's XML. gensim is only looked for, never imported. Any other dump in that format can be named as
``source``.
"""

from __future__ import annotations

import bz2
import hashlib
import importlib.util
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from cope.corpora import wiki_markup
from cope.corpora.base import HashedCorpus, files_digest, split_by_hash
from cope.errors import UserError
from cope.files import user_path

MEMBER = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
ARTICLES = "0"  # the number of their namespace


@dataclass(kw_only=True)
class EnwikiSample(HashedCorpus):
    """Articles in the order of the dump, without redirects; split by title.

    Args:
        source: ``gensim`` for the installed package; or the path of its wheel, or of a dump (``.xml`` or ``.xml.bz2``).
    """

    source: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path = _installed() if self.source == "gensim" else user_path("corpus.source", self.source)
        if not self.path.is_file():
            raise UserError(
                f"corpus.source={self.source}: there is no file {self.path}; allowed: gensim, or the path of gensim's wheel or "
                "of a Wikipedia dump (.xml or .xml.bz2)."
            )

    @property
    def license(self) -> str:
        return "CC BY-SA 3.0 and GFDL, by the contributors of en.wikipedia.org"

    def documents(self, split: str) -> Iterator[str]:
        try:
            with self._open() as file:
                for title, markup in _articles(file):
                    if split_by_hash(title, *self.fractions) == split:
                        yield wiki_markup.plain_text(title, markup)
        except (OSError, EOFError, KeyError, zipfile.BadZipFile, ElementTree.ParseError) as error:
            reason = str(error) or type(error).__name__
            raise UserError(
                f"corpus.source={self.source}: {self.path} is not a Wikipedia dump, or damaged ({reason})."
            ) from error

    def identity(self) -> dict[str, Any]:
        if self.source == "gensim":  # small, and the same file wherever gensim is installed
            content = hashlib.sha256(self.path.read_bytes()).hexdigest()
        else:
            content = files_digest([(self.path.name, self.path)])
        return {"content": content, "fractions": list(self.fractions), "cleaning": wiki_markup.VERSION}

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        """The XML."""
        if self.path.suffix == ".whl":
            with zipfile.ZipFile(self.path) as wheel, wheel.open(f"gensim/{MEMBER}") as packed, bz2.open(packed) as file:
                yield file
        elif self.path.suffix == ".bz2":
            with bz2.open(self.path) as file:
                yield file
        else:
            with self.path.open("rb") as file:
                yield file


def _installed() -> Path:
    """Where the installed gensim keeps the dump."""
    found = importlib.util.find_spec("gensim")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "corpus=enwiki_sample is part of the package gensim, which is not installed: pip install -e '.[text]'\n"
            "Or name its wheel or another Wikipedia dump: corpus.source=/path/to/file"
        )
    return Path(found.submodule_search_locations[0], MEMBER)


def _articles(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    """``(title, markup)`` of every article; memory holds one page."""
    context = ElementTree.iterparse(file, events=("start", "end"))
    _, root = next(context)
    for event, element in context:
        if event == "end" and element.tag.endswith("}page"):
            if element.findtext("{*}ns") == ARTICLES and element.find("{*}redirect") is None:
                yield element.findtext("{*}title") or "", element.findtext("{*}revision/{*}text") or ""
            root.clear()  # else the tree would grow to the size of the dump
