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

from collections.abc import Callable
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
    ends = (1 + np.flatnonzero(_where(tokens, tokenizer, lambda piece: "↵" in piece))).tolist()
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
    ends = _where(tokens, tokenizer, lambda piece: piece.endswith((".", "!", "?")))
    is_start = np.zeros(len(tokens), dtype=bool)
    is_start[1:] = ends[:-1] & _where(tokens, tokenizer, lambda piece: piece.startswith("␣"))[1:]
    is_start[[line.start for line in lines]] = True
    return np.flatnonzero(is_start)


def _where(tokens: np.ndarray, tokenizer: Tokenizer, holds: Callable[[str], bool]) -> np.ndarray:
    """(time,) bool: ``holds`` of each token's piece, asked once for each id, since a document has fewer ids than tokens."""
    ids, places = np.unique(tokens, return_inverse=True)
    answers = np.array([holds(piece) for piece in tokenizer.pieces(ids.tolist())], dtype=bool)
    found: np.ndarray = answers[places]
    return found
