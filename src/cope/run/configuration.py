"""A composed Hydra configuration, checked, and the name of the run it defines."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cope.building import as_declared, built_as_declared
from cope.errors import UserError, nearest
from cope.files import digest_of, user_path
from cope.run.folder import RunFolder

FROM_RECIPE = ("model.", "trainer.", "recipe.")  # groups that every recipe completes
GROUPS = ("pe", "task", "model", "optimizer", "trainer", "logger", "scale", "recipe")
TABLES = ("pe", "task", "model", "optimizer", "trainer", "logger")  # those that a run cannot do without
TOP_LEVEL_KEYS = (*GROUPS, "corpus", "seed", "force", "dry", "output_dir", "data_dir")
ALLOWED = {int: "int", bool: "true, false", str: "text, and not empty"}
# Keys that say where and how a run is watched, not what it computes: they do not enter the run's identity.
NOT_PART_OF_THE_RUN = (
    *("output_dir", "data_dir", "force", "dry", "logger", "seed", "recipe", "task.data_dir"),
    *("trainer.threads", "trainer.cuda_graphs", "trainer.eval_splits", "trainer.eval_examples", "trainer.eval_splits_every"),
)
# Settings that came later: while they are off they leave the name of a run as it was before there were any.
OFF = {"trainer.patience": None, "pe.gate_bias": None, "pe.init_std": None}
# A batch is what the settings say, over however many devices it is shared out; so a run may go on on more or fewer of them.
SHARED_OUT = {"devices": 1, "num_nodes": 1, "strategy": "auto"}


class Problems:
    """Collects what is wrong with a configuration, to be said once and all together."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Turn a UserError inside the block into an entry."""
        try:
            yield
        except UserError as error:
            self.messages.append(str(error))

    def raise_if_any(self) -> None:
        """Raise one UserError with every entry."""
        if self.messages:
            raise UserError("\n".join(self.messages))


def checked(config: DictConfig) -> DictConfig:
    """``config``, in which every key that must be set is."""
    if absent := [key for key in (*TABLES, "seed", "force", "output_dir", "data_dir") if key not in config]:
        raise UserError(f"{', '.join(absent)} must be set: a run cannot do without.")
    for group in TABLES:
        if not isinstance(config.get(group), DictConfig):
            raise UserError(
                f"{group}={config.get(group)} is not one setting; allowed: {group}.key=..., see python train.py --help."
            )
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        from_recipe = all(key.startswith(FROM_RECIPE) for key in missing)
        why = f": there is no recipe for it at scale={config.get('scale')}" if from_recipe else ""
        raise UserError(f"{', '.join(missing)} must be set{why}.")
    return config


def check_top_level(config: DictConfig) -> None:
    """Raise UserError unless the keys outside every group have the types they need, and are all there are."""
    for key, kind in (("seed", int), ("force", bool), ("output_dir", str), ("data_dir", str)):
        if type(config[key]) is not kind or config[key] == "":
            raise UserError(f"{key}={config[key]} has the wrong type; allowed: {ALLOWED[kind]}.")
    for key in ("output_dir", "data_dir"):
        user_path(key, config[key])
    for found in map(str, config):
        if found not in TOP_LEVEL_KEYS:
            listed = ", ".join(TOP_LEVEL_KEYS)
            raise UserError(f"{found} is not a setting; allowed: {listed}.{nearest(found, TOP_LEVEL_KEYS)}")
    if "corpus" in config and "corpus" not in config.task:
        raise UserError(f"corpus={config.corpus.get('name')} has no effect: task={config.task.name} reads no text.")
    if not re.fullmatch(r"\w+", str(config.pe.get("name"))) or config.pe.get("name") is None:
        raise UserError(f"pe.name={config.pe.get('name')} cannot name a folder; allowed: letters, digits and '_'.")


def resolved(config: DictConfig) -> dict[str, Any]:
    """``config`` as plain values, every interpolation resolved."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def definition(config: DictConfig) -> dict[str, Any]:
    """The resolved settings that determine a run's numbers, its seed aside, as the classes that take them have them."""
    return _part_of_the_run(_as_declared(resolved(config)))


def _as_declared(settings: dict[str, Any]) -> dict[str, Any]:
    """``settings`` with the values of each group converted: however a number was typed, it is the same run."""
    # Imported here, so that a message about a name need not wait for PyTorch.
    from cope.model.transformer import Transformer
    from cope.positions.base import ModelShape
    from cope.run.device import TrainerSettings
    from cope.run.optimizer import OptimizerSettings

    conversions: dict[str, Callable[[Any], Any]] = {
        "pe": lambda values: built_as_declared(values, ("shape",)),
        "task": _task_as_declared,
        "corpus": built_as_declared,
        "model": lambda values: as_declared(
            as_declared(values, ModelShape, ("context", "longest")), Transformer, ("vocab_size", "encoding")
        ),
        "optimizer": lambda values: as_declared(values, OptimizerSettings),
        "trainer": lambda values: as_declared(values, TrainerSettings),
    }
    convert = {key: conversions[key] for key, values in settings.items() if key in conversions and isinstance(values, dict)}
    return settings | {key: conversion(settings[key]) for key, conversion in convert.items()}


def _task_as_declared(values: dict[str, Any]) -> Any:
    """As :func:`built_as_declared`; the split ``test`` is there whether it is written or not."""
    declared = built_as_declared(values)
    return declared | {"splits": {"test": {}} | declared["splits"]} if isinstance(declared.get("splits"), dict) else declared


def _part_of_the_run(settings: dict[str, Any]) -> dict[str, Any]:
    settings = copy.deepcopy(settings)
    for path in (*NOT_PART_OF_THE_RUN, *OFF):
        *parents, last = path.split(".")
        node = settings
        for parent in parents:
            node = node.get(parent, {})
        if path not in OFF or node.get(last) == OFF[path]:
            node.pop(last, None)
    trainer = settings.get("trainer")
    if not isinstance(trainer, dict):  # of a file that was cut short
        return settings
    return settings | {"trainer": trainer | {key: value for key, value in SHARED_OUT.items() if key in trainer}}


def _hash(settings: dict[str, Any]) -> str:
    """Eight hexadecimal digits that stand for ``settings``."""
    return digest_of(settings, 8)


def run_folder(config: DictConfig, seed: int | None = None) -> RunFolder:
    """Where the run of ``config`` is, with ``seed`` instead of its own if given."""
    return folder_of(config.output_dir, definition(config), config.seed if seed is None else seed)


def folder_of(output_dir: str, defined: dict[str, Any], seed: int) -> RunFolder:
    """Where the run with ``seed`` of what :func:`definition` says is."""
    folder = RunFolder.of(output_dir, defined["task"]["name"], defined["pe"]["name"], _hash(defined), seed)
    if not folder.config.exists():
        # Earlier versions named a folder for the settings as they were typed: model.dropout=0 for another than 0.0.
        for path in sorted(folder.path.parents[1].glob(f"*/{folder.path.name}/config.yaml")):
            if _defined_by(path, path.stat().st_mtime_ns) == defined:
                return RunFolder(path.parent)
    return folder


@cache
def _defined_by(path: Path, modified_ns: int) -> dict[str, Any] | None:
    """The definition in a run's config.yaml; None if it is not the one that its folder is named for, or is damaged."""
    try:
        found = OmegaConf.create(RunFolder(path.parent).read_config())
    except (UserError, OmegaConfBaseException):
        return None
    named_for_it = path.parts[-3] == _hash(_part_of_the_run(resolved(found)))
    return definition(found) if named_for_it else None


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every setting of a nested configuration by its whole name, such as ``optimizer.lr``."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
