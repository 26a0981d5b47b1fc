"""What the generated tasks share: settings and their checks, test splits that change some settings, streams, and the cache.

A subclass names its settings, checks them and generates examples from them; the rest is here. A test split is the training
distribution with some settings changed, so ``splits: {ood_longer: {pass_weight: 100}}`` is a complete description of one.

Random streams: an evaluation split depends on ``data_seed`` and its name alone, so every run is scored on the same examples.
Training examples depend also on the run's seed and, unless the training set is fixed, on the epoch. Fixed sets are kept on
disk (``cache.py``) and in memory; endless ones are generated afresh each epoch and never stored.

Picture: :meth:`Examples.batch` turns ``w 1 i 0 r 1`` (the flip-flop task) into inputs over labels, ``.`` where no loss is due

    inputs   w  1  i  0  r
    labels   .  .  .  .  1
"""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cope.errors import UserError, check_at_least, check_between, check_choice, nearest
from cope.seeding import numpy_stream
from cope.tasks.base import Examples, Specimen, Task
from cope.tasks.cache import load_or_generate

log = logging.getLogger(__name__)

Settings = dict[str, Any]


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
    if value is None:  # an empty entry in YAML, as in "test:"
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{key}={value} is not a table of names and values, such as {{name: value}}.")
    table = {str(name): entry for name, entry in value.items()}
    for name in table:
        if allowed is not None and name not in allowed:
            raise UserError(f"{key}.{name} is not a key; allowed: {', '.join(allowed)}.{nearest(name, allowed)}")
    return table


def smallest_integer(largest: int) -> np.dtype[Any]:
    """The smallest signed integer type that holds 0 to ``largest``; signed, so that subtracting never wraps around."""
    return np.min_scalar_type(-largest - 1)


class SyntheticTask(Task):
    """A task whose examples come from a generator."""

    kind: ClassVar[str]  # prefix of its random streams: unlike ``name``, not the user's to change
    version: ClassVar[int]  # of the generator: raise it when the same settings give other examples, or stale files are used
    split_keys: ClassVar[tuple[str, ...]]  # the settings a test split may change
    epoch_size: ClassVar[int]  # examples in an epoch of an endless training set

    def __init__(
        self,
        *,
        name: str,
        settings: Settings,
        splits: Mapping[str, Mapping[str, Any]] | None,
        num_train: int | None,
        num_validation: int,
        num_test: int,
        loss: str,
        data_seed: int,
        data_dir: str | Path,
    ) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"task.name={name} cannot name a folder; allowed: letters, digits, '_', '-' and '.'.")
        if num_train is not None:
            check_whole_number("task.num_train", num_train, 1)
        check_whole_number("task.num_validation", num_validation, 1)
        check_whole_number("task.num_test", num_test, 1)
        check_choice("task.loss", loss, ("answers", "everywhere"))
        check_whole_number("task.data_seed", data_seed, 0)
        if not isinstance(data_dir, (str, Path)) or not str(data_dir):
            raise UserError(f"data_dir={data_dir} is not a folder's name.")
        self.check_settings(settings, "task")
        self.name, self.loss = name, loss
        self.num_train, self.num_validation, self.num_test = num_train, num_validation, num_test
        self.data_seed, self.data_dir = data_seed, data_dir
        self.settings = settings
        self.split_settings = self._resolve(splits)
        self.context = self.length_limit(settings)
        self._held: dict[tuple[str, int | None], Examples] = {}  # fixed sets already loaded, by (stream, seed)

    @abstractmethod
    def check_settings(self, settings: Settings, where: str) -> None:
        """Raise UserError unless every setting is sound; ``where`` is the key they were typed under, as ``task``."""

    @abstractmethod
    def length_limit(self, settings: Settings) -> int:
        """The most tokens a sequence has under these settings."""

    @abstractmethod
    def generate(self, settings: Settings, num: int, random: np.random.Generator) -> Examples:
        """Generate ``num`` examples."""

    @property
    def test_splits(self) -> tuple[str, ...]:
        return tuple(self.split_settings)

    def longest_of(self, split: str) -> int:
        return self.length_limit(self.settings if split == "validation" else self.split_settings[split])

    def training_examples(self, seed: int, epoch: int) -> Examples:
        if self.num_train is not None:
            return self._hold("train", self.settings, self.num_train, seed)
        return self.generate(self.settings, self.epoch_size, numpy_stream(self.data_seed, f"{self.kind}/train", seed, epoch))

    def evaluation_examples(self, split: str) -> Examples:
        if split == "validation":
            return self._hold(split, self.settings, self.num_validation, None)
        check_choice("evaluation split", split, ("validation", *self.test_splits))
        return self._hold(split, self.split_settings[split], self.num_test, None)

    def specimen(self, num_tokens: int) -> Specimen:
        """The most varied test example of those short enough, or the shortest; its first answer is what is predicted."""
        examples = self.evaluation_examples("test")
        short = np.flatnonzero(examples.lengths <= num_tokens).tolist()
        index = int(max(short, key=lambda candidate: _variety(examples, candidate), default=examples.lengths.argmin()))
        tokens = examples.tokens[index, : examples.lengths[index]].astype(np.int64)
        query = int(np.flatnonzero(examples.answers[index])[0]) - 1
        return Specimen(tokens, query, tuple(self.vocabulary[token] for token in tokens))

    def fixed_examples(self, stream: str, settings: Settings, num: int, seed: int | None) -> Examples:
        """A set that never changes, from disk if it is there. ``seed`` is the run's, or None for evaluation."""
        key = {
            "generator": self.kind,
            "version": self.version,
            "settings": settings,
            "num": num,
            "data_seed": self.data_seed,
            "stream": stream,
            "seed": seed,
        }
        counters = () if seed is None else (seed,)

        def make() -> Examples:
            return self.generate(settings, num, numpy_stream(self.data_seed, f"{self.kind}/{stream}", *counters))

        return load_or_generate(self.data_dir, self.name, key, make)

    def _hold(self, stream: str, settings: Settings, num: int, seed: int | None) -> Examples:
        if (stream, seed) not in self._held:
            examples = self.fixed_examples(stream, settings, num, seed)
            self._held[stream, seed] = examples
            if examples.num_cut:
                log.info(
                    "%s, %s: %d of %d sequences did not fit the context of %d tokens.",
                    *(self.name, stream, examples.num_cut, num, self.length_limit(settings)),
                )
        return self._held[stream, seed]

    def _resolve(self, splits: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Settings]:
        """Each split's full settings; ``test`` is always there, and first."""
        resolved: dict[str, Settings] = {}
        table = check_mapping("task.splits", splits)
        for split, changes in ({"test": table.get("test")} | table).items():
            where = f"task.splits.{split}"
            if split in ("train", "validation"):
                raise UserError(f"{where}: the name {split!r} is taken; choose another, such as ood_{split}.")
            resolved[split] = self.settings | check_mapping(where, changes, self.split_keys)
            self.check_settings(resolved[split], where)
        return resolved


def _variety(examples: Examples, index: int) -> float:
    """Entropy of an example's tokens, times its length: high where many different things happen."""
    counts = np.bincount(examples.tokens[index, : examples.lengths[index]])
    counts = counts[counts > 0]
    return float(-(counts * np.log(counts / counts.sum())).sum())
