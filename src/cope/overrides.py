"""Names in overrides that do not exist, told with the nearest that do before Hydra composes anything."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from cope.errors import nearest
from cope.run.configuration import no_recipe


def check_overrides(arguments: Sequence[str], config_folder: str, config_name: str = "train") -> None:
    """Exit with one message if an override names a choice or a key that does not exist.

    Hydra refuses them too; this adds the nearest match, and says it of every override at once.
    """
    if {"-sc", "--shell-completion"} & set(arguments):
        return
    problems = override_problems(arguments, Path(sys.argv[0]).resolve().parent / config_folder, config_name)
    if problems:
        print("\n".join(problems), file=sys.stderr)
        sys.exit(1)


def override_problems(arguments: Sequence[str], folder: Path, config_name: str = "train") -> list[str]:
    """What is wrong with the names in overrides, given the configurations in ``folder``, or with how they are typed."""
    if unquoted := [hint for argument in arguments if (hint := _hint_to_quote(argument))]:
        return unquoted
    try:
        overrides = OverridesParser.create().parse_overrides(
            [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
        )
    except HydraException:
        return []  # Hydra shows where the syntax goes wrong
    overrides = [override for override in overrides if not override.key_or_group.startswith(("hydra.", "hydra/"))]
    try:
        return (
            _unknown_choices(overrides, folder)
            or _missing_recipes(overrides, folder, config_name)
            or _unused_groups(overrides, folder, config_name)
            or _unknown_keys(overrides, folder, config_name)
        )
    except HydraException:
        return []  # a sweep that only Hydra can spell out, such as glob(*)


def _hint_to_quote(argument: str) -> str:
    """What to tell of ``key=value`` that Hydra's grammar has no place for, if quotes help; else an empty string."""
    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-") or "'" in value or _is_parsed(argument):
        return ""
    quoted = f"{key}='{value}'"
    if not _is_parsed(quoted):
        return ""  # Hydra shows where the syntax goes wrong
    return f'{argument} cannot be read: such a value needs quotes, and those need others for the shell: "{quoted}"'


def _is_parsed(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _choices(folder: Path, group: str) -> list[str]:
    return sorted(path.stem for path in (folder / group).glob("*.yaml"))


def _values(override: Override) -> list[str]:
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [str(override.value())]


def _typed(override: Override) -> list[object]:
    """Values as they are, where they can be told without composing."""
    return [{}] if override.is_sweep_override() else [override.value()]


def _is_group(override: Override, folder: Path) -> bool:
    return (folder / override.key_or_group).is_dir()


def _unknown_choices(overrides: Sequence[Override], folder: Path) -> list[str]:
    problems = []
    for override in overrides:
        if _is_group(override, folder) and not override.is_delete():
            choices = _choices(folder, override.key_or_group)
            for value in _values(override):
                if value not in choices:
                    listed = ", ".join(choices)
                    problems.append(
                        f"{override.key_or_group}={value} is not known; allowed: {listed}.{nearest(value, choices)}"
                    )
    return problems


def _missing_recipes(overrides: Sequence[Override], folder: Path, config_name: str) -> list[str]:
    """Combinations of scale and task that have no recipe."""
    chosen = [override for override in overrides if override.key_or_group in ("scale", "task")]
    if not chosen:
        return []  # the defaults have one
    problems = []
    for names in itertools.product(*[[f"{group.key_or_group}={value}" for value in _values(group)] for group in chosen]):
        try:
            with initialize_config_dir(str(folder), version_base="1.3"):
                compose(config_name, overrides=list(names))
        except MissingConfigException as error:
            problem = no_recipe(error, folder)
            problems += [problem] if problem else []
    return problems


def _unused_groups(overrides: Sequence[Override], folder: Path, config_name: str) -> list[str]:
    """Groups that only some tasks have, such as ``corpus``, chosen for one that has none."""
    groups = [override for override in overrides if _is_group(override, folder) and not override.is_delete()]
    problems = []
    with initialize_config_dir(str(folder), version_base="1.3"):
        always = set(compose(config_name))
        for override in groups:
            if override.key_or_group not in always:
                others = [f"{_prefix(group)}{group.key_or_group}={_values(group)[0]}" for group in groups if group != override]
                if override.key_or_group not in compose(config_name, overrides=others):
                    where = f"with {', '.join(others)}" if others else "by default"
                    problems.append(
                        f"{override.key_or_group}={_values(override)[0]} has no effect: {where} nothing has a "
                        f"{override.key_or_group}."
                    )
    return problems


def _unknown_keys(overrides: Sequence[Override], folder: Path, config_name: str) -> list[str]:
    groups = [override for override in overrides if _is_group(override, folder) and not override.is_delete()]
    keys = [
        override for override in overrides
        if not _is_group(override, folder) and not (override.is_add() or override.is_force_add() or override.is_delete())
    ]  # fmt: skip
    if not keys:
        return []
    problems: dict[str, None] = {}
    for choice in itertools.product(*[_values(group) for group in groups]):
        names = [f"{_prefix(group)}{group.key_or_group}={value}" for group, value in zip(groups, choice, strict=True)]
        try:
            with initialize_config_dir(str(folder), version_base="1.3"):
                config = compose(config_name, overrides=names)
        except HydraException:
            continue  # not a combination that exists: Hydra says why
        known = _known_keys(config)
        for override in keys:
            key = override.key_or_group
            settings = OmegaConf.select(config, key) if key in known and not OmegaConf.is_missing(config, key) else None
            if isinstance(settings, DictConfig) and not all(isinstance(value, dict) for value in _typed(override)):
                problems[f"{key} is not one setting. Allowed: {', '.join(f'{key}.{own!s}' for own in settings)}."] = None
            elif key not in known:
                where = f" with {', '.join(names)}" if names else ""
                siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == key.rpartition(".")[0]]
                allowed = f" Allowed{where}: {', '.join(sorted(siblings))}." if siblings else ""
                guess = nearest(key, known)
                problems[f"{key} is not a setting.{allowed}{guess}"] = None
    return list(problems)


def _prefix(override: Override) -> str:
    return "+" if override.is_add() else "++" if override.is_force_add() else ""


def _known_keys(config: DictConfig, prefix: str = "") -> set[str]:
    known = set()
    for key in config:
        known.add(f"{prefix}{key!s}")
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            known |= _known_keys(node, f"{prefix}{key!s}.")
    return known
