"""A composed Hydra configuration, checked, and the name of the run it defines."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from cope.errors import UserError, check_choice
from cope.files import user_path
from cope.run.folder import RunFolder

FROM_RECIPE = ("model.", "trainer.", "recipe.")  # groups that every recipe completes
GROUPS = ("pe", "task", "model", "optimizer", "trainer", "logger", "scale", "recipe")
TOP_LEVEL_KEYS = (*GROUPS, "corpus", "seed", "force", "output_dir", "data_dir")
# Keys that say where and how a run is watched, not what it computes: they do not enter the run's identity.
NOT_PART_OF_THE_RUN = (
    *("output_dir", "data_dir", "force", "logger", "seed", "recipe", "task.data_dir"),
    *("trainer.threads", "trainer.cuda_graphs"),
)


def no_recipe(error: MissingConfigException, configs: Path) -> str | None:
    """What to tell a user whose task has no recipe at the scale asked for; None if something else is missing."""
    group, scale, task = [*str(error.missing_cfg_file).split("/"), "", "", ""][:3]
    if group != "recipe":
        return None
    tasks = sorted(path.stem for path in (configs / group / scale).glob("*.yaml"))
    scales = sorted(path.parent.name for path in (configs / group).glob(f"*/{task}.yaml"))
    allowed = f"another task ({', '.join(tasks)}) or scale ({', '.join(scales)})"
    return f"scale={scale} has no recipe for task={task}; allowed: {allowed}."


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
    """``config`` with every interpolation resolved, and without keys that must be set and are not."""
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
            raise UserError(f"{key}={config[key]} has the wrong type; allowed: {kind.__name__}, and not empty.")
    for key in ("output_dir", "data_dir"):
        user_path(key, config[key])
    for found in config:
        check_choice("key", str(found), TOP_LEVEL_KEYS)
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
    """The resolved settings that determine a run's numbers, its seed aside."""
    settings = resolved(config)
    for path in NOT_PART_OF_THE_RUN:
        *parents, last = path.split(".")
        node = settings
        for parent in parents:
            node = node.get(parent, {})
        node.pop(last, None)
    return settings


def run_hash(config: DictConfig) -> str:
    """Eight hexadecimal digits that stand for :func:`definition`."""
    text = json.dumps(definition(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_folder(config: DictConfig) -> RunFolder:
    """Where the run of ``config`` is."""
    return RunFolder.of(config.output_dir, config.task.name, config.pe.name, run_hash(config), config.seed)
