"""The word problem of A5: what does a sequence of permutations come to?

Why: the even permutations of five things are the smallest group whose products no fixed depth of sums can follow: each new one
has to be applied to the whole of what was before. Gates that only add, as CoPE's, cannot undo; products of reflections, as
PaTH's, can follow with fewer layers.

Source: Merrill et al. 2024 (arXiv 2404.08819), in the form of PaTH (Yang et al. 2025, arXiv 2505.16381): each token is one of
the 60 even permutations of five things, all equally likely, and the label at each token is the product of all up to it. Labels
are not written into the sequence.

Picture (a token names where each of 0 to 4 goes; the product applies the first token first):

    inputs   12034  01342  10324
    labels   12034  13042  02143
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import numpy as np

from cope.tasks.base import Examples
from cope.tasks.synthetic import SyntheticTask, check_whole_number, smallest_integer

NUM_THINGS = 5


def is_even(permutation: tuple[int, ...]) -> bool:
    """Whether it takes an even number of exchanges."""
    pairs = [(i, j) for j in range(len(permutation)) for i in range(j)]
    return sum(permutation[i] > permutation[j] for i, j in pairs) % 2 == 0


ELEMENTS = [permutation for permutation in permutations(range(NUM_THINGS)) if is_even(permutation)]
# PRODUCTS[a, b]: first a, then b
PRODUCTS = np.array(
    [[ELEMENTS.index(tuple(b[a[thing]] for thing in range(NUM_THINGS))) for b in ELEMENTS] for a in ELEMENTS], dtype=np.int8
)


@dataclass(kw_only=True)
class AlternatingGroup(SyntheticTask):
    """The word problem of A5; its fields are the keys of ``configs/task/a5.yaml``, explained there."""

    kind: ClassVar[str] = "a5"
    version: ClassVar[int] = 1
    epoch_size: ClassVar[int] = 4096
    headline: ClassVar[str] = "token_error"
    split_keys: ClassVar[tuple[str, ...]] = ("length",)

    length: int

    def check_settings(self, where: str) -> None:
        check_whole_number(f"{where}.length", self.length, 1)

    @property
    def longest_sequence(self) -> int:
        return self.length + 1

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return tuple("".join(map(str, element)) for element in ELEMENTS)

    def generate(self, num: int, random: np.random.Generator) -> Examples:
        # The last token is only there so that the one before it has a label.
        tokens = random.integers(len(ELEMENTS), size=(num, self.length + 1), dtype=np.int8)
        labels = np.zeros_like(tokens)
        product = np.zeros(num, dtype=np.int8)  # ELEMENTS[0] changes nothing
        for place in range(self.length):
            product = PRODUCTS[product, tokens[:, place]]
            labels[:, place + 1] = product
        answers = np.ones(tokens.shape, dtype=np.bool_)
        answers[:, 0] = False
        lengths = np.full(num, self.length + 1, dtype=smallest_integer(self.length + 1))
        return Examples(tokens, lengths, answers, labels=labels)
