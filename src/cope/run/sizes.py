"""What a run needs of memory at the very least, told before any is asked for.

The least, since what is refused for it must be what nothing has room for. How many runs a GPU takes asks for the most that one
may need, which is another estimate: ``cope.sweep.places``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from omegaconf import DictConfig

from cope.errors import UserError, counted
from cope.memory import machine_bytes
from cope.model.transformer import Transformer
from cope.positions.base import ModelShape
from cope.run.device import TrainerSettings
from cope.run.model_building import build_model
from cope.tasks.base import Task
from cope.tasks.synthetic import SyntheticTask

TOKEN_BYTES = 2  # of generated data: a byte for the token, and one for whether it is an answer
PROCESS_BYTES = 100 * 2**20  # of Python with PyTorch
LAYER_BYTES = 40_000  # of a layer's modules, tensors and the optimiser's, whatever its size
TRAINED_BYTES = 4 * 4  # a weight, its gradient and the optimiser's two averages, in float32
KEPT_FLOATS = 8  # for the backward pass, for each token, layer and dimension: norms, queries, keys, values; beside hidden units


def check_data_fits(task: Task, keys: Sequence[str] = ("num_train", "num_validation", "num_test")) -> None:
    """Raise UserError if a set of generated examples, of those that ``keys`` number, is larger than the machine's memory."""
    if not isinstance(task, SyntheticTask):
        return
    splits = {"num_train": ["train"], "num_validation": ["validation"], "num_test": list(task.test_splits)}
    for key in keys:
        names = splits[key]
        num = getattr(task, key) or task.epoch_size
        lengths = [task.variant(name).longest_drawn for name in names]
        _check(
            f"task.{key}={getattr(task, key)} examples of up to {max(lengths):,} tokens, in {counted(len(names), 'split')}",
            num * TOKEN_BYTES * sum(lengths),
        )


def num_weights(config: DictConfig, task: Task, shape: ModelShape) -> int | None:
    """Numbers in the weights of the model that ``config`` describes, of ``shape``, told from models without memory.

    None for an encoding of the user's own that looks at values while it is built.

    Raises:
        UserError: whatever building it raises, or more than can be counted.
    """
    layers = min(shape.num_layers, 3)  # all layers but the first two are alike
    try:
        with torch.device("meta"):
            weights = _counted(build_model(config, task, replace(shape, num_layers=layers)))
            if shape.num_layers == layers:
                return weights
            each = weights - _counted(build_model(config, task, replace(shape, num_layers=layers - 1)))
    except (RuntimeError, TypeError, OverflowError) as error:
        if "verflow" not in str(error):
            return None
        raise UserError(f"{_sizes(shape)}: the model has more weights than can be counted.") from error
    return weights + each * (shape.num_layers - layers)


def check_model_fits(weights: int, shape: ModelShape, hidden: int, task: Task, trainer: TrainerSettings) -> None:
    """Raise UserError if the weights and what training keeps beside them are larger than memory, a GPU's where it is used.

    Args:
        hidden: units of the feed-forward, in multiples of the model's dimension.
    """
    parts = trainer.devices * trainer.num_nodes * trainer.accumulate
    longest = min(shape.context, task.longest_drawn) if isinstance(task, SyntheticTask) else shape.context
    tokens = max(1, trainer.batch_size // parts) * longest
    each_device = TRAINED_BYTES * weights + kept_bytes(shape, hidden, tokens, trainer.precision)
    what = f"{_sizes(shape)}, {weights:,} weights in all, trained on {tokens:,} tokens at once"
    if trainer.accelerator == "cuda":
        _check(what, each_device, torch.cuda.get_device_properties(0).total_memory, "the GPU")
        each_device = 4 * weights
    each_process = each_device + PROCESS_BYTES + LAYER_BYTES * shape.num_layers
    _check(f"{what}, by trainer.devices={trainer.devices}", trainer.devices * each_process)


def kept_bytes(shape: ModelShape, hidden: int, tokens: int, precision: str) -> int:
    """What is kept for the backward pass of so many tokens, at least."""
    return (KEPT_FLOATS + hidden) * tokens * shape.num_layers * shape.dim * (2 if precision == "bf16-mixed" else 4)


def _sizes(shape: ModelShape) -> str:
    return f"model.dim={shape.dim}, model.num_layers={shape.num_layers}"


def _counted(model: Transformer) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _check(what: str, needed: int, there: int | None = None, where: str = "this machine") -> None:
    there = machine_bytes() if there is None else there
    if there is not None and needed > there:
        raise UserError(
            f"{what}: at least {needed / 2**30:,.1f} GiB of memory are needed; {where} has {there / 2**30:,.1f} GiB. "
            "Take smaller sizes, or a larger machine."
        )
