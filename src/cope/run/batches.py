"""Batches of similar length, as a function of ``(seed, step)`` alone.

Nothing about the order has to be saved to continue a run: step 1,234 has the same batch whether the run was broken before it
or not, and each device of several takes its own share of that same batch.

A batch lists the places where a loss is due, found on the CPU: to look for them on a GPU would mean to wait for it. For a GPU,
batches are also filled up to one of a few shapes, since there each new shape costs time: a compiled model, a graph of the step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cope.errors import UserError
from cope.seeding import numpy_stream
from cope.tasks.base import IGNORE, ExampleSet, Task

BATCHES_PER_WINDOW = 32  # sorted by length together: enough to make padding small, few enough to keep the order random
TIME_MULTIPLE = 64  # tokens, on a GPU
STEPS_AHEAD = 32  # batches that wait for a GPU


@dataclass(frozen=True)
class Batch:
    """Sequences, and what is to be predicted in them."""

    inputs: Tensor  # (batch, time) int64 ids, padded on the right
    where: Tensor  # (wanted,) int64: places in the flattened inputs whose next token is to be predicted
    targets: Tensor  # (wanted,) int64: those tokens; IGNORE where only the shape is filled up
    num_targets: int  # without filling
    num_tokens: int  # that the model reads, with the padding to the longest sequence and without filling

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, few_shapes: bool = False, longest: int | None = None) -> Batch:
        """From what :meth:`ExampleSet.batch` gives.

        Args:
            few_shapes: fill up to one of a few shapes.
            longest: the most tokens to fill up to; None is any number.
        """
        num_tokens = inputs.numel()
        if few_shapes:
            time = inputs.shape[1]
            filled = _multiple(time, TIME_MULTIPLE)
            missing = (filled if longest is None else max(time, min(filled, longest))) - time
            # Causal attention does not look to the right, so what stands there changes nothing.
            inputs, targets = F.pad(inputs, (0, missing)), F.pad(targets, (0, missing), value=IGNORE)
        flat = targets.flatten()
        where = torch.from_numpy(np.flatnonzero(flat.numpy() != IGNORE))  # PyTorch would share this out among all cores
        targets = flat[where]
        num_targets = len(where)
        if few_shapes:
            # To a quarter of the power of two below: some sizes for each doubling.
            missing = _multiple(num_targets, max(64, (1 << num_targets.bit_length()) // 8)) - num_targets
            where, targets = F.pad(where, (0, missing)), F.pad(targets, (0, missing), value=IGNORE)
        return cls(inputs.contiguous(), where, targets, num_targets, num_tokens)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, time and places."""
        return (*self.inputs.shape, len(self.where))

    def to(self, device: torch.device) -> Batch:
        """On ``device``, which is not waited for."""
        if device.type == "cpu":
            return self
        inputs, where, targets = (
            tensor.pin_memory().to(device, non_blocking=True) for tensor in (self.inputs, self.where, self.targets)
        )
        return replace(self, inputs=inputs, where=where, targets=targets)

    def take(self, other: Batch) -> None:
        """Overwrite the tensors with those of ``other``, of the same shape, on the CPU; a GPU is not waited for."""
        for own, new in ((self.inputs, other.inputs), (self.where, other.where), (self.targets, other.targets)):
            own.copy_(new.pin_memory() if own.is_cuda else new, non_blocking=True)


def _multiple(number: int, step: int) -> int:
    """The smallest multiple of ``step`` from ``number`` on."""
    return -(-number // step) * step


class StepBatch(NamedTuple):
    """What one step trains on."""

    parts: list[Batch]  # the micro-batches of this device
    num_targets: int  # of all devices
    num_tokens: int  # of all devices


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


@dataclass
class TrainingBatches:
    """Gives the batch of any step.

    Args:
        batch_size: examples in the whole batch, over all devices and micro-batches.
        num_parts: micro-batches that each device's share is split into.
        rank, world_size: this device's place among those that share each batch.
        few_shapes: fill batches up, for a GPU.
        longest: the most tokens that the model's encoding is defined for; None is any number.
    """

    task: Task
    seed: int
    batch_size: int
    num_parts: int = 1
    rank: int = 0
    world_size: int = 1
    few_shapes: bool = False
    longest: int | None = None

    def __post_init__(self) -> None:
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

    def at(self, step: int) -> StepBatch:
        """What is trained on at ``step``."""
        epoch, index = divmod(step, len(self._order))  # every epoch has as many batches as the first
        self._load(epoch)
        # Each device makes all shares, so that it knows the number of targets without asking the others.
        shares = [
            [
                Batch.of(*self._examples.batch(part, loss=self.task.loss), self.few_shapes, self.longest)
                for part in np.array_split(self._order[index][rank :: self.world_size], self.num_parts)
            ]
            for rank in range(self.world_size)
        ]
        every = [part for share in shares for part in share]
        return StepBatch(shares[self.rank], sum(part.num_targets for part in every), sum(part.num_tokens for part in every))


class BatchesAhead:
    """The batches that ``make`` gives of any step, made by a thread before they are asked for.

    Args:
        num_steps: of the run, behind which there are none.
    """

    def __init__(self, make: Callable[[int], StepBatch], num_steps: int) -> None:
        self._make = make
        self._num_steps = num_steps
        self._thread = ThreadPoolExecutor(1, "batches")
        self._coming: deque[Future[StepBatch]] = deque()
        self._next = 0  # the step of the first of them

    def at(self, step: int) -> StepBatch:
        """What is trained on at ``step``, and after it most likely at those that follow."""
        if step != self._next:
            self._drop()
            self._next = step
        for coming in range(step + len(self._coming), min(step + STEPS_AHEAD, self._num_steps)):
            self._coming.append(self._thread.submit(self._make, coming))
        self._next += 1
        return self._coming.popleft().result()

    def close(self) -> None:
        """Make no more."""
        self._drop()
        self._thread.shutdown()

    def _drop(self) -> None:
        for future in self._coming:
            future.cancel()
        self._coming.clear()


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
