"""Scores a model on a split: counts are summed over all batches and devices, and divided once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn

from cope.tasks.base import IGNORE, Examples
from cope.training.batches import evaluation_batches

TOKENS_PER_BATCH = 16_384


@dataclass(frozen=True)
class Score:
    """Counts of one split. A sequence is wrong if any of its answer tokens is; every token is predicted from the true past."""

    count: int  # sequences
    errors: int  # sequences with a wrong answer
    token_count: int  # answer tokens
    token_errors: int
    loss: float  # mean cross-entropy of the answer tokens, nats
    num_cut: int  # sequences shortened or left out because they did not fit the context

    @property
    def error(self) -> float:
        """Fraction of sequences that are wrong."""
        return self.errors / self.count

    @property
    def token_error(self) -> float:
        """Fraction of answer tokens that are wrong."""
        return self.token_errors / self.token_count

    def as_dict(self) -> dict[str, Any]:
        """Counts and fractions, for ``result.json``."""
        return {"error": self.error, "token_error": self.token_error, **asdict(self)}


@torch.no_grad()
def score(model: nn.Module, examples: Examples, fabric: Fabric) -> Score:
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
