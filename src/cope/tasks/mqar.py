"""Multi-query associative recall: pairs of key and value, and later the keys again: what was each one's value?

Why: recall by content alone, at many distances at once. Position helps little: a key's value is the token after it, wherever
the two stand. An encoding that buys counting with worse recall shows it here.

Source: Arora et al. 2023 (arXiv 2312.04927), as their code has it (HazyResearch/zoology, ``multiquery_ar.py``): keys from the
lower half of the vocabulary, values from the upper, each at most once in a sequence; the pairs come first, then each key is
asked once, at places drawn without replacement with probabilities that fall as g^(power - 1) with the gap g; the places
between are filled with random tokens. As there, a query's value is the label at the query and is not written into the
sequence.

Picture (2 pairs, without random filling):

    inputs   k3  v1  k1  v4  .   .   k1  .   .   .   k3  .
    labels   .   .   .   .   .   .   v4  .   .   .   v1  .

Every query counts as one answer, so the headline is the error per answer (``token_error``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cope.errors import UserError
from cope.tasks.base import Examples
from cope.tasks.synthetic import (
    LARGEST_VOCABULARY,
    SyntheticTask,
    check_number,
    check_whole_number,
    draw_distinct,
    smallest_integer,
)

BLANK = 0  # fills places where random tokens do not


@dataclass(kw_only=True)
class MultiQueryRecall(SyntheticTask):
    """Multi-query associative recall; its fields are the keys of ``configs/task/mqar.yaml``, explained there."""

    kind: ClassVar[str] = "mqar"
    version: ClassVar[int] = 1
    epoch_size: ClassVar[int] = 4096
    headline: ClassVar[str] = "token_error"
    split_keys: ClassVar[tuple[str, ...]] = ("length", "num_pairs", "power")

    num_words: int
    length: int
    num_pairs: int
    power: float
    random_filling: bool

    def check_settings(self, where: str) -> None:
        check_whole_number(f"{where}.num_pairs", self.num_pairs, 1)
        check_whole_number(f"{where}.length", self.length, 4)
        check_whole_number(f"{where}.num_words", self.num_words, 4, LARGEST_VOCABULARY)
        check_number(f"{where}.power", self.power, 0, 1)
        if self.length < 4 * self.num_pairs:
            raise UserError(
                f"{where}.length={self.length} has no room for {where}.num_pairs={self.num_pairs} pairs and a query for each; "
                f"allowed: {4 * self.num_pairs} or more."
            )
        if self.num_pairs > self.num_words // 2 - 1:
            raise UserError(
                f"{where}.num_pairs={self.num_pairs} pairs need as many keys, and task.num_words={self.num_words} has "
                f"{self.num_words // 2 - 1}; allowed: that many, or more words."
            )

    @property
    def longest_sequence(self) -> int:
        return self.length + 1

    @property
    def vocabulary(self) -> tuple[str, ...]:
        half = self.num_words // 2
        keys, values = (f"k{index}" for index in range(1, half)), (f"v{index}" for index in range(self.num_words - half))
        return ("<blank>", *keys, *values)

    def generate(self, num: int, random: np.random.Generator) -> Examples:
        half, dtype = self.num_words // 2, smallest_integer(self.num_words)
        keys = 1 + draw_distinct(random, num, np.ones(half - 1, dtype=np.float32), self.num_pairs)
        values = half + draw_distinct(random, num, np.ones(self.num_words - half, dtype=np.float32), self.num_pairs)
        shown = 2 * self.num_pairs
        gaps = np.arange(1, (self.length - shown) // 2 + 1, dtype=np.float32)
        queries = shown + 2 * draw_distinct(random, num, gaps ** (self.power - 1), self.num_pairs)

        tokens = np.full((num, self.length + 1), BLANK, dtype=dtype)
        if self.random_filling:
            tokens[:, shown:] = random.integers(self.num_words, size=(num, self.length + 1 - shown))
        tokens[:, 0:shown:2], tokens[:, 1:shown:2] = keys, values
        np.put_along_axis(tokens, queries, keys.astype(dtype), axis=1)
        labels = np.full_like(tokens, BLANK)
        np.put_along_axis(labels, queries + 1, values.astype(dtype), axis=1)
        answers = np.zeros(tokens.shape, dtype=np.bool_)
        np.put_along_axis(answers, queries + 1, True, axis=1)
        lengths = np.full(num, self.length + 1, dtype=smallest_integer(self.length + 1))
        return Examples(tokens, lengths, answers, labels=labels)
