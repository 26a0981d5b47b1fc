"""Every run below some folders, finished or not, as a list that can be filtered and sorted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cope.errors import UserError, nearest
from cope.metrics import METRICS, test_and_worst
from cope.report.sheets import Sheet
from cope.run.configuration import flatten
from cope.run.folder import RunFolder
from cope.sweep.clock import duration

HIDDEN = ("output_dir", "data_dir", "force", "dry", "seed", "scale", "pe.name", "pe._target_", "task.name", "task._target_")
SHORT = {"task": "task.name", "pe": "pe.name"}

STATES = ("finished", "failed", "begun")  # of which begun is stopped, or still running


@dataclass(frozen=True)
class FoundRun:
    """One run's folder, read as far as it goes."""

    folder: RunFolder
    settings: dict[str, str]  # every setting by its whole name
    result: dict[str, Any] | None

    @property
    def state(self) -> str:
        """One of ``STATES``."""
        finished, failed, begun = STATES
        if self.result is not None:
            return finished
        return failed if self.folder.failure.exists() else begun

    @cached_property
    def age_s(self) -> float:
        """Since it last wrote something."""
        paths = [path for path in (self.folder.result, self.folder.metrics, self.folder.config) if path.exists()]
        return time.time() - max((path.stat().st_mtime for path in paths), default=time.time())

    def score(self, ood: bool) -> float:
        """The headline metric: of ``test``, or the worst of the splits that are out of distribution; infinite without one."""
        if self.result is None:
            return float("inf")
        test, worst = test_and_worst({split: found[self.result["headline"]] for split, found in self.result["splits"].items()})
        if not ood:
            return test
        return float("inf") if worst is None else worst

    def score_text(self, ood: bool) -> str:
        value = self.score(ood)
        return "" if value == float("inf") else METRICS[self.result["headline"]].text(value)  # type: ignore[index]  # there is one


SORTS: dict[str, Callable[[FoundRun], Any]] = {
    "task": lambda run: (run.folder.task, run.folder.encoding, run.folder.seed),
    "pe": lambda run: (run.folder.encoding, run.folder.task, run.folder.seed),
    "seed": lambda run: (run.folder.seed, run.folder.task, run.folder.encoding),
    "state": lambda run: (run.state, run.folder.task, run.folder.encoding, run.folder.seed),
    "error": lambda run: (run.folder.task, run.score(ood=False)),
    "ood": lambda run: (run.folder.task, run.score(ood=True)),
    "age": lambda run: run.age_s,
}


def list_runs(folders: Sequence[Path], filters: Sequence[str], sort: str = "task", whole: bool = False) -> Sheet:
    """A row for each run; columns in which all agree are said in the title instead.

    Args:
        filters: ``key=value,value``: what is kept has one of the values.
        whole: every column stays, whatever was run: for programs that read the list.

    Raises:
        UserError: no run is there, a key that no run has, or a value that none has.
    """
    found = [run for folder in folders for run in find_runs(folder)]
    if not found:
        raise UserError(f"no run in {', '.join(map(str, folders))}; make one: python train.py pe=cope task=counting")
    for text in filters:
        found = _kept(found, text)
    found.sort(key=SORTS[sort])
    differences = _differences(found)
    columns: dict[str, list[str]] = {
        "task": [run.folder.task for run in found],
        "encoding": [run.folder.encoding for run in found],
        "scale": [run.settings.get("scale", "") for run in found],
        "differs in": differences,
        "seed": [str(run.folder.seed) for run in found],
        "state": [run.state for run in found],
        "metric": [METRICS[run.result["headline"]].label if run.result else "" for run in found],
        "test": [run.score_text(ood=False) for run in found],
        "worst OOD": [run.score_text(ood=True) for run in found],
        "age": [duration(run.age_s) for run in found],
    }
    always = columns if whole else ("seed", "test", "worst OOD", "age")
    shared = {name: values[0] for name, values in columns.items() if name not in always and len(set(values)) == 1}
    parts = [f"{name} {value}" for name, value in shared.items() if value]
    shown = {name: values for name, values in columns.items() if whole or (name not in shared and any(values))}
    shown["folder"] = [str(run.folder.path) for run in found]
    title = f"{len(found)} run{'s' * (len(found) != 1)}" + (f", all with {', '.join(parts)}" if parts else "")
    return Sheet(
        title,
        tuple(shown),
        tuple(zip(*shown.values(), strict=True)),
        words=frozenset({"encoding", "scale", "differs in", "state", "metric", "folder"}),
        is_list=True,
    )


def find_runs(folder: Path) -> list[FoundRun]:
    """Every run at or below ``folder``; one that cannot be read is left out, with a word."""
    runs = []
    for own in RunFolder.below(folder):
        if own.config.exists() or own.result.exists():
            result = own.sound_result()
            settings = _settings(own, result)
            runs.append(FoundRun(own, {key: str(value) for key, value in settings.items()}, result))
    return runs


def _settings(folder: RunFolder, result: dict[str, Any] | None) -> dict[str, Any]:
    """Of ``config.yaml``, else of the result, as of published runs; none where both are damaged: it is listed all the same."""
    if not folder.config.exists() and result is not None:
        return flatten(result["config"]) | {key: result[key] for key in ("scale", "seed")}
    try:
        return flatten(yaml.load(folder.config.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, OSError, AttributeError):
        return {}


def _kept(runs: list[FoundRun], text: str) -> list[FoundRun]:
    key, _, values = text.partition("=")
    wanted = values.split(",")

    def value(run: FoundRun) -> str | None:
        return run.state if key == "state" else run.settings.get(SHORT.get(key, key))

    there = {found for run in runs if (found := value(run)) is not None}
    if not there:
        known = sorted({name for run in runs for name in run.settings} | {"state", *SHORT})
        raise UserError(f"{key} is no setting of these runs.{nearest(key, known)}")
    missing = [one for one in wanted if not any(_same(one, other) for other in there)]
    if missing:
        is_state = key == "state" and missing[0] in STATES  # which is no slip of another
        meant = "" if is_state else nearest(missing[0], there)
        raise UserError(f"{key}={missing[0]}: no run has it; allowed: {', '.join(sorted(there))}.{meant}")
    return [run for run in runs if any(_same(one, value(run) or "") for one in wanted)]


def _same(first: str, second: str) -> bool:
    """Whether two texts say one value: 1e-3 is 0.001."""
    try:
        return first == second or float(first) == float(second)
    except ValueError:
        return False


def _differences(runs: list[FoundRun]) -> list[str]:
    """Of each run the settings in which runs of its task, scale and encoding differ."""
    groups: dict[tuple[str, str, str], list[FoundRun]] = {}
    for run in runs:
        groups.setdefault((run.folder.task, run.settings.get("scale", ""), run.folder.encoding), []).append(run)
    told = {}
    for group in groups.values():
        keys = [
            key
            for key in dict.fromkeys(key for run in group for key in run.settings)
            if key not in HIDDEN
            and not key.startswith("logger.")
            and len({run.settings[key] for run in group if key in run.settings}) > 1
        ]
        for run in group:  # all of them, however many: one left out may be the one that tells two runs apart
            told[run.folder.path] = " ".join(f"{key}={run.settings[key]}" for key in keys if key in run.settings)
    return [told[run.folder.path] for run in runs]
