"""Batches of similar length, as a function of ``(seed, step)`` alone.

Nothing about the order has to be saved to continue a run: step 1,234 has the same batch whether the run was broken before it
or not, and each device of several takes its own share of that same batch.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from cope.errors import UserError
from cope.seeding import numpy_stream
from cope.tasks.base import ExampleSet, Task

BATCHES_PER_WINDOW = 32  # sorted by length together: enough to make padding small, few enough to keep the order random


def epoch_order(lengths: np.ndarray, batch_size: int, random: np.random.Generator) -> list[np.ndarray]:
    """Indices of each batch of an epoch: shuffled, sorted by length within windows, and the batches shuffled again.

    The examples that do not fill a last batch are left out; another epoch leaves out others.
    """
    order = random.permutation(len(lengths))
    order = order[: len(order) // batch_size * batch_size]
    window = BATCHES_PER_WINDOW * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += np.split(part, len(part) // batch_size)
    return [batches[index] for index in random.permutation(len(batches))]


class TrainingBatches:
    """Gives the batch of any step.

    Args:
        batch_size: examples in the whole batch, over all devices and micro-batches.
        rank, world_size: this device's place among those that share each batch.
    """

    def __init__(self, task: Task, seed: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.task = task
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self._epoch = -1
        self._load(0)

    def _load(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._examples = self.task.training_examples(self.seed, epoch)
        if len(self._examples) < self.batch_size:
            raise UserError(
                f"trainer.batch_size={self.batch_size} is more than the {len(self._examples)} training examples; "
                "allowed: at most that many."
            )
        random = numpy_stream(self.seed, "order", epoch)
        self._order = epoch_order(self._examples.lengths, self.batch_size, random)
        self._epoch = epoch

    def at(self, step: int, num_parts: int = 1) -> list[tuple[Tensor, Tensor]]:
        """The ``num_parts`` micro-batches (inputs, targets) of this device at ``step``, each (batch, time)."""
        epoch, index = divmod(step, len(self._order))  # every epoch has as many batches as the first
        self._load(epoch)
        mine = self._order[index][self.rank :: self.world_size]
        return [self._examples.batch(part, loss=self.task.loss) for part in np.array_split(mine, num_parts)]


def evaluation_batches(examples: ExampleSet, tokens_per_batch: int, rank: int = 0, world_size: int = 1) -> list[np.ndarray]:
    """Indices of each batch: every example once, sorted by length, each device every ``world_size``-th batch."""
    order = np.argsort(examples.lengths, kind="stable")
    batches: list[np.ndarray] = []
    while len(order):
        # The longest of a batch comes last: take as many as fit when padded to it.
        size = max(1, int(np.searchsorted(np.arange(1, len(order) + 1) * examples.lengths[order], tokens_per_batch, "right")))
        batches.append(order[:size])
        order = order[size:]
    return batches[rank::world_size]
