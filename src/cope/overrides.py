"""What to tell a user of overrides that Hydra refuses: which name is unknown, what is allowed, and the nearest that is.

Hydra has the first word: whatever it composes is let through, from wherever on its search path the configurations come.
"""

from __future__ import annotations

import itertools
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig

from cope.errors import UserError, nearest


def check_overrides(arguments: Sequence[str], config_folder: str, config_name: str = "train") -> None:
    """Raise UserError if Hydra will refuse a choice or a key on the command line.

    It says so of the first; this adds what is allowed and the nearest match, of every override at once.
    """
    typed, others = get_args_parser().parse_known_args(list(arguments))
    settings = [text for text in others if not text.startswith("-")]
    if settings and len(settings) == len(others):
        raise UserError(
            f"{' '.join(settings)}: options such as -m belong before all settings; allowed: python train.py -m key=value ..."
        )
    if typed.experimental_rerun and not Path(typed.experimental_rerun).is_file():
        raise UserError(f"--experimental-rerun {typed.experimental_rerun} is not a file.")
    if others or typed.shell_completion or typed.hydra_help or typed.info or typed.experimental_rerun:
        return  # nothing of this project is composed, or from half a word
    folder = Path(sys.argv[0]).resolve().parent / (typed.config_path or config_folder)
    if not folder.is_dir():
        return  # which Hydra tells
    composer = Composer(folder, typed.config_name or config_name, typed.config_dir)
    sweeps = typed.multirun or any(text.startswith("hydra.mode=MULTIRUN") for text in typed.overrides)
    if problems := given_twice(typed.overrides) or composer.problems(typed.overrides, sweeps):
        raise UserError("\n".join(problems))
    if not sweeps and any(text.startswith("hydra.run.dir=") for text in typed.overrides):
        run_folder = composer.composed(typed.overrides).hydra.run.dir
        try:
            Path(run_folder).mkdir(parents=True, exist_ok=True)  # as Hydra does, which shows a stack trace if it cannot
        except OSError as error:
            raise UserError(f"hydra.run.dir={run_folder} cannot be made: {error.strerror}.") from error


def given_twice(arguments: Sequence[str]) -> list[str]:
    """What to tell of keys that several of ``arguments`` set: only one of them could have an effect.

    Hydra's own may come twice: Fabric adds some to the command with which it starts the processes of other devices.
    """
    first: dict[str, str] = {}
    problems = []
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("+")
        if key in first and not key.startswith("hydra."):
            problems.append(f"{argument} is one {key} too many after {first[key]}; allowed: one {key}=... in a command.")
        first.setdefault(key, argument)
    return problems


def prints_only(arguments: Sequence[str]) -> bool:
    """Whether a command line asks to be shown something, and for no run."""
    typed, _ = get_args_parser().parse_known_args(list(arguments))
    return bool(typed.help or typed.hydra_help or typed.cfg or typed.info)


