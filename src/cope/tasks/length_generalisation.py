"""Copy, reverse and add: trained on short sequences, tested on longer ones.

Why: each takes positions that the training never reached, and what is to be done there is plain. Source: Kazemnejad et al. 2023
(arXiv 2305.19466), who train on lengths 1 to L, all equally likely, and test on longer ones by exact match. They find T5's bias
best of the explicit encodings, none at all as good, ALiBi between, absolute positions and RoPE poor.

Letters are drawn from the 26, with repetition. A sum's numbers have 1 to L digits each, without leading zeros, the first digit
first; the longer of the two has the length. Their prompts are sentences in natural language, here a separator stands for them.

Picture:

    copy       c a t > c a t .        addition   9 5 + 7 = 1 0 2 .
    reverse    c a t > t a c .        labels               1 0 2 .

A sequence is right if all its answers are, its end among them; with the right answers as context, which gives the same error as
decoding greedily (see ``selective_copy.py``).
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cope.errors import check_choice
from cope.tasks.base import Examples
from cope.tasks.synthetic import SyntheticTask, check_whole_number, smallest_integer

OPERATIONS = ("copy", "reverse", "addition")
END, SEPARATOR, PLUS = range(3)
FIRST_DIGIT = 3
FIRST_LETTER = FIRST_DIGIT + 10


@dataclass(kw_only=True)
class LengthGeneralisation(SyntheticTask):
    """Copy, reverse or addition; its fields are the keys of ``configs/task/length_generalisation.yaml``, explained there."""

    kind: ClassVar[str] = "length_generalisation"
    version: ClassVar[int] = 1
    epoch_size: ClassVar[int] = 4096
    split_keys: ClassVar[tuple[str, ...]] = ("min_length", "max_length")

    operation: str
    min_length: int
    max_length: int

    def check_settings(self, where: str) -> None:
        check_choice(f"{where}.operation", self.operation, OPERATIONS)
        check_whole_number(f"{where}.max_length", self.max_length, 1)
        check_whole_number(f"{where}.min_length", self.min_length, 1, self.max_length)

    @property
    def longest_sequence(self) -> int:
        if self.operation == "addition":
            return 3 * self.max_length + 4  # a sum may have one digit more; plus, separator, end
        return 2 * self.max_length + 2

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (".", "=" if self.operation == "addition" else ">", "+", *string.digits, *string.ascii_lowercase)

    def generate(self, num: int, random: np.random.Generator) -> Examples:
        sizes = random.integers(self.min_length, self.max_length, size=num, endpoint=True).tolist()
        one = self._sum if self.operation == "addition" else self._letters
        made = [one(size, random) for size in sizes]
        longest = max(len(question) + len(answer) for question, answer in made)
        tokens = np.zeros((num, longest), dtype=np.int8)
        answers = np.zeros((num, longest), dtype=np.bool_)
        lengths = np.zeros(num, dtype=smallest_integer(longest))
        for row, (question, answer) in enumerate(made):
            lengths[row] = len(question) + len(answer)
            tokens[row, : lengths[row]] = question + answer
            answers[row, len(question) : lengths[row]] = True
        return Examples(tokens, lengths, answers)

    def _letters(self, size: int, random: np.random.Generator) -> tuple[list[int], list[int]]:
        """Question and answer."""
        letters = random.integers(FIRST_LETTER, FIRST_LETTER + 26, size=size).tolist()
        return [*letters, SEPARATOR], [*(letters if self.operation == "copy" else letters[::-1]), END]

    def _sum(self, size: int, random: np.random.Generator) -> tuple[list[int], list[int]]:
        sizes = [size, int(random.integers(1, size, endpoint=True))]
        numbers = [_number(digits, random) for digits in (sizes if random.random() < 0.5 else sizes[::-1])]
        first, second, total = ([FIRST_DIGIT + int(digit) for digit in str(n)] for n in (*numbers, sum(numbers)))
        return [*first, PLUS, *second, SEPARATOR], [*total, END]


def _number(num_digits: int, random: np.random.Generator) -> int:
    """One of so many digits, the first of them not 0 unless it is the only one."""
    first = random.integers(0 if num_digits == 1 else 1, 10)
    return int("".join(map(str, [first, *random.integers(10, size=num_digits - 1).tolist()])))
