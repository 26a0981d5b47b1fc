"""Scores a model on a split: counts are summed over all batches and devices, and divided once."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn

from cope.run.batches import evaluation_batches
from cope.tasks.base import IGNORE, ExampleSet, Task
from cope.tasks.scores import Score

TOKENS_PER_BATCH = 16_384


def score_split(model: nn.Module, task: Task, split: str, fabric: Fabric) -> dict[str, Any]:
    """The metrics and counts of one split of ``task``, as they stand in ``result.json``."""
    found = score(model, task.evaluation_examples(split), fabric)
    return task.metrics(split, found) | asdict(found)


@torch.no_grad()
def score(model: nn.Module, examples: ExampleSet, fabric: Fabric) -> Score:
    """Score ``model`` on ``examples``, shared among the devices of ``fabric``. Draws no random numbers."""
    was_training = model.training
    model.eval()
    counts = torch.zeros(4, dtype=torch.float64)
    loss_sum = torch.zeros((), dtype=torch.float64)
    for indices in evaluation_batches(examples, TOKENS_PER_BATCH, fabric.global_rank, fabric.world_size):
        inputs, targets = (tensor.to(fabric.device) for tensor in examples.batch(indices))
        wanted = targets != IGNORE
        logits = model(inputs, wanted).float()
        loss_sum += F.cross_entropy(logits, targets[wanted], reduction="sum").double().cpu()
        wrong = torch.zeros_like(wanted)
        wrong[wanted] = logits.argmax(-1) != targets[wanted]
        counts += torch.tensor(
            [len(indices), int(wrong.any(-1).sum()), int(wanted.sum()), int(wrong.sum())], dtype=torch.float64
        )
    model.train(was_training)
    if fabric.world_size > 1:
        summed = fabric.all_reduce(torch.cat([counts, loss_sum[None]]).to(fabric.device), reduce_op="sum")
        assert isinstance(summed, torch.Tensor)
        counts, loss_sum = summed[:4].cpu(), summed[4].cpu()
    count, errors, token_count, token_errors = (int(value) for value in counts)
    return Score(count, errors, token_count, token_errors, float(loss_sum) / token_count, examples.num_cut)
