"""The command line as a user meets it: help, completion, sweeps, Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ENCODINGS, TASKS, WITH_JOBS
from omegaconf import DictConfig
from runs import after_step, clean_environment, command, folder_of, run, train, train_here

from cope.cli import reporting_errors
from cope.endings import INTERRUPTED, LEFT_OVER
from cope.errors import Interrupted, UserError
from cope.run.folder import RunFolder
from cope.run.loop import TrainingLoop

TINY = ("scale=smoke", "logger=none", "trainer.steps=4", "trainer.eval_every=2", "task.num_test=16")


# ---- what asks for no run ------------------------------------------------------------------------------------------------


def test_help(tmp_path: Path) -> None:
    shown = train("--help", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    told = " ".join(shown.stdout.split())
    assert f"pe={', '.join(ENCODINGS)}" in told and f"task={', '.join(TASKS)}" in told
    assert "logger=none, wandb" in told and "scale=laptop, night, paper, smoke" in told
    assert "trainer.accumulate=1 micro-batches a step, to save memory" in told  # each key with its value and meaning
    assert "${" not in told and "pe.num_positions=16 vectors in the table" in told  # what the recipe makes of it
    assert not any(tmp_path.iterdir())


def test_the_settings_of_a_run_can_be_looked_at(tmp_path: Path) -> None:
    shown = train_here("--cfg", "job", "--resolve", "pe=rope", "task=flip_flop", "scale=paper", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    settings = yaml.safe_load(shown.stdout)
    assert (settings["pe"]["name"], settings["task"]["name"], settings["scale"]) == ("rope", "flip_flop", "paper")
    assert settings["trainer"]["steps"] == 10000
    assert not any(tmp_path.iterdir())


def test_shell_completion(tmp_path: Path) -> None:
    shown = train_here("-sc", "install=bash", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "complete " in shown.stdout


# ---- how a run ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UserError("model.dim=0 is too small."), 1, "model.dim=0 is too small.\n"),
        (Interrupted("Stopped after step 3."), INTERRUPTED, "Stopped after step 3.\n"),
        (KeyboardInterrupt(), INTERRUPTED, "Stopped; the same command goes on from there.\n"),
    ],
)
def test_errors_become_messages(
    error: BaseException, status: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as stopped, reporting_errors():
        raise error
    assert stopped.value.code == status
    assert capsys.readouterr() == ("", told)


def test_our_own_bugs_keep_their_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(ZeroDivisionError), reporting_errors():
        raise ZeroDivisionError
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError), reporting_errors():
        raise UserError


def wait_for_a_measurement(folder: RunFolder, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not folder.metrics.exists() or not folder.metrics.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow  # starts a command, and waits for its PyTorch
def test_interrupting_loses_nothing(
    compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    endless = ("scale=smoke", "logger=none", "pe=none", "trainer.steps=1000000", "trainer.eval_every=1000000")
    config = compose(*endless)
    folder = folder_of(config)
    process = subprocess.Popen(
        command(*endless, folder=tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=clean_environment(),
    )  # fmt: skip
    try:
        wait_for_a_measurement(folder, process)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED
    found = re.search(r"^Stopped after step (\d+) of 1000000; the same command goes on from there\.\n\Z", told, re.MULTILINE)
    assert found, told
    step = int(found[1])
    assert step >= 5
    # The same settings again, here, for three steps more.
    monkeypatch.setattr(TrainingLoop, "_end_if_asked", after_step(step + 3, lambda loop: loop.interruption.ask(signal.SIGINT)))
    with caplog.at_level("INFO"), pytest.raises(Interrupted, match=f"Stopped after step {step + 3} "):
        run(config)
    assert f"continuing at step {step} of 1000000" in caplog.text
    steps = [line["step"] for line in folder.read_metrics()]
    assert steps == sorted(set(steps))


# ---- sweeps --------------------------------------------------------------------------------------------------------------


def table_of(output: str) -> list[list[str]]:
    """The rows of the one table that ends a sweep's output."""
    assert output.count("mean (standard deviation over seeds)") == 1
    table = output.split("mean (standard deviation over seeds)")[1].split("\n\n")[0]
    return [line.split() for line in table.splitlines()[1:]]


@WITH_JOBS
@pytest.mark.parametrize("launcher", ["local", pytest.param("basic", marks=pytest.mark.slow)])
def test_a_failing_job_does_not_stop_the_others(tmp_path: Path, launcher: str) -> None:
    # No loss stays finite with such a rate.
    sweep = train_here("-m", "pe=none", "optimizer.lr=1e30,1e-3", f"hydra/launcher={launcher}", *TINY, folder=tmp_path)
    assert sweep.returncode == LEFT_OVER, sweep.stderr
    errors = sweep.stderr.splitlines()
    assert errors[-2].startswith("FAILED: python train.py pe=none optimizer.lr=1e+30 ") and "The loss became " in errors[-2]
    assert errors[-1] == "1 of 2 runs are not finished; the same command runs only those."
    assert "Traceback" not in sweep.stderr
    header, *rows = table_of(sweep.stdout)
    assert rows[0][:4] == ["encoding", "seeds", "validation", "distribution"] and header[:2] == ["in", "OOD"], sweep.stdout
    assert [row[:2] for row in rows[2:] if row[0] != "Scale"] == [["none", "1"]]
    if launcher == "local":
        assert sum("] FAILED: python train.py pe=none" in line for line in sweep.stdout.splitlines()) == 1  # at once


def test_a_sweep_with_wrong_settings_is_refused_before_any_job(tmp_path: Path) -> None:
    # RoPE needs an even head size, and this one is 9.
    sweep = train_here("-m", "pe=rope,none", "model.dim=18", *TINY, folder=tmp_path)
    assert (sweep.returncode, sweep.stdout) == (1, "")
    assert "even head size" in sweep.stderr and len(sweep.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_a_sweep_ends_with_one_table_and_is_not_repeated(tmp_path: Path, launcher: str) -> None:
    arguments = ("-m", "pe=none,cope", "seed=1,2", f"hydra/launcher={launcher}", *TINY)
    first = train(*arguments, folder=tmp_path)
    assert first.returncode == 0, first.stderr
    rows = table_of(first.stdout)
    assert [row[:2] for row in rows if row[0] in ("none", "cope")] == [["none", "2"], ["cope", "2"]]
    assert len(list((tmp_path / "outputs").glob("counting/*/*/seed=*/result.json"))) == 4
    assert first.stdout.startswith("0 of 4 runs are finished\n") and first.stdout.count("%; ") == 4
    again = train(*arguments, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert table_of(again.stdout) == rows
    assert again.stdout.startswith("4 of 4 runs are finished\n") and "%; " not in again.stdout
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"counting"}
