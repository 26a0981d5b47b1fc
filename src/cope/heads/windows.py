"""Windows of a language task's test documents, with the lines of each document: where paragraphs and sections are looked for.

Windows are as long as the model's context, lie inside one document each and do not overlap. Which are taken is chosen at
random, each as likely as any other; documents shorter than a window have none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from cope.errors import UserError
from cope.heads.boundaries import Line, find_lines, find_sentences
from cope.seeding import numpy_stream
from cope.tasks.language import Language


@dataclass(frozen=True, eq=False)
class Article:
    """A test document."""

    number: int  # in the test split, from 0 on
    tokens: np.ndarray  # (time,) int64 ids, without the separator
    lines: list[Line]
    sentence_starts: np.ndarray  # (sentences,) the first token of each

    @cached_property
    def line_starts(self) -> np.ndarray:
        """(lines,) the first token of each line with text."""
        return np.array([line.start for line in self.lines], dtype=np.int64)

    @cached_property
    def are_headings(self) -> np.ndarray:
        """(lines,) bool."""
        return np.array([line.is_heading for line in self.lines], dtype=bool)

    @cached_property
    def in_text(self) -> np.ndarray:
        """(time,) bool, False at headings and the blank lines after them."""
        lengths = np.diff(np.append(self.line_starts, len(self.tokens)))
        before_the_first = len(self.tokens) - int(lengths.sum())
        return np.append(np.zeros(before_the_first, dtype=bool), np.repeat(~self.are_headings, lengths))


class Window(NamedTuple):
    """Tokens of an article, from ``start`` on."""

    article: Article
    start: int

    def lines(self, length: int) -> list[Line]:
        """The lines that begin after the window's first token."""
        return [line for line in self.article.lines if self.start < line.start < self.start + length]


def article_windows(task: Language, seed: int) -> list[Window]:
    """Windows side by side over each test document that is long enough, from a random place on."""
    documents, context = task.prepared.test, task.context
    windows = []
    for number, length in enumerate((np.diff(documents.starts) - 1).tolist()):
        if length < context:
            continue
        tokens = documents.tokens[documents.starts[number] : documents.starts[number] + length].astype(np.int64)
        lines = find_lines(tokens, task.prepared.tokenizer)
        article = Article(number, tokens, lines, find_sentences(tokens, lines, task.prepared.tokenizer))
        offset = int(numpy_stream(seed, "article windows/offset", number).integers(length % context + 1))
        windows += [Window(article, offset + context * index) for index in range(length // context)]
    return windows


def chosen_windows(windows: list[Window], num_windows: int, task: Language, seed: int) -> list[Window]:
    """``num_windows`` of them, in their order.

    Raises:
        UserError: there are fewer.
    """
    if len(windows) < num_windows:
        raise UserError(
            f"num_windows={num_windows} is more than there are: the test split of task={task.name} has {len(windows)} of "
            f"{task.context} tokens; allowed: 2 to {len(windows)}."
        )
    indices = numpy_stream(seed, "article windows/choice").choice(len(windows), num_windows, replace=False)
    return [windows[index] for index in np.sort(indices)]


def windows_of(windows: list[Window], document: int, context: int) -> list[Window]:
    """Those of one document.

    Raises:
        UserError: it has none.
    """
    found = [window for window in windows if window.article.number == document]
    if not found:
        allowed = ", ".join(map(str, sorted({window.article.number for window in windows})))
        raise UserError(f"document={document} is not a test document of {context} tokens or more; allowed: {allowed}.")
    return found


def window_with_sections(windows: Iterable[Window], num_sections: int, context: int) -> Window:
    """The first window in which as many sections begin, or nearly as many."""
    return min(windows, key=lambda window: abs(sum(line.is_heading for line in window.lines(context)) - num_sections))
