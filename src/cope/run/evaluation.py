"""Scores a model on a split, at the end or while it trains: counts are summed over all batches and devices, and divided once.

What is scored while a model trains chooses a checkpoint by ``validation`` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn

from cope.metrics import METRICS, is_out_of_distribution, shown
from cope.run.batches import Batch, evaluation_batches
from cope.run.distributed import is_sharded
from cope.tasks.base import IGNORE, ExampleSet, Task
from cope.tasks.scores import Score

TOKENS_PER_BATCH = 16_384


def score_split(model: nn.Module, task: Task, split: str, fabric: Fabric) -> dict[str, Any]:
    """The metrics and counts of one split of ``task``, as they stand in ``result.json``."""
    found = score(model, task.evaluation_examples(split), fabric).as_stored()
    return task.metrics(split, found) | asdict(found)


def watched_metrics(task: Task, found: Score) -> dict[str, float]:
    """What is recorded of every split that is scored while a model trains."""
    if METRICS[task.headline].is_percentage:
        errors = {"error": found.error, "token_error": found.token_error}
        accuracy = 1.0 - errors[task.headline]
    else:  # windows of text are right token by token or not at all
        errors, accuracy = {}, 1.0 - found.token_error
    return {**errors, "accuracy": accuracy, "perplexity": found.perplexity, "loss": found.loss}


@torch.no_grad()
def score(model: nn.Module, examples: ExampleSet, fabric: Fabric) -> Score:
    """Score ``model`` on ``examples``, shared among the devices of ``fabric``. Draws no random numbers."""
    was_training = model.training
    model.eval()
    device = fabric.device
    longest = int(examples.lengths.max()) - 1  # the last token is only predicted
    counted = torch.zeros(2, dtype=torch.float64)  # what the CPU knows: sequences and answer tokens
    found = torch.zeros(3, dtype=torch.float64, device=device)  # sequences and tokens that are wrong, and the loss
    # Not compiled: here each batch has another number of sequences, and would be compiled for it.
    own = evaluation_batches(examples, TOKENS_PER_BATCH, fabric.global_rank, fabric.world_size)
    most = evaluation_batches(examples, TOKENS_PER_BATCH, 0, fabric.world_size)
    with torch.compiler.set_stance("force_eager"):
        if is_sharded(model) and len(own) < len(most):  # no device can have its turn without the others
            model(torch.zeros(1, 1, dtype=torch.int64, device=device))
        for indices in own:
            batch = Batch.of(*examples.batch(indices), few_shapes=device.type == "cuda", longest=longest)
            counted += torch.tensor([len(indices), batch.num_targets])
            batch = batch.to(device)
            logits = model(batch.inputs, batch.where).float()
            loss = F.cross_entropy(logits, batch.targets, reduction="sum")
            right = (logits.argmax(-1) == batch.targets) & logits.isfinite().all(-1)  # of what is no number nothing is right
            wrong = ~right & (batch.targets != IGNORE)
            sequence = batch.where // batch.inputs.shape[1]
            num_wrong = wrong.new_zeros(len(indices), dtype=torch.int64).index_add_(0, sequence, wrong.long())
            found += torch.stack([(num_wrong > 0).sum().double(), num_wrong.sum().double(), loss.double()])
    model.train(was_training)
    everything = torch.cat([counted.to(device), found])
    if fabric.world_size > 1:
        summed = fabric.all_reduce(everything, reduce_op="sum")
        assert isinstance(summed, torch.Tensor)
        everything = summed
    count, token_count, errors, token_errors, loss_sum = everything.tolist()  # only here a GPU is waited for
    return Score(int(count), int(errors), int(token_count), int(token_errors), loss_sum / int(token_count), examples.num_cut)


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
            by_split[split] = watched_metrics(self.task, score(model, examples, self.fabric).as_stored())
        others = [one[self.task.headline] for split, one in by_split.items() if is_out_of_distribution(split)]
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
