"""An object from its node of a composed configuration.

The classes themselves are the schema: the keys and types of ``pe``, ``task``, ``model``, ``optimizer`` and ``trainer`` are
those of the constructors that take them, so that a new encoding needs no schema of its own. OmegaConf checks and converts.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import is_dataclass, make_dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cope.errors import UserError, nearest
from cope.files import user_path

OWN_PACKAGE = __name__.partition(".")[0]
PACKAGES_VARIABLE = "COPE_PACKAGES"
PACKAGES_GROUP = "cope_lab.packages"

PLAIN = {int, float, bool, str, NoneType}  # what OmegaConf converts to


def arguments(node: DictConfig, target: Callable[..., Any], key: str, provided: Collection[str] = ()) -> dict[str, Any]:
    """``node``'s values as keyword arguments of ``target``, converted to the types it declares; ``provided`` are left out.

    A part of ``node`` with a ``_target_`` of its own, or for which ``target`` declares a dataclass, is built first. ``key`` is
    where ``node`` stands in the configuration, for messages; empty at the top.

    Raises:
        UserError: an unknown or missing key, or a value of another type; names ``key``, the value and what is allowed.
    """
    where = f"{key}." if key else ""
    parameters = {name: parameter for name, parameter in _parameters(target).items() if name not in provided}
    values = {str(name): OmegaConf.select(node, str(name)) for name in node if name != "_target_"}
    if "name" not in parameters:
        values.pop("name", None)  # the group's choice, there for reading only
    for name in values:
        if name not in parameters:
            allowed = ", ".join(sorted(parameters))
            raise UserError(f"{where}{name} is not a setting; allowed: {allowed}.{nearest(name, parameters)}")
    unset = {name for name in parameters if name not in values or OmegaConf.is_missing(node, name)}
    if missing := [f"{where}{name}" for name in parameters if name in unset and parameters[name].is_required]:
        raise UserError(f"{', '.join(missing)} must be set.")
    return {
        name: converted(value, parameters[name].hint, f"{where}{name}") for name, value in values.items() if name not in unset
    }


def as_declared(values: Mapping[str, Any], target: Callable[..., Any], provided: Collection[str] = ()) -> dict[str, Any]:
    """``values`` as ``target`` will have them, its defaults among them: all spellings of a setting come to the same.

    What ``target`` would refuse is left as it is.
    """
    parameters = {name: parameter for name, parameter in _parameters(target).items() if name not in provided}
    hints = {"name": str} | {name: parameter.hint for name, parameter in parameters.items()}
    defaults = {name: parameter.default for name, parameter in parameters.items() if not parameter.is_required}
    return defaults | {name: _as_declared(value, hints.get(name)) for name, value in values.items()}


def built_as_declared(values: Any, provided: Collection[str] = ()) -> Any:
    """As :func:`as_declared`, for the class that ``values["_target_"]`` names; as they are if there is none."""
    try:
        target = class_named(values["_target_"])
    except Exception:  # of several kinds, see :func:`build`, which tells of them
        return values
    return as_declared(values, target, provided)


def _as_declared(value: Any, hint: Any) -> Any:
    if isinstance(value, dict):
        if "_target_" in value:
            return built_as_declared(value)
        return as_declared(value, hint) if isinstance(hint, type) and is_dataclass(hint) else _table(value)
    try:
        return converted(value, hint, "")
    except UserError:
        return value


def _table(value: Any) -> Any:
    """A table whose entries no type is declared for: there a number that is whole is an int."""
    if isinstance(value, dict):
        return {name: _table(entry) for name, entry in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Parameter(NamedTuple):
    hint: Any
    default: Any

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty


@cache
def _parameters(target: Callable[..., Any]) -> dict[str, _Parameter]:
    """What ``target`` takes, by name; where a constructor hands ``**others`` on, what its base takes as well."""
    owners = target.__mro__ if inspect.isclass(target) and not is_dataclass(target) else (target,)
    found: dict[str, _Parameter] = {}
    for owner in owners:
        function = owner if len(owners) == 1 else vars(owner).get("__init__")
        if function is None or owner is object:
            continue
        hints = get_type_hints(function)
        own = [parameter for name, parameter in inspect.signature(function).parameters.items() if name != "self"]
        others = [parameter for parameter in own if parameter.kind is parameter.VAR_KEYWORD]
        found |= {p.name: _Parameter(hints[p.name], p.default) for p in own if p not in others and p.name not in found}
        if not others:
            break
    return found


def converted(value: Any, hint: Any, key: str) -> Any:
    """``value``, which was given for ``key``, as what ``hint`` declares. Tables are left to the class itself.

    Raises:
        UserError: it is of another type.
    """
    if isinstance(value, DictConfig):
        if "_target_" in value:
            return build(value, key.rpartition(".")[2])  # a group of its own, as corpus
        if is_dataclass(hint):
            assert isinstance(hint, type)
            return hint(**arguments(value, hint, key))
    if isinstance(hint, type) and is_dataclass(hint):
        allowed = ", ".join(f"{key}.{name}" for name in _parameters(hint))
        raise UserError(f"{key}={value} is not one setting; allowed: {allowed}.")
    if hint is Path and isinstance(value, str):
        return user_path(key, value)
    if get_origin(hint) is tuple and isinstance(value, str):  # typed with commas between
        return tuple(converted(part, get_args(hint)[0], key) for part in value.split(","))
    if _is_plain(hint):
        try:
            return _plain(value, hint)
        except OmegaConfBaseException as error:
            wanted = hint.__name__ if isinstance(hint, type) else str(hint)
            raise UserError(f"{key}={value!r} has the wrong type; allowed: {wanted}.") from error
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _is_plain(hint: Any) -> bool:
    """Whether OmegaConf converts to ``hint``: a type of ``PLAIN``, a list of one, or several of these."""
    return hint in PLAIN or (get_origin(hint) in (UnionType, list) and all(map(_is_plain, get_args(hint))))


def _plain(value: Any, hint: Any) -> Any:
    """``value`` converted by OmegaConf; of several types, to the first that takes it, text last."""
    if get_origin(hint) is UnionType:
        if value is None and NoneType in get_args(hint):
            return None
        *others, last = sorted(set(get_args(hint)) - {NoneType}, key=lambda kind: kind is str)
        for kind in others:
            try:
                return _plain(value, kind)
            except OmegaConfBaseException:
                continue
        return _plain(value, last)
    made = value if type(value) is hint else OmegaConf.merge(_schema(hint), {"value": value}).value
    if OmegaConf.is_config(made):
        return OmegaConf.to_container(made, resolve=True)
    return made + 0.0 if isinstance(made, float) else made  # -0.0 is 0.0


@cache
def _schema(hint: Any) -> DictConfig:
    schema: DictConfig = OmegaConf.structured(make_dataclass("Schema", [("value", hint)]))
    return schema


def class_named(path: str) -> type:
    """The class that a configuration names, of this project or of a package that the user named.

    A configuration is data, perhaps somebody else's: nothing is imported because a file says so.

    Raises:
        UserError: it is of another package.
        Exception: of several kinds: there is no such class.
    """
    package = str(path).partition(".")[0]
    if package != OWN_PACKAGE and package not in named_packages():
        raise UserError(
            f"it is of no package that was named; allowed: cope and those in {PACKAGES_VARIABLE}=name,name (an installed one "
            f"may name itself: entry points, group {PACKAGES_GROUP})."
        )
    found: type = get_class(path)
    return found


def named_packages() -> set[str]:
    """Other packages whose classes configs may name."""
    named = {name.strip() for name in os.environ.get(PACKAGES_VARIABLE, "").split(",")} - {""}
    return named | {entry.value for entry in entry_points(group=PACKAGES_GROUP)}


def build(node: DictConfig, key: str, **provided: Any) -> Any:
    """An instance of the class that ``node._target_`` names, from ``node``'s values and ``provided``.

    Raises:
        UserError: as :func:`arguments`, or no such class, or whatever the class itself refuses.
    """
    name = node.get("_target_")
    if not isinstance(name, str):
        raise UserError(f"{key}._target_={name} names no class; allowed: package.module.Class.")
    try:
        target = class_named(name)
    except Exception as error:  # Hydra raises several kinds here, all with the reason in the text
        raise UserError(f"{key}._target_={name} cannot be loaded: {' '.join(str(error).split())}") from error
    return target(**provided, **arguments(node, target, key, provided))
