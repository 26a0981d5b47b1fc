"""The Transformer that a configuration describes, with its encoding."""

from __future__ import annotations

from collections.abc import Collection

from omegaconf import DictConfig, OmegaConf

from cope.building import arguments, build
from cope.model.transformer import Transformer, check_shape
from cope.positions.base import ModelShape, PositionEncoding
from cope.seeding import seed_torch
from cope.tasks.base import Task

SHAPE_KEYS = ["dim", "num_layers", "num_heads"]  # of ``model``; the others are the Transformer's own


def model_shape(config: DictConfig, task: Task) -> ModelShape:
    """The shape that ``config.model`` asks for, of a model that reads what ``task`` has.

    Raises:
        UserError: a shape that no Transformer can have.
    """
    asked = arguments(_part(config, SHAPE_KEYS), ModelShape, "model", ("context", "longest"))
    check_shape(**asked)
    return ModelShape(**asked, context=task.context_of("train"), longest=task.longest_context)


def build_model(config: DictConfig, task: Task, shape: ModelShape | None = None) -> Transformer:
    """The Transformer of ``config`` with its encoding, initialised from ``config.seed``; of another ``shape`` if given.

    Encoding and Transformer draw from streams of their own, so that every encoding meets the same initial Transformer.
    """
    shape = model_shape(config, task) if shape is None else shape
    seed_torch(config.seed, "initialisation of the encoding")
    encoding: PositionEncoding = build(config.pe, "pe", shape=shape)
    seed_torch(config.seed, "initialisation of the Transformer")
    rest = _part(config, [key for key in config.model if key not in SHAPE_KEYS])
    return Transformer(task.vocab_size, encoding, **arguments(rest, Transformer, "model", ("vocab_size", "encoding")))


def _part(config: DictConfig, keys: Collection[object]) -> DictConfig:
    """Some keys of ``config.model``, resolved: apart from ``config`` nothing is found that they refer to."""
    model = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(model, dict)
    return OmegaConf.create({key: value for key, value in model.items() if key in keys})
