"""Tuning: the same search for every encoding, resumable, on file, and blind to every split but validation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from conftest import CONFIGS, ROOT
from omegaconf import DictConfig
from runs import clean_environment, command_here

from cope.endings import BUSY
from cope.errors import UserError
from cope.files import lock
from cope.run.folder import RunFolder
from cope.sweep import trial as trial_module
from cope.sweep.trial import TrialRun
from cope.sweep.tuner import Tuner
from cope.sweep.tuning import Range, Tuning, read_search, storage_of, write_trials
from cope.tasks.base import Task
from cope.tasks.synthetic import SyntheticTask

Compose = Callable[..., DictConfig]
SEARCH = read_search(CONFIGS / "tuning.yaml")


def tuning(folder: Path, compose: Compose, encoding: str, num_trials: int = 8, overrides: tuple[str, ...] = ()) -> Tuning:
    search = replace(SEARCH, num_trials=num_trials)
    return Tuning(storage_of(folder / "tuning.db"), encoding, search, overrides, compose(f"pe={encoding}"))


def test_ranges_are_of_whole_powers_and_widen_at_the_best() -> None:
    steps = Range(25, 2, 5)
    assert [steps.value(power) for power in range(-2, 5)] == [6, 12, 25, 50, 100, 200, 400]
    assert steps.widened(2) == (0, 4)
    assert steps.widened(0) == (-1, 4) and steps.widened(-1) == (-2, 4)
    assert steps.widened(4) == (0, 5) and steps.widened(6) == (0, 7)
    assert Range(1, 2, 3).widened(0) == (0, 2)  # half of 1 is no number of steps
    assert steps.power(0) == 0  # a recipe without warm-up begins at the least
    assert Range(0.0005, 2, 5).value(3) == 0.004 and Range(0.0005, 2, 5).power(0.0038) == 3


def test_every_encoding_has_the_same_search(tmp_path: Path, compose: Compose) -> None:
    drawn = {}
    for encoding in ("cope", "rope", "none"):
        asked = tuning(tmp_path, compose, encoding)
        for _ in range(3):
            trial = asked.ask()
            assert trial is not None
            drawn.setdefault(encoding, []).append([trial.params[key] for key in SEARCH.every])
            asked.study.tell(trial, 1.0 - abs(trial.number - 3) / 10)
    assert drawn["cope"][0] == drawn["rope"][0] == drawn["none"][0]  # the recipe's
    assert len({str(draws) for draws in drawn.values()}) <= 2  # those that share what is searched draw the same
    assert set(tuning(tmp_path, compose, "cope").space) > set(tuning(tmp_path, compose, "none").space)


def test_a_search_that_was_stopped_goes_on_as_one_that_was_not(tmp_path: Path, compose: Compose) -> None:
    found = []
    for folder, pieces in ((tmp_path / "whole", [8]), (tmp_path / "broken", [3, 5])):
        params: list[dict[str, Any]] = []
        for piece in pieces:
            asked = tuning(folder, compose, "cope")  # as a new command opens it
            for _ in range(piece):
                trial = asked.ask()
                assert trial is not None and trial.params not in params
                params.append(trial.params)
                reach = trial.distributions["optimizer.lr"].high  # type: ignore[attr-defined]
                asked.study.tell(trial, abs(trial.params["optimizer.lr"] - 4) + 0.1 * trial.params["optimizer.warmup_steps"])
        assert asked.ask() is None  # there are enough
        found.append(params)
    assert found[0] == found[1]
    assert reach == 5  # beyond the range, whose end was best


def test_trials_that_would_not_compare_are_refused(tmp_path: Path, compose: Compose) -> None:
    tuning(tmp_path, compose, "rope", overrides=("trainer.steps=5",))
    with pytest.raises(
        UserError, match=r"overrides=\['trainer.steps=6'\]: the trials of pe=rope so far had \['trainer.steps=5'\]"
    ):
        tuning(tmp_path, compose, "rope", overrides=("trainer.steps=6",))


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that were asked for."""
    asked: list[str] = []
    real = SyntheticTask.evaluation_examples

    def evaluation_examples(task: SyntheticTask, split: str) -> object:
        asked.append(split)
        return real(task, split)

    def refuse(task: Task, *_: object) -> None:
        raise AssertionError("only validation may be looked at")

    monkeypatch.setattr(SyntheticTask, "evaluation_examples", evaluation_examples)
    monkeypatch.setattr(SyntheticTask, "watched_examples", refuse)
    monkeypatch.setattr(SyntheticTask, "specimen", refuse)
    monkeypatch.setattr(trial_module, "output_to", lambda log: None)
    return asked


