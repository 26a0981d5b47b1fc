"""What the generated tasks share: checks, test splits that change some settings, and random streams.

A subclass names its settings, checks them and generates examples from them; the rest is here. A test split is the training
distribution with some settings changed, so ``splits: {ood_longer: {pass_weight: 100}}`` is a complete description of one.

Random streams: an evaluation split depends on ``data_seed`` and its name alone, so every run is scored on the same examples.
Training examples depend also on the run's seed and, unless the training set is fixed, on the epoch. What is fixed is kept in
memory; it takes less than half a second to make, so nothing is kept on disk.

Picture: :meth:`Examples.batch` turns ``w 1 i 0 r 1`` (the flip-flop task) into inputs over labels, ``.`` where no loss is due

    inputs   w  1  i  0  r
    labels   .  .  .  .  1
"""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from cope.errors import UserError, check_at_least, check_between, check_choice, nearest
from cope.seeding import numpy_stream
from cope.tasks.base import Examples, Specimen, Task

log = logging.getLogger(__name__)

LARGEST_VOCABULARY = 2**20  # its words are made and compared, which a slip of the finger must not let take minutes


def check_whole_number(key: str, value: object, low: int, high: int | None = None) -> None:
    """Raise UserError unless ``value`` is a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{key}={value} is not a whole number.")
    if high is None:
        check_at_least(key, value, low)
    else:
        check_between(key, value, low, high)


def check_number(key: str, value: object, low: float, high: float) -> None:
    """Raise UserError unless ``value`` is a number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{key}={value} is not a number.")
    check_between(key, value, low, high)


def check_mapping(key: str, value: object, allowed: tuple[str, ...] | None = None) -> dict[str, Any]:
    """``value`` as a plain dictionary (it may come from YAML); UserError if it is none or has a key not in ``allowed``."""
    if not isinstance(value, Mapping):
        if value is None:
            raise UserError(
                f"{key}=null is not a table. To leave something out, remove it by its name: ~{key}, or ~{key}.name."
            )
        raise UserError(f"{key}={value} is not a table of names and values, such as {{name: value}}.")
    table = {str(name): entry for name, entry in value.items()}
    for name in table:
        if allowed is not None and name not in allowed:
            raise UserError(f"{key}.{name} is not a key; allowed: {', '.join(allowed)}.{nearest(name, allowed)}")
    return table


def smallest_integer(largest: int) -> np.dtype[Any]:
    """The smallest signed integer type that holds 0 to ``largest``; signed, so that subtracting never wraps around."""
    return np.min_scalar_type(-largest - 1)


