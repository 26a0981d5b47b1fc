"""An object from its node of a composed configuration.

The classes themselves are the schema: the keys and types of ``pe``, ``task``, ``model``, ``optimizer`` and ``trainer`` are
those of the constructors that take them, so that a new encoding needs no schema of its own. OmegaConf checks and converts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import is_dataclass, make_dataclass
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cope.errors import UserError, nearest


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
        name: _converted(value, parameters[name].hint, f"{where}{name}") for name, value in values.items() if name not in unset
    }


class _Parameter(NamedTuple):
    hint: Any
    is_required: bool


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
        found |= {
            p.name: _Parameter(hints[p.name], p.default is p.empty) for p in own if p not in others and p.name not in found
        }
        if not others:
            break
    return found


def _converted(value: Any, hint: Any, key: str) -> Any:
    """``value`` as what ``hint`` declares. Tables are left to the class itself."""
    if isinstance(value, DictConfig):
        if "_target_" in value:
            return build(value, key.rpartition(".")[2])  # a group of its own, as corpus
        if is_dataclass(hint):
            assert isinstance(hint, type)
            return hint(**arguments(value, hint, key))
    plain = {int, float, bool, str, type(None)}
    if hint in plain or (get_origin(hint) in (UnionType, list) and set(get_args(hint)) <= plain):
        try:
            schema = OmegaConf.structured(make_dataclass("Schema", [("value", hint)]))
            value = OmegaConf.merge(schema, {"value": value}).value
        except OmegaConfBaseException as error:
            wanted = hint.__name__ if isinstance(hint, type) else str(hint)
            raise UserError(f"{key}={value!r} has the wrong type; allowed: {wanted}.") from error
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


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