def trial_run(tmp_path: Path, asked: Tuning, trial: optuna.trial.Trial) -> TrialRun:
    overrides = (
        *("task=counting", f"pe={asked.encoding}", "scale=smoke", "logger=none", "trainer.steps=6", "trainer.eval_every=2"),
        *(*asked.overrides(trial), f"output_dir={tmp_path}/runs"),
    )
    return TrialRun(CONFIGS, tmp_path / "tuning.db", asked.encoding, trial._trial_id, overrides, SEARCH.seeds)


def test_a_trial_looks_at_validation_alone(tmp_path: Path, compose: Compose, looked_at: list[str]) -> None:
    asked = tuning(tmp_path, compose, "cope")
    trial = asked.ask()
    assert trial is not None
    losses = trial_run(tmp_path, asked, trial)()
    assert isinstance(losses, list) and len(losses) == 2
    assert set(looked_at) == {"validation"}
    results = [RunFolder(path.parent).read_result() for path in sorted(tmp_path.glob("runs/*/*/*/*/result.json"))]
    assert [result and (result["seed"], list(result["splits"])) for result in results] == [
        (seed, ["validation"]) for seed in SEARCH.seeds
    ]
    asked.study.tell(trial, sum(losses) / 2)
    write_trials([asked], tmp_path / "trials.csv")
    (row,) = pd.read_csv(tmp_path / "trials.csv").to_dict("records")
    assert row["encoding"] == "cope" and row["state"] == "finished" and row["steps"] == "6 6"
    assert row["loss"] == pytest.approx(sum(losses) / 2, rel=1e-3)
    assert "pe.init_std=" in row["settings"] and "pe.gate_bias=" in row["settings"]


def test_a_trial_that_does_badly_is_broken_off_and_counts(tmp_path: Path, compose: Compose, looked_at: list[str]) -> None:
    asked = tuning(tmp_path, compose, "rope", num_trials=8)
    for _ in range(7):
        trial = asked.ask()
        assert trial is not None
        for step in (2, 4, 6):
            trial.report(0.0, step)
        asked.study.tell(trial, 0.0)
    trial = asked.ask()
    assert trial is not None
    assert trial_run(tmp_path, asked, trial)() == []
    asked.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert asked.ask() is None and len(asked.trials) == 8


def test_a_trial_is_told_in_80_columns_with_how_many_there_are(tmp_path: Path, compose: Compose) -> None:
    asked = tuning(tmp_path, compose, "cope", num_trials=3)
    tuner = Tuner([asked], lambda *_: None, 1, lambda: None)  # type: ignore[arg-type, return-value]  # nothing is run
    trials = [asked.study.ask() for _ in range(3)]
    for trial in trials:
        asked._suggest(trial)
    asked.study.tell(trials[0], state=optuna.trial.TrialState.FAIL)  # as one that was drawn twice
    first = tuner._told(asked, trials[1], [1.25, 1.75], 61.0).splitlines()
    assert first[0] == "cope trial 1 (1 of 3): validation loss 1.5, lowest so far 1.5; 61 s"
    assert first[1].startswith("    optimizer.lr=") and max(map(len, first)) <= 80
    assert " ".join(line.strip() for line in first[1:]) == " ".join(asked.overrides(trials[1]))
    assert tuner._told(asked, trials[2], [1.25], 5.0).startswith(
        "cope trial 2 (2 of 3): broken off, worse than the median; 5 s\n"
    )


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        return command_here("scripts/tune.py", f"folder={tmp_path}", f"to={tmp_path}", "task=counting", *arguments).stderr

    assert "pe=cpe is not known; allowed: absolute," in said("pe=cpe")
    told = said("pe=cope", "trainer.stps=4", "optimizer.lr=0.1", "output_dir=elsewhere")
    assert "trainer.stps is not a setting" in told
    assert "optimizer.lr is what trials set themselves" in told and "output_dir is what trials set" in told


def test_a_second_command_beside_the_first_is_refused(tmp_path: Path) -> None:
    with lock(tmp_path / "counting.lock"):
        done = command_here(
            "scripts/tune.py", "task=counting", "pe=rope", "scale=smoke", f"folder={tmp_path}", f"to={tmp_path}"
        )
    assert (done.returncode, "Traceback" in done.stderr) == (BUSY, False)
    assert f"{tmp_path} is being written by another process." in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["counting.lock"]


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    settings = ("scale=smoke", "trials=2", "jobs=2", f"folder={tmp_path}/runs", f"to={tmp_path}")
    command = [sys.executable, "scripts/tune.py", "task=counting", "pe=rope,none", *settings]
    for limit in ("limit=1", "limit=300"):  # stopped as soon as it begins, and then to the end
        done = subprocess.run([*command, limit], capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=400)
        assert done.returncode == (3 if limit == "limit=1" else 0), done.stderr
    trials = pd.read_csv(tmp_path / "counting.csv")
    assert list(trials["encoding"]) == ["none", "none", "rope", "rope"]
    assert set(trials["state"]) == {"finished"}
