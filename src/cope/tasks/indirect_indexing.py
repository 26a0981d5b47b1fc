"""Indirect indexing: find a letter in a text, go so many letters from there, and say what stands there.

Why: the letter is found by what it is, the answer by where it is, relative to that. An encoding that mixes the two in one
product of query and key finds neither; the paper reports RoPE at 11% and its own positions, PoPE, at 95%.

Source: PoPE (Gopalakrishnan et al. 2025, arXiv 2509.10534): a text of 20 to 40 different letters, one of them, and a shift from
-15 to 15; loss on the answer. Here the letters are the 52 of the alphabet in both cases, all choices are equally likely among
those that stay within the text, and a shift is one token, which the description leaves open.

Picture (a text of 5 letters, a shift of up to 2):

    inputs   d  Q  a  x  b  ,  Q  ,  +2  ,
    labels   .  .  .  .  .  .  .  .  .   x
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cope.tasks.base import Examples
from cope.tasks.synthetic import LARGEST_VOCABULARY, SyntheticTask, check_whole_number, draw_distinct, smallest_integer

LETTERS = string.ascii_letters
COMMA = 0  # then the letters, then the shifts
QUESTION = 6  # tokens after the text: commas, the letter, the shift, the answer


@dataclass(kw_only=True)
class IndirectIndexing(SyntheticTask):
    """Indirect indexing; its fields are the keys of ``configs/task/indirect_indexing.yaml``, explained there."""

    kind: ClassVar[str] = "indirect_indexing"
    version: ClassVar[int] = 1
    epoch_size: ClassVar[int] = 4096
    split_keys: ClassVar[tuple[str, ...]] = ("min_letters", "max_letters")

    min_letters: int
    max_letters: int
    max_shift: int

    def check_settings(self, where: str) -> None:
        check_whole_number(f"{where}.max_letters", self.max_letters, 1, len(LETTERS))
        check_whole_number(f"{where}.min_letters", self.min_letters, 1, self.max_letters)
        check_whole_number(f"{where}.max_shift", self.max_shift, 0, LARGEST_VOCABULARY)

    @property
    def longest_sequence(self) -> int:
        return self.max_letters + QUESTION

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (",", *LETTERS, *(f"{shift:+d}" for shift in range(-self.max_shift, self.max_shift + 1)))

    def generate(self, num: int, random: np.random.Generator) -> Examples:
        rows = np.arange(num)
        sizes = random.integers(self.min_letters, self.max_letters, size=num, endpoint=True)
        text = 1 + draw_distinct(random, num, np.ones(len(LETTERS), dtype=np.float32), self.max_letters)
        found = random.integers(sizes)
        shifts = random.integers(
            np.maximum(-self.max_shift, -found), np.minimum(self.max_shift, sizes - 1 - found), endpoint=True
        )
        tokens = np.full((num, self.longest_sequence), COMMA, dtype=smallest_integer(self.vocab_size))
        tokens[:, : self.max_letters] = text
        tokens[np.arange(self.longest_sequence) >= sizes[:, None]] = COMMA
        tokens[rows, sizes + 1] = text[rows, found]
        tokens[rows, sizes + 3] = 1 + len(LETTERS) + self.max_shift + shifts
        tokens[rows, sizes + 5] = text[rows, found + shifts]
        answers = np.zeros(tokens.shape, dtype=np.bool_)
        answers[rows, sizes + 5] = True
        lengths = (sizes + QUESTION).astype(smallest_integer(self.longest_sequence))
        longest = int(lengths.max())
        return Examples(tokens[:, :longest], lengths, answers[:, :longest])
