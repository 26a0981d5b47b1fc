"""Small instances of the synthetic tasks, and what tests compare their examples by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cope.tasks.base import Examples
from cope.tasks.counting import Counting
from cope.tasks.flip_flop import FlipFlop
from cope.tasks.selective_copy import SelectiveCopy
from cope.tasks.synthetic import SyntheticTask

SMALL: dict[type[SyntheticTask], dict[str, Any]] = {
    Counting: {"num_train": 50, "num_validation": 50, "num_test": 50, "max_operations": 30},
    SelectiveCopy: {"num_train": 50, "num_validation": 50, "num_test": 50, "num_copied": 8, "num_blanks": 8, "splits": {}},
    FlipFlop: {"num_train": 50, "num_validation": 50, "num_test": 50, "num_pairs": 10},
}
TASKS = list(SMALL)


def small(task: type[SyntheticTask], folder: Path, **changes: Any) -> SyntheticTask:
    return task(**(SMALL[task] | {"data_dir": str(folder)} | changes))


def words(task: SyntheticTask, examples: Examples) -> list[list[str]]:
    vocabulary = task.vocabulary
    return [
        [vocabulary[token] for token in tokens[:length]]
        for tokens, length in zip(examples.tokens, examples.lengths, strict=True)
    ]


def same(first: Examples, second: Examples) -> bool:
    return all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in ("tokens", "lengths", "answers", "num_cut")
    )