class Composer:
    """Composes as Hydra's command line does, and explains why it cannot.

    Args:
        folder: of the configurations.
        further: a folder of the user's own, searched first: Hydra's ``--config-dir``.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, folder: Path, config_name: str = "train", further: str | None = None) -> None:
        search_path = create_config_search_path(str(folder))
        if further is not None:
            if not Path(further).is_dir():
                raise UserError(f"--config-dir {further} is not a folder.")
            path = f"file://{Path(further).absolute()}"
            search_path.prepend(provider="command-line", path=path, anchor=SearchPathQuery(provider="schema"))
        self.loader = ConfigLoaderImpl(search_path)
        Hydra(config_name, self.loader)  # registers Hydra's resolvers and the job's name, on which configurations rely
        self.config_name = config_name
        self.search_path: list[str] = []  # the override of hydra.searchpath, if there is one
        self._choices: dict[tuple[str, ...], list[str]] = {}  # Hydra copies all it has read before it looks one up

    def problems(self, overrides: Sequence[str], sweeps: bool = False) -> list[str]:
        """Why ``overrides`` cannot be composed; none if they can.

        Args:
            sweeps: whether several values are a sweep, as after ``-m``.
        """
        parsed, problems = [], []
        for text in overrides:
            try:
                parsed.append(OverridesParser.create(self.loader).parse_override(text))
            except HydraException:
                problems.append(_not_read(text))
        problems += [problem for override in parsed if (problem := self._several(override, sweeps))]
        if problems:
            return problems
        self.search_path = [_text(override) for override in parsed if override.key_or_group == "hydra.searchpath"]
        try:
            combinations = list(itertools.product(*map(self._alternatives, parsed)))
        except HydraException:
            return []  # a sweep for a sweeper of another kind
        found: dict[str, None] = {}
        for combination in combinations:
            try:
                self.composed(combination)
            except UserError as error:
                found[str(error)] = None
            except (HydraException, ValueError) as error:  # the latter where a choice is a number or null
                if unknown := self._unknown_choices(parsed):
                    return unknown
                missing = self.no_recipe(error)
                others = self._unknown_keys(combination) or [_in_one_line(error, combination)]
                found |= dict.fromkeys([missing] if missing else others)
        return list(found)

    def no_recipe(self, error: Exception) -> str | None:
        """What to tell a user whose task has no recipe at the scale asked for; None if something else is wrong."""
        if not isinstance(error, MissingConfigException):
            return None
        group, scale, task = [*str(error.missing_cfg_file).split("/"), "", "", ""][:3]
        if group != "recipe":
            return None
        recipes = [choice.partition("/")[::2] for choice in self.choices(group)]
        tasks = [other_task for other_scale, other_task in recipes if other_scale == scale]
        scales = [other_scale for other_scale, other_task in recipes if other_task == task]
        others = [f"another {key} ({', '.join(names)})" for key, names in (("task", tasks), ("scale", scales)) if names]
        allowed = " or ".join([*others, "a recipe of another, as recipe=laptop/counting"])
        return f"scale={scale} has no recipe for task={task}; allowed: {allowed}."

    def composed(self, overrides: Sequence[str]) -> DictConfig:
        """What Hydra composes.

        Raises:
            UserError: a place of ``hydra.searchpath`` is not there, where Hydra only warns.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("error", r"provider=hydra\.searchpath")
            try:
                return self.loader.load_configuration(self.config_name, list(overrides), RunMode.RUN)
            except UserWarning as error:
                place = str(error).partition("path=")[2].removesuffix(" is not available.")
                raise UserError(
                    f"hydra.searchpath: {place} is not there; allowed: [file:///a/folder] of configs, or "
                    "[pkg://a_package.configs] of a package that is installed."
                ) from None

    def first_composed(self, overrides: Sequence[str]) -> DictConfig:
        """What Hydra composes for the first run of a sweep, or for the only one."""
        parsed = OverridesParser.create(self.loader).parse_overrides(list(overrides))
        return self.composed([self._alternatives(override)[0] for override in parsed])

    def choices(self, group: str) -> list[str]:
        """Of a group, those in groups below it as ``below/choice``; none if there is no such group."""
        key = (group, *self.search_path)
        if key not in self._choices:
            self._choices[key] = self._read_choices(group) if group else []
        return self._choices[key]

    def _read_choices(self, group: str) -> list[str]:
        where = (self.config_name, self.search_path)
        below = self.loader.get_group_options(group, ObjectType.GROUP, *where)
        return [
            *self.loader.get_group_options(group, ObjectType.CONFIG, *where),
            *(f"{name}/{choice}" for name in below for choice in self.choices(f"{group}/{name}")),
        ]

    def _several(self, override: Override, sweeps: bool) -> str:
        """What to tell of several values where one is meant; empty if it is right."""
        text, value = _text(override), override.value()
        if override.is_sweep_override() and not sweeps:
            return (
                f"{text} is several values: -m before all settings runs each; a list needs brackets, text with commas quotes."
            )
        if not isinstance(value, list):
            return ""
        choices = self.choices(override.key_or_group)
        if len(value) < 2 or "/" in override.key_or_group or not all(str(choice) in choices for choice in value):
            return ""
        each = f"-m {override.get_key_element()}={','.join(map(str, value))}"
        return f"{text} is a list; allowed: one of {', '.join(choices)}. Each in a run of its own: {each}."

    def _alternatives(self, override: Override) -> list[str]:
        """What stands for ``override``: each choice of a group that is swept; of a setting one value, as good as any."""
        if not override.is_sweep_override():
            return [_text(override)]
        values = (f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator())
        return list(values) if self.choices(override.key_or_group) else list(itertools.islice(values, 1))

    def _unknown_choices(self, overrides: Sequence[Override]) -> list[str]:
        problems = []
        for override in overrides:
            group, choices = override.key_or_group, self.choices(override.key_or_group)
            for text in self._alternatives(override) if choices and not override.is_delete() else []:
                value = text.partition("=")[2].strip("'\"")
                if value not in choices:
                    problems.append(f"{group}={value} is not known; allowed: {', '.join(choices)}.{nearest(value, choices)}")
        return problems

    def _unknown_keys(self, overrides: Sequence[str]) -> list[str]:
        parsed = OverridesParser.create(self.loader).parse_overrides(list(overrides))
        groups = [_text(o) for o in parsed if self.choices(o.key_or_group) and not o.is_delete()]
        try:
            known = _known_keys(self.composed([*self.search_path, *groups]))
        except HydraException:
            return []
        problems = []
        for override in OverridesParser.create().parse_overrides([text for text in overrides if text not in groups]):
            key = override.key_or_group
            if key in known or override.is_add() or override.is_force_add():
                continue
            parent = key.rpartition(".")[0]
            while parent and not any(other.startswith(f"{parent}.") for other in known):
                parent = parent.rpartition(".")[0]
            allowed = sorted(other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == parent != other)
            where = f" with {', '.join(groups)}" if groups else ""
            problems.append(
                f"{key or _text(override)} is not a setting. Allowed{where}: {', '.join(allowed)}.{_meant(key, known)}"
            )
        return problems