@dataclass(kw_only=True)
class SyntheticTask(Task):
    """A task whose examples come from a generator.

    Args:
        num_train: examples of the training set; None makes new ones every epoch.
        num_validation: examples.
        num_test: examples of each test split.
        loss: ``answers``, or ``everywhere``.
        splits: the test splits by name, each with the settings that it changes.
        data_seed: of the data alone; evaluation splits are the same whatever a run's seed.
    """

    kind: ClassVar[str]  # prefix of its random streams: unlike ``name``, not the user's to change
    version: ClassVar[int]  # of the generator: raise it when the same settings give other examples
    split_keys: ClassVar[tuple[str, ...]]  # what a test split may change
    epoch_size: ClassVar[int]  # examples in an epoch of an endless training set

    num_train: int | None
    num_validation: int
    num_test: int
    loss: str = field()
    splits: Mapping[str, Mapping[str, Any]]
    data_seed: int
    _held: dict[tuple[str, int | None], Examples] = field(init=False, repr=False)  # fixed sets made before, by (stream, seed)
    _variants: dict[str, Self] = field(init=False, repr=False)  # the task of each test split

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_train is not None:
            check_at_least("task.num_train", self.num_train, 1)
        check_at_least("task.num_validation", self.num_validation, 1)
        check_at_least("task.num_test", self.num_test, 1)
        check_choice("task.loss", self.loss, ("answers", "everywhere"))
        check_at_least("task.data_seed", self.data_seed, 0)
        self.check_settings("task")
        self._held = {}
        self._variants = self._resolve()  # type: ignore[assignment]  # of Self

    @abstractmethod
    def check_settings(self, where: str) -> None:
        """Raise UserError unless every setting is sound; ``where`` is the key they were typed under, as ``task``."""

    @property
    @abstractmethod
    def longest_sequence(self) -> int:
        """The most tokens a sequence has."""

    @property
    def longest_drawn(self) -> int:
        """The most tokens a sequence has before it is cut, or a number below that."""
        return self.longest_sequence

    @abstractmethod
    def generate(self, num: int, random: np.random.Generator) -> Examples:
        """Generate ``num`` examples."""

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """This task with some of its ``split_keys`` changed."""
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def variant(self, split: str) -> Self:
        """This task with the settings of ``split``."""
        return self._variants.get(split, self)

    @property
    def fingerprint(self) -> str:
        return f"{self.kind} {self.version}"

    def has_data(self, fingerprint: str) -> bool:
        """Runs did not say it at first, when every generator was of version 1."""
        return fingerprint == self.fingerprint or (not fingerprint and self.version == 1)

    @property
    def test_splits(self) -> tuple[str, ...]:
        return tuple(self._variants)

    def context_of(self, split: str) -> int:
        return self.variant(split).longest_sequence - 1

    def training_examples(self, seed: int, epoch: int) -> Examples:
        if self.num_train is not None:
            return self._hold("train", self.num_train, seed)
        return self.generate(self.epoch_size, numpy_stream(self.data_seed, f"{self.kind}/train", seed, epoch))

    def evaluation_examples(self, split: str) -> Examples:
        check_choice("evaluation split", split, ("validation", *self.test_splits))
        return self._hold(split, self.num_validation if split == "validation" else self.num_test, None)

    @property
    def watched_splits(self) -> tuple[str, ...]:
        return tuple(split for split in self.test_splits if split != "test")

    def watched_examples(self, split: str, num: int) -> Examples:
        """The first: they are in no order."""
        whole = self.evaluation_examples(split)
        labels = None if whole.labels is None else whole.labels[:num]
        return Examples(whole.tokens[:num], whole.lengths[:num], whole.answers[:num], labels=labels)

    def specimen(self, num_tokens: int) -> Specimen:
        """The most varied test example of those short enough, or the shortest; its first answer is what is predicted."""
        examples = self.evaluation_examples("test")
        asked = np.flatnonzero(examples.answers.any(axis=1))
        short = asked[examples.lengths[asked] <= num_tokens].tolist()
        shortest = asked[examples.lengths[asked].argmin()]
        index = int(max(short, key=lambda candidate: _variety(examples, candidate), default=shortest))
        tokens = examples.tokens[index, : examples.lengths[index]].astype(np.int64)
        query = int(np.flatnonzero(examples.answers[index])[0]) - 1
        return Specimen(tokens, query, tuple(self.vocabulary[token] for token in tokens))

    def fixed_examples(self, stream: str, num: int, seed: int | None) -> Examples:
        """A set that never changes. ``seed`` is the run's, or None for evaluation."""
        counters = () if seed is None else (seed,)
        return self.variant(stream).generate(num, numpy_stream(self.data_seed, f"{self.kind}/{stream}", *counters))

    def _hold(self, stream: str, num: int, seed: int | None) -> Examples:
        if (stream, seed) not in self._held:
            examples = self.fixed_examples(stream, num, seed)
            if not examples.answers.any():
                where = f"task.splits.{stream}" if stream in self._variants else "task"
                raise UserError(
                    f"{where}: none of the {num} examples of {stream} has an answer, so that nothing could be scored; "
                    "allowed: settings that give answers, or more examples."
                )
            self._held[stream, seed] = examples
            if examples.num_cut:
                log.info(
                    "%s, %s: %d of %d sequences did not fit in %d tokens.",
                    *(self.name, stream, examples.num_cut, num, self.variant(stream).longest_sequence),
                )
        return self._held[stream, seed]

    def _resolve(self) -> dict[str, Self]:
        """The task of each test split; ``test`` is always there, and first."""
        table = check_mapping("task.splits", self.splits)
        resolved: dict[str, Self] = {}
        for split, changes in ({"test": {}} | table).items():
            where = f"task.splits.{split}"
            if split in ("train", "validation"):
                raise UserError(f"{where}: the name {split!r} is taken; choose another, such as ood_{split}.")
            resolved[split] = self.changed(check_mapping(where, changes, self.split_keys))
            resolved[split].check_settings(where)
        return resolved


def draw_distinct(random: np.random.Generator, num: int, weights: np.ndarray, size: int) -> np.ndarray:
    """(num, size): in each row so many of the places of ``weights``, drawn one after another without putting back."""
    rows = max(1, 2**22 // len(weights))  # at once, for memory's sake
    drawn = []
    for start in range(0, num, rows):
        # A race of exponential variables, whose winners are such a draw, in order.
        times = random.standard_exponential((min(rows, num - start), len(weights)), dtype=np.float32) / weights
        first = np.argpartition(times, size - 1, axis=1)[:, :size] if size < len(weights) else np.argsort(times, axis=1)
        order = np.argsort(np.take_along_axis(times, first, axis=1), axis=1)
        drawn.append(np.take_along_axis(first, order, axis=1))
    return np.concatenate(drawn)


def _variety(examples: Examples, index: int) -> float:
    """Entropy of an example's tokens, times its length: high where many different things happen."""
    counts = np.bincount(examples.tokens[index, : examples.lengths[index]])
    counts = counts[counts > 0]
    return float(-(counts * np.log(counts / counts.sum())).sum())
