"""The contract of a task: a vocabulary, training examples, and named evaluation splits.

A task knows nothing of encodings, models or training. It hands out :class:`Examples`; the training loop cuts them into
batches of similar length. Training examples come epoch by epoch: a task with a fixed training set gives the same examples
each time, one that generates as it trains gives new ones. Both are functions of ``(seed, epoch)`` alone, which is what makes
a resumed run identical to an unbroken one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cope.errors import UserError, nearest

IGNORE = -100  # the target where no loss is due; PyTorch's own default for cross-entropy


@dataclass(frozen=True)
class Examples:
    """Sequences padded on the right to a common length.

    Causal attention never looks to the right, so padding there needs no mask: it costs time, and nothing else.
    """

    tokens: np.ndarray  # (num, longest) integer token ids, 0 beyond each sequence's length
    lengths: np.ndarray  # (num,) tokens in each sequence
    answers: np.ndarray  # (num, longest) True at the tokens that are to be predicted and scored
    num_cut: int = 0  # sequences shortened, or left out, because they did not fit the context

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: np.ndarray, *, loss: str = "answers") -> tuple[Tensor, Tensor]:
        """``(inputs, targets)``, both (batch, time) int64: targets are the inputs moved by one, IGNORE where no loss is due.

        ``loss="everywhere"`` asks for every token of the sequence instead of the answers alone.
        """
        longest = int(self.lengths[indices].max())
        tokens = torch.from_numpy(self.tokens[indices, :longest].astype(np.int64))
        if loss == "answers":
            wanted = torch.from_numpy(self.answers[indices, :longest])
        else:
            wanted = torch.arange(longest)[None, :] < torch.from_numpy(self.lengths[indices].astype(np.int64))[:, None]
        targets = torch.where(wanted, tokens, IGNORE)
        return tokens[:, :-1], targets[:, 1:]


class Task(ABC):
    """What every task offers. Subclasses are dataclass-like: their constructor's arguments are the keys of ``configs/task``."""

    name: str
    headline: ClassVar[str] = "error"  # the metric by which checkpoints are chosen and tables are made
    loss: str = "answers"  # or "everywhere"
    context: int  # the most tokens a training sequence has

    @property
    @abstractmethod
    def vocabulary(self) -> tuple[str, ...]:
        """The words, by token id."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """The token ids of ``text``: here words of the vocabulary with white space between them; none of empty text.

        Raises:
            UserError: a word that is not in the vocabulary.
        """
        ids = {word: token for token, word in enumerate(self.vocabulary)}
        words = text.split()
        for word in words:
            if word not in ids:
                raise UserError(f"{word!r} is not a word of task={self.name}; allowed: {', '.join(ids)}.{nearest(word, ids)}")
        return [ids[word] for word in words]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, which :meth:`encode` turns back into them."""
        return " ".join(self.vocabulary[token] for token in tokens)

    @property
    @abstractmethod
    def test_splits(self) -> tuple[str, ...]:
        """Names of the splits scored once, at the end: ``test`` first, then the out-of-distribution ones."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """The most tokens a sequence of any split has; more than ``context`` where a split tests longer sequences."""

    @abstractmethod
    def training_examples(self, seed: int, epoch: int) -> Examples:
        """The examples of one epoch."""

    @abstractmethod
    def evaluation_examples(self, split: str) -> Examples:
        """The examples of ``validation`` or of a test split: the same for every run, whatever its seed.

        Raises:
            UserError: the split is not known.
        """
