"""From a composed Hydra configuration to checked arguments, and to the name of the run it defines.

The classes themselves are the schema: the keys and types of ``pe``, ``task``, ``model``, ``optimizer`` and ``trainer`` are
those of the constructors that take them, so that a new encoding needs no schema of its own. OmegaConf checks and converts.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hydra.errors import MissingConfigException
from hydra.utils import get_class
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cope.errors import UserError, check_choice, nearest

FROM_RECIPE = ("model.", "trainer.", "recipe.")  # groups that every recipe completes
GROUPS = ("pe", "task", "model", "optimizer", "trainer", "logger", "scale", "recipe")
TOP_LEVEL_KEYS = (*GROUPS, "corpus", "seed", "force", "output_dir", "data_dir")
# Keys that say where and how a run is watched, not what it computes: they do not enter the run's identity.
NOT_PART_OF_THE_RUN = ("output_dir", "data_dir", "force", "logger", "seed", "recipe", "task.data_dir", "trainer.threads")


def no_recipe(error: MissingConfigException, configs: Path) -> str | None:
    """What to tell a user whose task has no recipe at the scale asked for; None if something else is missing."""
    group, scale, task = [*str(error.missing_cfg_file).split("/"), "", "", ""][:3]
    if group != "recipe":
        return None
    tasks = sorted(path.stem for path in (configs / group / scale).glob("*.yaml"))
    scales = sorted(path.parent.name for path in (configs / group).glob(f"*/{task}.yaml"))
    allowed = f"another task ({', '.join(tasks)}) or scale ({', '.join(scales)})"
    return f"scale={scale} has no recipe for task={task}; allowed: {allowed}."


def arguments(node: DictConfig, target: Callable[..., Any], key: str, provided: Collection[str] = ()) -> dict[str, Any]:
    """``node``'s values as keyword arguments of ``target``, converted to the types it declares; ``provided`` are left out.

    Raises:
        UserError: an unknown or missing key, or a value of another type; names ``key``, the value and what is allowed.
    """
    initialiser = target.__init__ if inspect.isclass(target) else target
    hints = get_type_hints(initialiser)
    parameters = {name: p for name, p in inspect.signature(target).parameters.items() if name not in provided}
    values = [str(name) for name in node if name != "_target_"]
    if "name" not in parameters:
        values = [name for name in values if name != "name"]  # the group's choice, there for reading only
    for name in values:
        if name not in parameters:
            allowed = ", ".join(sorted(parameters))
            raise UserError(f"{key}.{name} is not a setting; allowed: {allowed}.{nearest(name, parameters)}")
    fields: list[Any] = [
        (name, _checkable(hints[name]), field(default=MISSING if p.default is p.empty else p.default))
        for name, p in parameters.items()
    ]
    schema = OmegaConf.structured(make_dataclass("Schema", fields))
    for name in values:
        if OmegaConf.is_missing(node, name):
            continue  # said below
        value = OmegaConf.select(node, name)
        try:
            schema = OmegaConf.merge(schema, {name: value})
        except OmegaConfBaseException as error:
            wanted = hints[name].__name__ if isinstance(hints[name], type) else str(hints[name])
            raise UserError(f"{key}.{name}={value!r} has the wrong type; allowed: {wanted}.") from error
    checked = OmegaConf.to_container(schema, resolve=True)
    assert isinstance(checked, dict)
    missing = [f"{key}.{name!s}" for name, value in checked.items() if value == MISSING]
    if missing:
        raise UserError(f"{', '.join(missing)} must be set.")
    return {str(name): value for name, value in checked.items()}


def _checkable(hint: Any) -> Any:
    """``hint`` where OmegaConf can check it; anything else (tables, paths) is left to the class itself."""
    plain = {int, float, bool, str, type(None)}
    return hint if hint in plain or (set(get_args(hint)) <= plain and get_args(hint)) else Any


def build(node: DictConfig, key: str, **provided: Any) -> Any:
    """An instance of the class that ``node._target_`` names, from ``node``'s values and ``provided``.

    Raises:
        UserError: as :func:`arguments`, or no such class, or whatever the class itself refuses.
    """
    try:
        target = get_class(node["_target_"])
    except Exception as error:  # Hydra raises several kinds here, all with the reason in the text
        raise UserError(f"{key}._target_={node.get('_target_')} cannot be loaded: {error}") from error
    return target(**provided, **arguments(node, target, key, provided))


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
