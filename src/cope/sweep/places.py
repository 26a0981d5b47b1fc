"""How many runs a machine has room for: one a core, or some on each GPU.

Memory is estimated from above, since runs side by side must not take it from one another. ``cope.run.sizes`` estimates it from
below, to refuse what has no room anywhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

from omegaconf import DictConfig

from cope.building import build
from cope.errors import counted
from cope.tasks.base import Task
from cope.threads import num_cores

CORES_PER_RUN = 2  # on a GPU: one starts its kernels, one prepares batches
BASE_GIB = 1.5  # CUDA's own, the kernels, and PyTorch's reserve
FLOATS_PER_TOKEN = 40  # kept for the backward pass, for each layer and dimension: attention, feed-forward, norms, with a margin
COPIES_OF_LOGITS = 4  # with their gradient
ANOTHER_NUMBER = "(hydra.launcher.jobs= or JOBS= for another number)"


def gpu_names() -> list[str]:
    """The GPUs that may be used, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch  # here, so that --help and a typing error need not wait for it

    number = torch.cuda.device_count()
    allowed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return allowed[:number] if allowed else [str(index) for index in range(number)]


def num_places(configs: Iterable[DictConfig]) -> tuple[int, str]:
    """How many runs to do at once of those with these settings, and why."""
    cores = num_cores()
    gpus = gpu_names()
    if not gpus:
        return cores, f"{counted(cores, 'run')} at once, one a core {ANOTHER_NUMBER}"
    needed = max((memory_gib(config) for config in configs), default=BASE_GIB)
    there = smallest_gpu_gib(len(gpus))
    each = max(1, min(math.floor(there / needed), cores // len(gpus) // CORES_PER_RUN))
    room = f"it has {there:.0f} GiB, of which a run may need {needed:.0f}, and {cores // len(gpus)} cores, of which it needs"
    at_once = each * len(gpus)
    return at_once, f"{counted(at_once, 'run')} at once, {each} a GPU: {room} {CORES_PER_RUN} {ANOTHER_NUMBER}"


def smallest_gpu_gib(number: int) -> float:
    """Memory of the smallest of ``number`` GPUs."""
    import torch

    return min(torch.cuda.get_device_properties(index).total_memory for index in range(number)) / 2**30


def memory_gib(config: DictConfig) -> float:
    """Roughly what a run needs of a GPU, from above: its activations and logits in float32."""
    model, trainer = config.model, config.trainer
    task: Task = build(config.task, "task")
    tokens = trainer.batch_size / trainer.accumulate / trainer.devices / trainer.num_nodes * task.context_of("train")
    floats = tokens * (FLOATS_PER_TOKEN * model.num_layers * model.dim + COPIES_OF_LOGITS * task.vocab_size)
    return BASE_GIB + 4 * floats / 2**30
