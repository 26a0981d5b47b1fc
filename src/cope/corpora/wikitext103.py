"""Wikitext-103 (arXiv 1609.07843): 28 thousand good and featured articles of Wikipedia, the usual corpus of perplexities.

Why: published perplexities, the CoPE paper's among them, are on it. The Hub's data set ``Salesforce/wikitext`` has one line of
text a row; a document here is an article, which begins with a line such as `` = Valkyria Chronicles III = `` after an empty
one. (A heading of a section has more signs: `` = = Gameplay = = ``.) Its own splits are kept. The ``raw`` variant is the text
as it was; in the ``tokenised`` one words are parted by spaces and rare ones are ``<unk>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from cope.corpora.base import Corpus, check_source, files_digest
from cope.corpora.rows import files_of_split, read_columns, read_hub
from cope.errors import check_choice
from cope.files import user_path

DATASET = "Salesforce/wikitext"
CONFIGURATIONS = {"raw": "wikitext-103-raw-v1", "tokenised": "wikitext-103-v1"}
COLUMN = "text"
TITLE = re.compile(r" = (?!=).*(?<!= )= $")


@dataclass(kw_only=True)
class Wikitext103(Corpus):
    """Articles in the order of the data set.

    Args:
        variant: ``raw`` or ``tokenised``.
        source: ``hub``, or a folder with parquet files named as on the Hub (``train-00000-of-00002.parquet``, or
            ``train.parquet``), there or in a folder named after the configuration.
    """

    if_empty: ClassVar[str] = "There must be a line such as ' = Title = ' after an empty one."

    variant: str
    source: str

    def __post_init__(self) -> None:
        check_choice("corpus.variant", self.variant, CONFIGURATIONS)
        check_source(self.source)

    @property
    def license(self) -> str:
        return "CC BY-SA 3.0 and GFDL, by the contributors of en.wikipedia.org"

    def documents(self, split: str) -> Iterator[str]:
        return articles(self._lines(split))

    def identity(self) -> dict[str, Any]:
        if self.source == "hub":
            return {"variant": self.variant, "source": DATASET}
        files = [(path.name, path) for split in ("train", "validation", "test") for path in self._files(split)]
        return {"variant": self.variant, "files": files_digest(files)}

    def _lines(self, split: str) -> Iterator[str]:
        if self.source == "hub":
            rows = read_hub(self.name, DATASET, [COLUMN], CONFIGURATIONS[self.variant], split=split)
        else:
            key = f"corpus.source={self.source}: column"
            rows = chain.from_iterable(read_columns(path, [COLUMN], key) for path in self._files(split))
        return (line for (line,) in rows)

    def _files(self, split: str) -> list[Path]:
        folder = user_path("corpus.source", self.source)
        inner = folder / CONFIGURATIONS[self.variant]
        folder = inner if inner.is_dir() else folder
        return files_of_split(f"corpus.source={self.source}", folder, folder.iterdir(), split)


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Articles from lines with or without their newlines; each begins with its title. Lines before the first are dropped."""
    article: list[str] = []
    after_empty = True
    for line in lines:
        line = line.removesuffix("\n")
        if after_empty and TITLE.match(line):
            if article:
                yield "".join(article)
            article = [line + "\n"]
        elif article:
            article.append(line + "\n")
        after_empty = not line.strip()
    if article:
        yield "".join(article)