def _meant(key: str, known: set[str]) -> str:
    """The settings that end as ``key`` does, such as ``optimizer.lr`` for ``lr``; else the nearest."""
    last = key.rpartition(".")[2]
    ending = sorted(other for other in known if other.rpartition(".")[2] == last and not other.startswith("recipe."))
    return f" Did you mean {' or '.join(map(repr, ending))}?" if ending else nearest(key, known)


def _not_read(text: str) -> str:
    """What to tell of an argument that Hydra's grammar has no place for, and whether quotes would help."""
    key, equals, value = text.partition("=")
    if not equals:
        return f"{text!r} is not of the form key=value; allowed: pe=cope, task=counting, seed=1 and others (--help lists them)."
    quoted = f"{key}='{value}'"
    if "'" in value or not _is_parsed(quoted):
        return f"{text!r} cannot be read; allowed: key=value, as in https://hydra.cc/docs/1.3/advanced/override_grammar/basic."
    return f'{text} cannot be read: such a value needs quotes, and those need others for the shell: "{quoted}"'


def _in_one_line(error: Exception, overrides: Sequence[str]) -> str:
    """What Hydra says of ``overrides``, without its own objects."""
    if isinstance(error, ConfigCompositionException) and (unused := re.match(r"Could not override '([^.']*)'", str(error))):
        typed = next((text for text in overrides if text.startswith(f"{unused[1]}=")), unused[1])
        return f"{typed} has no effect: with the other settings nothing has a {unused[1]}."
    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    lines = [line.strip() for cause in causes for line in str(cause).splitlines()]
    told = [line for line in lines if line and not re.match(r"(full_key|object_type|reference_type)[:=]", line)]
    return " ".join(dict.fromkeys(told)).replace("DictConfig", "a table").replace("ListConfig", "a list")


def _is_parsed(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _text(override: Override) -> str:
    """As it was typed."""
    assert override.input_line is not None
    return override.input_line


def _known_keys(config: DictConfig, prefix: str = "") -> set[str]:
    known = set()
    for key in config:
        known.add(f"{prefix}{key!s}")
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            known |= _known_keys(node, f"{prefix}{key!s}.")
    return known
