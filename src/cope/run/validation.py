"""What a model is scored on while it trains, and the best that was found: ``validation`` alone chooses a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_fabric import Fabric
from torch import nn

from cope.metrics import shown
from cope.run.evaluation import score, watched_metrics
from cope.tasks.base import Task


class Validated(NamedTuple):
    """What one validation found."""

    loss: float
    headline: float
    metrics: dict[str, float]  # as they stand in metrics.jsonl


class Validation:
    """Scores a model on the splits that may be looked at while it trains.

    Args:
        watched: splits that are scored beside ``validation``, and choose nothing.
        num_watched: the most examples of each.
    """

    def __init__(self, task: Task, watched: Sequence[str], num_watched: int, fabric: Fabric) -> None:
        self.task = task
        self.fabric = fabric
        self.examples = task.evaluation_examples("validation")
        self.watched = {split: task.watched_examples(split, num_watched) for split in watched}
        self.best: dict[str, float] | None = None  # its step, headline and loss
        self.worst_elsewhere: float | None = None  # the headline of the worst of the watched splits out of distribution

    def look(self, model: nn.Module, with_watched: bool) -> Validated:
        """How good ``model`` is now; of one whose loss is not finite nothing else is known."""
        found = score(model, self.examples, self.fabric)
        if not math.isfinite(found.loss):
            return Validated(found.loss, math.nan, {})
        own = self.task.metrics("validation", found)
        by_split = {"validation": shown(own) | watched_metrics(self.task, found)}
        for split, examples in self.watched.items() if with_watched else ():
            by_split[split] = watched_metrics(self.task, score(model, examples, self.fabric))
        others = [one[self.task.headline] for split, one in by_split.items() if split.startswith(("ood_", "longer_"))]
        self.worst_elsewhere = max(others, default=self.worst_elsewhere)
        metrics = {f"eval/{split}/{name}": value for split, one in by_split.items() for name, value in one.items()}
        return Validated(found.loss, float(own[self.task.headline]), metrics)

    def is_best(self, validated: Validated, step: int) -> bool:
        """Whether it is better than all before; remembered if it is."""
        # Ties in error are common near 0: the loss decides, so that the choice is not the first step that got there.
        candidate = {"headline": validated.headline, "loss": validated.loss, "step": step}
        if self.best is not None and (self.best["headline"], self.best["loss"]) <= (validated.headline, validated.loss):
            return False
        self.best = candidate
        return True
