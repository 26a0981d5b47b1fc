"""An object from its node of a composed configuration.

The classes themselves are the schema: the keys and types of ``pe``, ``task``, ``model``, ``optimizer`` and ``trainer`` are
those of the constructors that take them, so that a new encoding needs no schema of its own. OmegaConf checks and converts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import field, make_dataclass
from typing import Any, get_args, get_type_hints

from hydra.utils import get_class
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cope.errors import UserError, nearest


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
