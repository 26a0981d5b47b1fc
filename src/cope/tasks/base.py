"""The contract of a task: a vocabulary, training examples, and named evaluation splits.

A task knows nothing of encodings, models or training. It hands out sets of examples; the training loop cuts them into
batches of similar length. Training examples come epoch by epoch: a task with a fixed training set gives the same examples
each time, one that generates as it trains gives new ones. Both are functions of ``(seed, epoch)`` alone, which is what makes
a resumed run identical to an unbroken one. What a model scored on them the task turns into its metrics.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from cope.errors import UserError, nearest
from cope.tasks.scores import Score

IGNORE = -100  # the target where no loss is due; PyTorch's own default for cross-entropy


class ExampleSet(Protocol):
    """Examples to train on or to be scored."""

    @property
    def lengths(self) -> np.ndarray:
        """(num,) tokens in each sequence, the last of which is only predicted."""

    @property
    def num_cut(self) -> int:
        """Sequences shortened, or left out, because they did not fit the context."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, *, loss: str = "answers") -> tuple[Tensor, Tensor]:
        """``(inputs, targets)``, both (batch, time) int64: targets are the inputs moved by one, IGNORE where no loss is due.

        ``loss="everywhere"`` asks for every token of the sequence instead of the answers alone.
        """


class Specimen(NamedTuple):
    """One example of the test split, short enough for a picture."""

    tokens: np.ndarray  # (time,) int64 ids
    query: int  # the place from which the answer is predicted
    words: tuple[str, ...]  # of the tokens, to be read along an axis


@dataclass(frozen=True)
class Examples:
    """Sequences padded on the right to a common length.

    Causal attention never looks to the right, so padding there needs no mask: it costs time, and nothing else.
    """

    tokens: np.ndarray  # (num, longest) integer token ids, 0 beyond each sequence's length
    lengths: np.ndarray  # (num,) tokens in each sequence
    answers: np.ndarray  # (num, longest) True at the tokens that are to be predicted and scored
    num_cut: int = 0  # sequences shortened, or left out, because they did not fit the context
    labels: np.ndarray | None = None  # (num, longest) what is to be predicted at the answers, where that is not the next token

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: np.ndarray, *, loss: str = "answers") -> tuple[Tensor, Tensor]:
        """See :class:`ExampleSet`."""
        longest = int(self.lengths[indices].max())
        tokens = torch.from_numpy(self.tokens[indices, :longest].astype(np.int64))
        if loss == "answers":
            wanted = torch.from_numpy(self.answers[indices, :longest])
        else:
            wanted = torch.arange(longest)[None, :] < torch.from_numpy(self.lengths[indices].astype(np.int64))[:, None]
        next_tokens = tokens
        if self.labels is not None:
            answers = torch.from_numpy(self.answers[indices, :longest])
            next_tokens = torch.where(answers, torch.from_numpy(self.labels[indices, :longest].astype(np.int64)), tokens)
        targets = torch.where(wanted, next_tokens, IGNORE)
        return tokens[:, :-1], targets[:, 1:]


@dataclass(kw_only=True)
class Task(ABC):
    """What every task offers. The fields of a task are the keys of its file in ``configs/task``, where their defaults are.

    Raises:
        UserError: a setting that cannot be.
    """

    headline: ClassVar[str] = "error"  # the metric by which checkpoints are chosen and tables are made: less is better

    name: str  # the folder that runs go to
    loss: str = field(init=False, default="answers")  # or "everywhere": what training learns to predict

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UserError(f"task.name={self.name} cannot name a folder; allowed: letters, digits, '_', '-' and '.'.")

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
    def fingerprint(self) -> str:
        """Of the data, as far as the settings do not determine it: the content of a corpus, the version of a generator."""

    def has_data(self, fingerprint: str) -> bool:
        """Whether a run with ``fingerprint`` had the data that this task has now."""
        return fingerprint == self.fingerprint

    @property
    def separator(self) -> int | None:
        """The token that ends a text; None where there is none."""
        return None

    @property
    @abstractmethod
    def test_splits(self) -> tuple[str, ...]:
        """Names of the splits scored once, at the end: ``test`` first, then the out-of-distribution ones."""

    @abstractmethod
    def context_of(self, split: str) -> int:
        """The most tokens that a model reads of a sequence of ``train``, ``validation`` or a test split.

        A sequence's last token is only predicted: it is not among them.
        """

    @property
    def longest_context(self) -> int:
        """The most tokens that a model reads of any sequence; more than in training where a split tests longer ones."""
        return max(self.context_of(split) for split in ("train", "validation", *self.test_splits))

    @abstractmethod
    def training_examples(self, seed: int, epoch: int) -> ExampleSet:
        """The examples of one epoch; every epoch has as many."""

    @abstractmethod
    def evaluation_examples(self, split: str) -> ExampleSet:
        """The examples of ``validation`` or of a test split: the same for every run, whatever its seed.

        Raises:
            UserError: the split is not known.
        """

    @property
    def watched_splits(self) -> tuple[str, ...]:
        """Splits that may be scored while a model trains, beside ``validation``: out of distribution, and never ``test``."""
        return ()

    def watched_examples(self, split: str, num: int) -> ExampleSet:
        """At most ``num`` examples of one of ``watched_splits``, always the same."""
        raise NotImplementedError

    def metrics(self, split: str, score: Score) -> dict[str, Any]:
        """What ``score`` means: the metrics of this task, the headline among them, and the counts that belong to them."""
        return {"error": score.error, "token_error": score.token_error}

    @abstractmethod
    def specimen(self, num_tokens: int) -> Specimen:
        """An example to be drawn, of ``num_tokens`` at most where the task has such."""
