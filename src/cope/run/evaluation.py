"""Scores a model on a split: counts are summed over all batches and devices, and divided once."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn

from cope.metrics import METRICS
from cope.run.batches import Batch, evaluation_batches
from cope.run.distributed import is_sharded
from cope.tasks.base import IGNORE, ExampleSet, Task
from cope.tasks.scores import Score

TOKENS_PER_BATCH = 16_384


def score_split(model: nn.Module, task: Task, split: str, fabric: Fabric) -> dict[str, Any]:
    """The metrics and counts of one split of ``task``, as they stand in ``result.json``."""
    found = score(model, task.evaluation_examples(split), fabric)
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
            wrong = (logits.argmax(-1) != batch.targets) & (batch.targets != IGNORE)
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
