"""The synthetic tasks, from their own configuration and small, and what tests compare their examples by."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from conftest import CONFIGS
from omegaconf import DictConfig, OmegaConf

from cope.building import build
from cope.tasks.a5 import AlternatingGroup
from cope.tasks.base import Examples
from cope.tasks.counting import Counting
from cope.tasks.flip_flop import FlipFlop
from cope.tasks.grid_navigation import GridNavigation
from cope.tasks.indirect_indexing import IndirectIndexing
from cope.tasks.length_generalisation import LengthGeneralisation
from cope.tasks.mqar import MultiQueryRecall
from cope.tasks.selective_copy import SelectiveCopy
from cope.tasks.synthetic import SyntheticTask

SMALL: dict[type[SyntheticTask], dict[str, Any]] = {
    Counting: {"num_train": 50, "num_validation": 50, "num_test": 50, "max_operations": 30, "context": 128, "splits": {}},
    SelectiveCopy: {"num_train": 50, "num_validation": 50, "num_test": 50, "num_copied": 8, "num_blanks": 8, "splits": {}},
    FlipFlop: {"num_train": 50, "num_validation": 50, "num_test": 50, "num_pairs": 10},
    MultiQueryRecall: {"num_train": 50, "num_validation": 50, "num_test": 50, "num_words": 200, "num_pairs": 5, "splits": {}},
    IndirectIndexing: {"num_train": 50, "num_validation": 50, "num_test": 50},
    AlternatingGroup: {"num_train": 50, "num_validation": 50, "num_test": 50},
    LengthGeneralisation: {"num_train": 50, "num_validation": 50, "num_test": 50},
    GridNavigation: {"num_train": 50, "num_validation": 50, "num_test": 50, "num_steps": 30, "grid": 9},
}
TASKS = list(SMALL)
Made = TypeVar("Made", bound=SyntheticTask)


def configured(task: type[Made], **changes: Any) -> Made:
    """``task`` as its file in configs/task has it, at the paper's size, with ``changes``."""
    node = OmegaConf.load(CONFIGS / "task" / f"{task.kind}.yaml")
    assert isinstance(node, DictConfig)
    for key, value in changes.items():
        node[key] = value
    made = build(node, "task")
    assert isinstance(made, task)
    return made


def small(task: type[Made], **changes: Any) -> Made:
    return configured(task, **(SMALL[task] | changes))


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
