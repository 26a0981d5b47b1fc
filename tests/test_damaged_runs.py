"""Runs that cannot go on: the message says why, and no file of theirs is changed or lost."""

from __future__ import annotations

import math
import os
import pickle
import platform
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed_in
from omegaconf import DictConfig
from runs import after_step, contents, folder_of, run

from cope.cli import reporting_errors
from cope.endings import BUSY
from cope.errors import Interrupted, UserError
from cope.files import write_text
from cope.run.experiment import Experiment
from cope.run.folder import RunFolder
from cope.run.loop import TrainingLoop
from cope.run.trained import load_trained

Compose = Callable[..., DictConfig]
SHORT = (
    *("pe=none", "trainer.steps=18", "trainer.eval_every=5", "trainer.eval_splits=[]"),
    *("task.num_validation=32", "task.num_test=16"),
)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a run that was stopped after step 7."""
    config = composed_in(tmp_path_factory.mktemp("stopped"), *SHORT)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingLoop, "_end_if_asked", after_step(7, lambda loop: loop.interruption.ask(signal.SIGINT)))
        run(config)
    return Path(config.output_dir)


@pytest.fixture
def stopped(compose: Compose, kept: Path) -> tuple[DictConfig, RunFolder]:
    """A run that was stopped after step 7."""
    config = compose(*SHORT)
    shutil.copytree(kept, config.output_dir)
    return config, folder_of(config)


def check_refused(config: DictConfig, folder: RunFolder, expected: str) -> None:
    """Going on is refused, with every file as it was."""
    before = contents(folder.path)
    with pytest.raises(UserError) as error:
        run(config)
    assert re.search(expected, str(error.value)), str(error.value)
    assert contents(folder.path) == before


Damage = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:100],
        lambda content: b"",
        lambda content: b"no checkpoint",
        lambda content: bytes(1000),
        lambda content: pickle.dumps({"model": {}}, protocol=2),
        lambda content: content.replace(b"PK", b"KP"),
    ],
)
def test_a_damaged_checkpoint(stopped: tuple[DictConfig, RunFolder], damage: Damage) -> None:
    config, folder = stopped
    folder.last_checkpoint.write_bytes(damage(folder.last_checkpoint.read_bytes()))
    check_refused(config, folder, r"last\.pt (cannot be read|is not a checkpoint).*force=true|last\.pt is not a checkpoint")


@pytest.mark.parametrize("content", [[1, 2, 3], {"state_dict": {}}, {"model": {}}])
def test_a_checkpoint_of_something_else(stopped: tuple[DictConfig, RunFolder], content: object) -> None:
    config, folder = stopped
    torch.save(content, folder.last_checkpoint)
    check_refused(config, folder, r"last\.pt is not a checkpoint of this project")


def test_other_code(stopped: tuple[DictConfig, RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cope.run.checkpoint.code_fingerprint", lambda: "0123456789abcdef")
    check_refused(*stopped, r"last\.pt was written by other code .* force=true")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text.replace("steps: 18", "steps: 19"), "differs from the settings of this command.*force=true"),
        (lambda text: "steps: [", "config.yaml cannot be read.*force=true"),
        (lambda text: "", "config.yaml is not a run's configuration.*force=true"),
    ],
)
def test_an_edited_configuration(stopped: tuple[DictConfig, RunFolder], change: Callable[[str], str], expected: str) -> None:
    config, folder = stopped
    folder.config.write_text(change(folder.config.read_text()))
    check_refused(config, folder, "(?s)" + expected)


def test_a_damaged_result(stopped: tuple[DictConfig, RunFolder]) -> None:
    config, folder = stopped
    folder.result.write_text('{"task": ')
    check_refused(config, folder, r"result\.json cannot be read.*force=true")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"step": 999}, r"last\.pt is damaged: it is of step 999 of 18.*force=true"),
        ({"step": "seven"}, r"last\.pt is damaged: its step is 'seven'.*force=true"),
        ({"optimizer": None}, r"last\.pt is damaged: it has no optimizer.*force=true"),
        ({"best": None}, r"last\.pt is damaged: it has no best.*force=true"),
        ({"model": {}}, r"last\.pt is not of the model.*force=true"),
        ({"model": "weights"}, r"last\.pt is not of the model.*force=true"),
    ],
)
def test_a_checkpoint_that_was_changed(stopped: tuple[DictConfig, RunFolder], change: dict[str, Any], expected: str) -> None:
    config, folder = stopped
    state = torch.load(folder.last_checkpoint, weights_only=True) | change
    torch.save({key: value for key, value in state.items() if value is not None}, folder.last_checkpoint)
    check_refused(config, folder, "(?s)" + expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers(stopped: tuple[DictConfig, RunFolder], value: float) -> None:
    config, folder = stopped
    for path in (folder.last_checkpoint, folder.best_checkpoint):
        state = torch.load(path, weights_only=True)
        next(iter(state["model"].values()))[0, 0] = value
        torch.save(state, path)
    check_refused(config, folder, r"last\.pt is damaged: \S+ holds NaN or infinite weights.*force=true")
    with pytest.raises(UserError, match=r"best\.pt is damaged: \S+ holds NaN"):
        load_trained(folder)


@pytest.mark.parametrize("step", ["-1", '"5"', "NaN", "4", "null", "true", "5.0"])
def test_measurements_with_a_wrong_step(stopped: tuple[DictConfig, RunFolder], step: str) -> None:
    config, folder = stopped
    lines = folder.metrics.read_text().splitlines()
    lines.insert(1, f'{{"step": {step}, "train/loss": 1.0}}')
    folder.metrics.write_text("\n".join(lines) + "\n")
    check_refused(config, folder, r"metrics\.jsonl, line 2, is damaged: .*force=true")


def test_a_measurement_that_is_no_number(stopped: tuple[DictConfig, RunFolder]) -> None:
    config, folder = stopped
    folder.metrics.write_text(folder.metrics.read_text() + '{"step": 7, "train/loss": NaN}\n')
    check_refused(config, folder, r"metrics\.jsonl, line \d+, is damaged: .*force=true")


def test_measurements_that_are_gone(stopped: tuple[DictConfig, RunFolder]) -> None:
    config, folder = stopped
    folder.metrics.unlink()
    check_refused(config, folder, r"metrics\.jsonl has no validation at step 5, of which .*last\.pt tells.*force=true")


@pytest.mark.parametrize("name", ["last", "best"])
def test_checkpoints_that_are_gone(compose: Compose, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    config = compose(*SHORT)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingLoop, "_end_if_asked", after_step(12, lambda loop: loop.interruption.ask(signal.SIGINT)))
        run(config)
    folder = folder_of(config)
    (folder.last_checkpoint.parent / f"{name}.pt").unlink()
    check_refused(config, folder, rf"{name}\.pt does not exist, though .*Put it back.*force=true")


def test_a_run_that_was_killed_at_its_first_validation_begins_again(stopped: tuple[DictConfig, RunFolder]) -> None:
    config, folder = stopped
    folder.last_checkpoint.unlink()  # written after best.pt
    assert run(config)[1]["steps"] == 18


def test_two_processes_want_the_same_folder(stopped: tuple[DictConfig, RunFolder]) -> None:
    config, folder = stopped
    folder.lock()
    check_refused(config, folder_of(config), r"is being written by another process\. The same command is already running")
    with pytest.raises(SystemExit) as ended, reporting_errors():  # with a status of its own: a table leaves such a run alone
        Experiment(config).run(show_progress=False)
    assert ended.value.code == BUSY


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """What is written beyond ``num_bytes`` of a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_checkpoint(stopped: tuple[DictConfig, RunFolder]) -> None:
    config, folder = stopped
    checkpoints = contents(folder.last_checkpoint.parent)
    with files_limited_to(8192), pytest.raises(UserError, match=r"(last|best)\.pt cannot be written: .*nothing .* is lost"):
        run(config)
    assert contents(folder.last_checkpoint.parent) == checkpoints  # and no file half written
    assert run(config)[1]["steps"] == 18


