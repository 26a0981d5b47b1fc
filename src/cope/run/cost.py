"""What a run will cost, before it is started: sizes and FLOPs by arithmetic, time by a few of its steps.

Nothing is written, and no corpus is read: a task on text is measured on random tokens of its context's length.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import torch
from lightning_fabric.wrappers import _FabricOptimizer

from cope.errors import check_choice
from cope.positions.base import PositionEncoding
from cope.run.batches import Batch, StepBatch, TrainingBatches
from cope.run.device import PRECISIONS, TrainerSettings, keep_freed_memory
from cope.run.optimizer import OptimizerSettings
from cope.run.sizes import TRAINED_BYTES, kept_bytes
from cope.run.step import TrainingStep
from cope.seeding import seed_torch
from cope.tasks.base import Task
from cope.tasks.synthetic import SyntheticTask
from cope.threads import num_threads

MEASURED_SECONDS = 3.0  # that steps are repeated for
LOOKED_AT = 50  # batches of a generated task, whose lengths differ
FIRST_SEQUENCES = 1  # of a micro-batch that may be too large to be tried whole
NOT_MEASURED = {"step_s": math.nan, "sequences": 0}
CHECKPOINT_BYTES = 3 * 4  # a weight and the optimiser's two averages; there are two checkpoints, of the last step and the best

# Peak TFLOP/s of dense products as their maker states them, in the order of PRECISIONS.
GPUS = {
    "v100": (15.7, 15.7, 15.7),
    "a100": (19.5, 156.0, 312.0),
    "h100": (66.9, 494.7, 989.4),
    "h200": (66.9, 494.7, 989.4),
    "l40s": (91.6, 183.0, 362.0),
    "rtx4090": (82.6, 82.6, 165.2),
}
REACHED = 0.1  # of the peak, by models as small as these: see docs/cluster.md


@dataclass(frozen=True)
class Cost:
    """Of one run.

    Args:
        tokens: read in training, padding included.
        flops: of training: forward and backward.
        memory_bytes: at least, on each device: weights, gradients, the optimiser's averages, what the backward pass needs.
        disk_bytes: of both checkpoints.
        step_s: of one step with its batch, measured here; on one device. NaN where it was not to be measured.
        steps: of training.
        sequences: of those that were measured at once; 0 where none was to be.
    """

    parameters: int
    tokens: int
    flops: float
    memory_bytes: int
    disk_bytes: int
    step_s: float
    steps: int
    sequences: int

    @property
    def here_s(self) -> float:
        """Training alone: validation and the scores of the splits come on top."""
        return self.step_s * self.steps

    def on_gpu_s(self, gpu: str, precision: str) -> float:
        """Training alone, at the share of the peak that such models reach."""
        return self.flops / (GPUS[gpu][PRECISIONS.index(precision)] * 1e12 * REACHED)


def check_dry(dry: object) -> None:
    """Raise UserError unless ``dry`` is false, true, or a GPU that is known."""
    if not isinstance(dry, bool):
        check_choice("dry", dry, ["false", "true", *GPUS])


def cost_of(
    model: Any, task: Task, seed: int, trainer: TrainerSettings, optimizer: OptimizerSettings, hidden: int, measured: bool
) -> Cost:
    """What training ``model`` will cost.

    Args:
        model: on the CPU; trained a little, so not to be used afterwards.
        hidden: units of the feed-forward, in multiples of the model's dimension.
        measured: the time, by a few steps; else all but the time.
    """
    parts = trainer.accumulate * trainer.devices * trainer.num_nodes
    shards = trainer.devices * trainer.num_nodes if trainer.strategy == "fsdp" else 1
    batch, tokens, targets, making_s = _usual_batch(task, seed, trainer, model.encoding)
    shape = model.encoding.shape
    return Cost(
        parameters=model.num_parameters(),
        tokens=round(tokens * trainer.steps),
        flops=flops_of_step(model, tokens, targets, tokens / trainer.batch_size) * trainer.steps,
        memory_bytes=TRAINED_BYTES * sum(weight.numel() for weight in model.parameters()) // shards
        + kept_bytes(shape, hidden, round(tokens / parts), trainer.precision),
        disk_bytes=2 * CHECKPOINT_BYTES * sum(weight.numel() for weight in model.parameters()),
        **(_measured(model, batch.parts, parts, trainer, optimizer, making_s) if measured else NOT_MEASURED),
        steps=trainer.steps,
    )


def flops_of_step(model: Any, tokens: float, targets: float, time: float) -> float:
    """Forward and backward (twice the forward): products of matrices, attention included; nothing else counts.

    Args:
        time: tokens of a sequence.
    """
    shape = model.encoding.shape
    matrices = sum(weight.numel() for weight in model.layers.parameters() if weight.dim() == 2)
    attention = 2 * shape.num_layers * shape.dim * time  # q.k and weights.v with half of the keys each
    if model.encoding.kernel is not None:  # each query with every vector of the table
        attention += 2 * shape.num_layers * shape.dim * getattr(model.encoding, "num_positions", 0)
    return float(3 * (tokens * (2 * matrices + attention) + 2 * targets * model.output.weight.numel()))


def _usual_batch(
    task: Task, seed: int, trainer: TrainerSettings, encoding: PositionEncoding
) -> tuple[StepBatch, float, float, float]:
    """A batch whose tokens are near the mean, the mean tokens and targets of one, and the seconds that a step waits for one.

    No step waits on a GPU, where batches are made ahead, nor for text, of which none is read here.
    """
    on_gpu = trainer.accelerator == "cuda"
    parts = trainer.accumulate * trainer.devices * trainer.num_nodes
    if isinstance(task, SyntheticTask):
        batches = TrainingBatches(task, seed, trainer.batch_size, parts, few_shapes=on_gpu, longest=encoding.max_tokens)
        began = time.perf_counter()
        drawn = [batches.at(step) for step in range(min(LOOKED_AT, trainer.steps))]
        making_s = 0.0 if on_gpu else (time.perf_counter() - began) / len(drawn)
        tokens, targets = fmean(batch.num_tokens for batch in drawn), fmean(batch.num_targets for batch in drawn)
        return min(drawn, key=lambda batch: abs(batch.num_tokens - tokens)), tokens, targets, making_s
    length = task.context_of("train")
    text = torch.randint(task.vocab_size, (trainer.batch_size // parts, length + 1), generator=torch.Generator().manual_seed(0))
    part = Batch.of(text[:, :-1], text[:, 1:], on_gpu, encoding.max_tokens)
    batch = StepBatch([part] * parts, part.num_targets * parts, part.num_tokens * parts)
    return batch, batch.num_tokens, batch.num_targets, 0.0


def _measured(
    model: Any, parts: list[Batch], num_parts: int, trainer: TrainerSettings, optimizer: OptimizerSettings, making_s: float
) -> dict[str, Any]:
    """The time of a step: of more and more sequences of a micro-batch, until that takes long enough or there are no more."""
    keep_freed_memory()
    torch.set_num_threads(num_threads(trainer.threads, 1))
    fabric = trainer.alone().fabric()
    wrapped = fabric.setup_module(model)
    adam = cast(_FabricOptimizer, fabric.setup_optimizers(optimizer.build(model.parameters(), fabric.device, False)))
    step = TrainingStep(wrapped, adam, fabric, optimizer.clip_norm, None)
    whole = parts[0]
    rows, sequences = whole.inputs.shape[0], min(FIRST_SEQUENCES, whole.inputs.shape[0])
    while True:
        part = _first_sequences(whole, sequences)
        batch = StepBatch([part], part.num_targets, part.num_tokens)
        _seconds(step, batch, optimizer.lr)  # kernels are compiled and loaded, memory is taken: seconds that are no step's
        times = [_seconds(step, batch, optimizer.lr)]
        while len(times) < 10 and sum(times) < MEASURED_SECONDS / 3:
            times.append(_seconds(step, batch, optimizer.lr))
        seconds = min(times)  # others may be using the machine
        if sequences == rows or seconds > MEASURED_SECONDS / 3:
            return {"step_s": making_s + seconds * rows / sequences * num_parts, "sequences": sequences}
        sequences = min(rows, sequences * 4)


def _seconds(step: TrainingStep, batch: StepBatch, learning_rate: float) -> float:
    began = time.perf_counter()
    seed_torch(0, "dropout", 0, 0)  # as before each step of a run
    step(batch, learning_rate)
    step.look()  # a GPU is waited for
    return time.perf_counter() - began


def _first_sequences(batch: Batch, number: int) -> Batch:
    if number == batch.inputs.shape[0]:
        return batch
    inputs = batch.inputs[:number]
    there = batch.where < inputs.numel()
    where, targets = batch.where[there], batch.targets[there]
    return Batch(inputs.contiguous(), where, targets, len(where), inputs.numel())
