"""Where the paragraphs, sections and sentences of a document begin, as places among its tokens.

A line begins after a token with a newline in it; lines without text (the blank ones around headings) belong to the line
before. Every other line begins a paragraph, a heading too. Of these, the headings as Wikitext-103 marks them (`` = Title = ``,
`` = = Section = = ``) begin a section, whatever their level. Tokens that hold a newline hold nothing but white space: so it is
with every tokenizer here. Sentences are found by their marks alone, and so are some that are none (after ``St.``).

    = Title = ↵ ↵ Some text ↵ More text ↵ ↵ = = Early years = = ↵ ↵ Born in ↵
    ^             ^           ^             ^                       ^           a paragraph begins
    ^                                       ^                                   a section begins
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cope.corpora.tokenizer import Tokenizer
from cope.corpora.wiki_markup import HEADING


class Line(NamedTuple):
    """A line with text."""

    start: int  # the place of its first token in the document
    text: str
    is_heading: bool

    @property
    def title(self) -> str:
        """The text without the marks of a heading."""
        return self.text.strip(" =") if self.is_heading else self.text


def find_lines(tokens: np.ndarray, tokenizer: Tokenizer) -> list[Line]:
    """The lines of a document that have text, in order.

    Args:
        tokens: (time,) ids, without the separator.
    """
    ids = tokens.tolist()
    ends = [place + 1 for place, piece in enumerate(tokenizer.pieces(ids)) if "↵" in piece]
    if not ends or ends[-1] < len(ids):
        ends.append(len(ids))
    lines = []
    for start, end in zip([0, *ends], ends, strict=False):
        text = tokenizer.decode(ids[start:end]).partition("\n")[0]
        if text.strip():
            lines.append(Line(start, text, HEADING.match(text) is not None))
    return lines


def find_sentences(tokens: np.ndarray, lines: list[Line], tokenizer: Tokenizer) -> np.ndarray:
    """(num,) the tokens at which a sentence begins, ascending: the first of each line, and a space after ``.``, ``!`` or ``?``.

    Args:
        tokens: (time,) ids, without the separator.
        lines: as :func:`find_lines` found them.
    """
    pieces = tokenizer.pieces(tokens.tolist())
    inside_lines = [
        place
        for place in range(1, len(pieces))
        if pieces[place].startswith("␣") and pieces[place - 1].endswith((".", "!", "?"))
    ]
    return np.array(sorted({line.start for line in lines} | set(inside_lines)), dtype=np.int64)
