"""Selective copying: repeat the content tokens in order, leaving out the blanks strewn among them.

Why: the k-th token to write is the k-th *content* token before the separator, and its distance in tokens depends on how many
blanks fell in between. Positions that count content tokens only, and not blanks, turn the task into plain copying.

Source: Gu & Dao 2023 (arXiv 2312.00752), after Jing et al. 2019; in the form of Golovneva et al. 2024 (arXiv 2405.18719),
section 5.2: 256 tokens to copy among 256 blanks when training, and among 128 ("dense") or 512 ("sparse") when testing out of
distribution. That paper says "vocabulary 16" and no more. We read it as ``<blank>``, the separator ``<copy>`` and 14 symbols
to copy. Padding has no token of its own: all sequences of a split are equally long, so there is none.

Picture (3 to copy among 2 blanks; loss on answers only):

    inputs   <blank>  c  a  <blank>  c  <copy>  c  a
    labels   .        .  .  .        .  c       a  c

A sequence is right if all its answers are. They are scored with the right answers as context (teacher forcing), and that
gives the same error as decoding greedily: up to the first mistake both see the same tokens, and after it both are wrong.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cope.tasks.base import Examples
from cope.tasks.synthetic import SyntheticTask, check_whole_number, smallest_integer

NUM_SYMBOLS = 14
BLANK, SEPARATOR, FIRST_SYMBOL = range(3)


@dataclass(kw_only=True)
class SelectiveCopy(SyntheticTask):
    """The selective copying task; its fields are the keys of ``configs/task/selective_copy.yaml``, explained there."""

    kind: ClassVar[str] = "selective_copy"
    version: ClassVar[int] = 1
    epoch_size: ClassVar[int] = 4096
    split_keys: ClassVar[tuple[str, ...]] = ("num_copied", "num_blanks")

    num_copied: int
    num_blanks: int

    def check_settings(self, where: str) -> None:
        check_whole_number(f"{where}.num_copied", self.num_copied, 1)
        check_whole_number(f"{where}.num_blanks", self.num_blanks, 0)

    @property
    def longest_sequence(self) -> int:
        return 2 * self.num_copied + self.num_blanks + 1

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return ("<blank>", "<copy>", *string.ascii_lowercase[:NUM_SYMBOLS])

    def generate(self, num: int, random: np.random.Generator) -> Examples:
        num_shown = self.num_copied + self.num_blanks  # tokens before the separator
        length = self.longest_sequence
        content = random.integers(FIRST_SYMBOL, FIRST_SYMBOL + NUM_SYMBOLS, size=(num, self.num_copied), dtype=np.int8)
        is_content = np.tile(np.arange(num_shown) < self.num_copied, (num, 1))
        random.permuted(is_content, axis=1, out=is_content)  # each row by itself: every choice of places is equally likely
        tokens = np.full((num, length), BLANK, dtype=np.int8)
        tokens[:, :num_shown][is_content] = content.ravel()  # row by row, from left to right: the order is kept
        tokens[:, num_shown] = SEPARATOR
        tokens[:, num_shown + 1 :] = content
        answers = np.zeros((num, length), dtype=np.bool_)
        answers[:, num_shown + 1 :] = True
        return Examples(tokens, np.full(num, length, dtype=smallest_integer(length)), answers)