def test_too_little_memory_names_what_to_lower_and_the_run_goes_on(
    stopped: tuple[DictConfig, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = stopped

    def take_too_much(*_: object) -> None:
        torch.empty(2**60, dtype=torch.int8)

    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr("cope.run.step.TrainingStep.__call__", take_too_much)
        run(config)
    for told in (
        "trainer.threads=1",
        "trainer.batch_size (now 16)",
        "trainer.accumulate (now 1)",
        "task.context",
        str(folder.path),
    ):
        assert told in str(error.value)
    config.trainer.threads = 1
    assert run(config)[1]["steps"] == 18 and folder_of(config).path == folder.path


def test_a_write_clears_up_after_one_that_was_killed(tmp_path: Path) -> None:
    """Half a file of a process that is no more goes; that of one which goes on, or of another machine, stays."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    path = tmp_path / "last.pt"
    names = [
        f".last.pt.{node}.{pid}.0123"
        for node, pid in ((platform.node(), ended.pid), (platform.node(), os.getpid()), ("elsewhere", ended.pid))
    ]
    for name in names:
        (tmp_path / name).touch()
    write_text(path, "whole")
    assert sorted(found.name for found in tmp_path.iterdir()) == sorted(["last.pt", *names[1:]])


def test_a_full_disk_while_measurements_are_written(
    stopped: tuple[DictConfig, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = stopped
    size = folder.metrics.stat().st_size
    monkeypatch.setattr(TrainingLoop, "_save", lambda *_, **__: None)  # checkpoints are larger and would fail first
    with files_limited_to(size + 50), pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: .*same command again"):
        run(config)
    monkeypatch.undo()
    assert run(config)[1]["steps"] == 18
    assert [line["step"] for line in folder.read_metrics()] == [5, 5, 10, 10, 15, 15, 18, 18, 18]
