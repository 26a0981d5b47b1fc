"""Which runs a table needs, as ``configs/table/<name>.yaml`` says.

A table has sections, a section has rows, and a row is a list of overrides of ``train.py``; each is run with every seed. At
some scale a task may need further ones (``at_scale``). What identifies a run is what ``train.py`` would compose, so that a run
made by hand counts as well. ``jobs.py`` runs what is not finished.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig
from tqdm import tqdm

from cope.errors import UserError, check_choice
from cope.overrides import Composer
from cope.sweep.jobs import Job
from cope.sweep.rows import kept_rows


@dataclass(frozen=True)
class PlannedRun(Job):
    """One run of a table; the last of its overrides is its seed's."""

    section: str
    row: str
    seed: int

    @property
    def settings(self) -> tuple[str, ...]:
        """What its seeds share."""
        return self.overrides[:-1]


@dataclass(frozen=True)
class Plan:
    """The runs of a table, seed by seed, so that a table half run has all of its rows."""

    name: str
    title: str
    seeds: tuple[int, ...]
    splits: tuple[str, ...] | None  # to be shown; None shows every test split
    sections: tuple[str, ...]
    runs: tuple[PlannedRun, ...]

    def rows(self, section: str) -> dict[str, PlannedRun]:
        """The rows of a section by name, each with its first run."""
        first: dict[str, PlannedRun] = {}
        for run in self.runs:
            if run.section == section:
                first.setdefault(run.row, run)
        return first


def table_names(configs: Path) -> list[str]:
    """The tables and figures that ``configs/table`` describes."""
    return sorted(path.stem for path in (configs / "table").glob("*.yaml"))


def tables_with(configs: Path, sections: Collection[str]) -> list[str]:
    """The tables that have one of the sections, each section once."""
    names, wanted = [], set(sections)
    for name in table_names(configs):
        own = set(yaml.safe_load((configs / "table" / f"{name}.yaml").read_text())["sections"])
        if own & wanted:
            names.append(name)
            wanted -= own
    return names


def other_names(configs: Path) -> list[str]:
    """Tables that are not the paper's, in folders below ``configs/table``: ``ablations/flip_flop``."""
    folder = configs / "table"
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.yaml"))


def planned_seeds(configs: Path) -> range:
    """Those that ``configs/plan.yaml`` reports."""
    seeds = yaml.safe_load((configs / "plan.yaml").read_text())["seeds"]
    return range(seeds["first"], seeds["first"] + seeds["most"])


def read_plan(configs: Path, name: str, overrides: Sequence[str], seeds: Iterable[int]) -> Plan:
    """The plan of ``configs/table/<name>.yaml``.

    Args:
        overrides: of every run, the last word.

    Raises:
        UserError: there is no such table, or settings that its rows have themselves or that a row cannot have.
        NoRecipe: its task has no recipe at the scale.
        HydraException: an override that Hydra cannot parse.
    """
    check_choice("table", name, [*table_names(configs), *other_names(configs)])
    content = yaml.safe_load((configs / "table" / f"{name}.yaml").read_text())
    return plan_of(configs, name, content, overrides, tuple(seeds))


def plan_of(configs: Path, name: str, content: Mapping[str, Any], overrides: Sequence[str], seeds: tuple[int, ...]) -> Plan:
    """The plan of a table with the ``content`` of such a file; raises what :func:`read_plan` raises."""
    _check_overrides(name, content["sections"], overrides)

    scale, further = [override for override in overrides if override.startswith("scale=")], content.get("at_scale", {})
    runs = []
    of_sections = [(section, row, own) for section, rows in content["sections"].items() for row, own in rows.items()]
    rows = tqdm(
        of_sections, bar_format=name + ": {n_fmt} of {total_fmt} rows |{bar}|", disable=None, delay=1, leave=False, ncols=80
    )
    with kept_rows(configs, lambda overrides: composed_now(configs, overrides)) as row_of:
        for section, name_of_row, own in rows:
            with _told_with(f"{name}, {section}: {name_of_row}"):
                if further and (not scale or scale[-1].partition("=")[2] in further):
                    base = composed(configs, (*own, *scale))
                    own = [*own, *further.get(base.scale, {}).get(base.task.name, [])]
                row = row_of((*own, *overrides))
            for seed in seeds:
                runs.append(
                    PlannedRun((*own, *overrides, f"seed={seed}"), row.folder(seed), row.scale, section, name_of_row, seed)
                )
    runs.sort(key=lambda run: run.seed)
    splits = tuple(content["splits"]) if "splits" in content else None
    return Plan(name, content["title"], seeds, splits, tuple(content["sections"]), tuple(runs))


