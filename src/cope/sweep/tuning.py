"""Tuning that is equal for every encoding, and on file: what is searched, and which trial comes next.

An encoding has a study of Optuna's in one SQLite file a task. A trial is a row of overrides, run with the tuning seeds of
``configs/tuning.yaml``; its value is the mean of their validation losses. Trials that do worse than the median of those before
them are broken off, and count. Ranges are of whole powers, so that it is exact whether a best value is at an end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import yaml
from omegaconf import DictConfig, OmegaConf
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from cope.errors import UserError
from cope.files import write_text

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
STARTUP_TRIALS = 6  # drawn at random, the same for every encoding as far as they share what is searched
DRAWS = 100  # after so many of trials that were made already, there are no others


@dataclass(frozen=True)
class Range:
    """``start``, ``start * factor``, ...: ``num`` values, to begin with; whole ones if ``start`` is."""

    start: int | float
    factor: float
    num: int

    def value(self, power: int) -> int | float:
        """Rounded to three digits, as one would type it."""
        value = self.start * self.factor**power
        return round(value) if isinstance(self.start, int) else float(f"{value:.3g}")

    def widened(self, best: int) -> tuple[int, int]:
        """The least power and the greatest, one beyond ``best`` if that is at an end; never to 0."""
        low = best - 1 if self.value(best - 1) > 0 else best
        return min(0, low), max(self.num - 1, best + 1)

    def power(self, value: float) -> int:
        """Of the value that is nearest; of 0, to which no power comes, the least."""
        return 0 if value <= 0 else round(math.log(value / self.start, self.factor))


Space = Mapping[str, Range | list[Any]]


@dataclass(frozen=True)
class Search:
    """What ``configs/tuning.yaml`` says."""

    seeds: tuple[int, ...]
    num_trials: int
    every: Space
    own: Mapping[str, Space]

    def space(self, encoding: str) -> Space:
        """What is searched for an encoding: first what all share, so that all draw the same."""
        return {**self.every, **self.own.get(encoding, {})}


def read_search(path: Path) -> Search:
    """The search that ``path`` describes."""
    content = yaml.safe_load(path.read_text())
    own = {encoding: _space(keys) for encoding, keys in content["own"].items()}
    return Search(tuple(content["seeds"]), content["trials"], _space(content["every"]), own)


def _space(keys: Mapping[str, Any]) -> Space:
    return {key: values if isinstance(values, list) else _range(values) for key, values in keys.items()}


def _range(values: Mapping[str, Any]) -> Range:
    start, last, factor = (values[key] for key in ("from", "to", "factor"))
    return Range(start, factor, 1 + round(math.log(last / start, factor)))


class Tuning:
    """The study of one encoding on one task.

    Args:
        storage: of the task.
        overrides: of every trial; a study is of the same ones throughout.
        recipe: what ``train.py`` composes without a trial's: the first trial is as near to it as the ranges have it.
    """

    def __init__(
        self, storage: RDBStorage, encoding: str, search: Search, overrides: Sequence[str], recipe: DictConfig
    ) -> None:
        self.encoding = encoding
        self.search = search
        self.space = search.space(encoding)
        self.study = optuna.create_study(
            storage=storage, study_name=encoding, load_if_exists=True, pruner=pruner(recipe.trainer.steps)
        )
        said = {"overrides": list(overrides), "seeds": list(search.seeds)}
        for key, value in said.items():
            if self.study.user_attrs.setdefault(key, value) != value:
                raise UserError(
                    f"{key}={value}: the trials of pe={encoding} so far had {self.study.user_attrs[key]}, so they could not be "
                    "compared; allowed: the same, or another folder=."
                )
            self.study.set_user_attr(key, value)
        if not self.study.trials:
            self.study.enqueue_trial(_start(self.space, recipe))

    @property
    def trials(self) -> list[FrozenTrial]:
        """Those that count: finished, broken off for doing badly, or not finished yet."""
        return [trial for trial in self.study.trials if trial.state in COUNTED]

    def unfinished(self) -> list[Trial]:
        """Those that a command left when it was stopped: they go on from their checkpoints."""
        return [Trial(self.study, trial._trial_id) for trial in self.trials if trial.state == TrialState.RUNNING]

    def ask(self) -> Trial | None:
        """The next trial; None if there are enough, or every combination was tried."""
        if len(self.trials) >= self.search.num_trials:
            return None
        for _ in range(DRAWS):
            made = [trial.params for trial in self.trials]
            # Of the number alone, so that a search that was stopped goes on as one that was not.
            seed = len(self.study.trials)
            self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, constant_liar=True, seed=seed)
            trial = self.study.ask()
            self._suggest(trial)
            if trial.params not in made:
                return trial
            self.study.tell(trial, state=TrialState.FAIL)
        return None

    def _suggest(self, trial: Trial) -> None:
        best = self.best()
        for key, values in self.space.items():
            if isinstance(values, list):
                trial.suggest_categorical(key, values)
                continue
            trial.suggest_int(key, *((0, values.num - 1) if best is None else values.widened(best.params[key])))

    def best(self) -> FrozenTrial | None:
        """The finished trial of the lowest loss."""
        finished = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        return min(finished, key=lambda trial: trial.value or 0.0, default=None)

    def at_an_end(self) -> list[str]:
        """The keys whose best value is at an end of what was tried, so that a better one may lie beyond."""
        best = self.best()
        if best is None:
            return []
        tried = {key: [trial.params[key] for trial in self.trials] for key in self.space}
        return [
            key
            for key, values in self.space.items()
            if isinstance(values, Range) and best.params[key] in (min(tried[key]), max(tried[key]))
        ]

    def overrides(self, trial: Trial | FrozenTrial) -> tuple[str, ...]:
        """What a trial changes."""
        return tuple(
            f"{key}={_typed(values.value(trial.params[key]) if isinstance(values, Range) else trial.params[key])}"
            for key, values in self.space.items()
        )


def _start(space: Space, recipe: DictConfig) -> dict[str, Any]:
    """The place in ``space`` that is nearest to ``recipe``."""
    start: dict[str, Any] = {}
    for key, values in space.items():
        value = OmegaConf.select(recipe, key)
        if isinstance(values, Range):
            start[key] = min(max(values.power(value), 0), values.num - 1)
        elif value in values:
            start[key] = value
    return start


def pruner(num_steps: int) -> optuna.pruners.BasePruner:
    """Breaks off what is worse than the median; not in the first third of the steps, where a task may not be learned yet."""
    return optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=num_steps // 3)


def storage_of(path: Path) -> RDBStorage:
    """The SQLite file of a task; several processes may write to it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})


def write_trials(tunings: Sequence[Tuning], path: Path) -> None:
    """Every trial of a task in one small file."""
    rows = []
    for tuning in tunings:
        for trial in tuning.trials:
            losses = trial.user_attrs.get("losses", [])
            rows.append(
                {
                    "encoding": tuning.encoding,
                    "trial": trial.number,
                    "state": {"PRUNED": "broken off", "RUNNING": "not finished"}.get(trial.state.name, "finished"),
                    "loss": _number(trial.value) if trial.state == TrialState.COMPLETE else None,
                    **{f"loss, seed {seed}": _number(loss) for seed, loss in zip(tuning.search.seeds, losses, strict=False)},
                    "steps": " ".join(map(str, trial.user_attrs.get("steps", []))),
                    "seconds": str(trial.user_attrs.get("time_s", "")),
                    "settings": " ".join((*tuning.study.user_attrs["overrides"], *tuning.overrides(trial))),
                }
            )
    write_text(path, pd.DataFrame(rows).sort_values(["encoding", "trial"]).to_csv(index=False, lineterminator="\n"))


def _typed(value: Any) -> str:
    """As Hydra reads it."""
    return "null" if value is None else str(value)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.5g}"