def read_plans(
    configs: Path, overrides: Sequence[str], seeds: Iterable[int], names: Sequence[str] | None = None
) -> tuple[list[Plan], list[str]]:
    """The plans of ``names`` (None: of every table) that have a recipe at the scale asked for, and why others are left out.

    Raises:
        UserError: there is none, or whatever :func:`read_plan` raises but for that.
    """
    plans, left_out, seeds = [], [], tuple(seeds)
    for name in table_names(configs) if names is None else names:
        try:
            plans.append(read_plan(configs, name, overrides, seeds))
        except NoRecipe as error:
            left_out.append(f"{name} is left out: {error}")
    if not plans:
        raise UserError("\n".join(left_out))
    return plans, left_out


def _check_overrides(name: str, sections: Mapping[str, Mapping[str, Sequence[str]]], overrides: Sequence[str]) -> None:
    """Raise UserError for settings that would make one run of different rows, or have no effect."""
    own = {override.partition("=")[0] for rows in sections.values() for row in rows.values() for override in row}
    for override in overrides:
        key = override.partition("=")[0].lstrip("+")
        if key == "seed":
            raise UserError(
                f"{override}: a table has the seeds of configs/plan.yaml; allowed: seeds=N (SEEDS=N), for the first N of them."
            )
        if key == "force":
            raise UserError(
                f"{override}: a table runs what is not finished; to start a run over, add it to that run's command."
            )
        if key in own:
            raise UserError(f"{override} would replace what rows of {name} differ in; allowed: settings that none of them has.")


class NoRecipe(UserError):
    """A table's task has no recipe at the scale."""


@cache
def composed(configs: Path, overrides: tuple[str, ...]) -> DictConfig:
    """As :func:`composed_now`, once for this process: that takes a tenth of a second."""
    return composed_now(configs, overrides)


def composed_now(configs: Path, overrides: tuple[str, ...]) -> DictConfig:
    """What ``train.py`` composes.

    Raises:
        UserError: all that is wrong with ``overrides``, a line each.
    """
    try:
        with initialize_config_dir(str(configs), version_base="1.3"):
            return compose("train", overrides=list(overrides))
    except HydraException as error:
        composer = Composer(configs)
        if missing := composer.no_recipe(error):
            raise NoRecipe(missing) from error
        problems = composer.problems(overrides)
        if not problems:
            raise
        raise UserError("\n".join(problems)) from error


@contextmanager
def _told_with(place: str) -> Iterator[None]:
    """Add to what is wrong with a row's overrides which row it is."""
    try:
        yield
    except NoRecipe:
        raise
    except UserError as error:
        raise UserError("\n".join(f"{problem} ({place})" for problem in str(error).splitlines())) from error


def all_runs(plans: Iterable[Plan]) -> list[PlannedRun]:
    """The runs of several tables, each once, seed by seed: every table has all of its rows before any has its second seed."""
    found = {run.folder.path: run for plan in plans for run in plan.runs}
    return sorted(found.values(), key=lambda run: run.seed)


def of_hydra_and_of_runs(configs: Path, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of Hydra's own settings, such as its launcher's, and those of ``train.py``'s runs.

    Raises:
        UserError: what is wrong with Hydra's.
    """
    of_hydra = [override for override in overrides if override.lstrip("+~").startswith(("hydra.", "hydra/"))]
    if problems := Composer(configs).problems(of_hydra):
        raise UserError("\n".join(problems))
    return of_hydra, [override for override in overrides if override not in of_hydra]


@contextmanager
def launcher_for(configs: Path, overrides: Sequence[str], task_function: TaskFunction) -> Iterator[Launcher]:
    """The launcher that ``python train.py -m`` would have with these overrides of Hydra's own settings."""
    with initialize_config_dir(str(configs), version_base="1.3", job_name="train"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config("train", [*overrides, "hydra.mode=MULTIRUN"], run_mode=RunMode.MULTIRUN)
        HydraConfig.instance().set_config(config)
        context = HydraContext(hydra.config_loader, Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(context, task_function, config)
    yield launcher  # when rows can be composed again: Hydra does one thing at a time
