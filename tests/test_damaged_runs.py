"""Runs that cannot go on: the message says why, and no file of theirs is changed or lost."""

from __future__ import annotations

import pickle
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from omegaconf import DictConfig
from runs import after_step, contents, folder_of, run

from cope.cli import BUSY, reporting_errors
from cope.errors import UserError
from cope.run.experiment import Experiment
from cope.run.folder import RunFolder
from cope.run.loop import Interrupted, TrainingLoop

Compose = Callable[..., DictConfig]
SHORT = ("pe=none", "trainer.steps=18", "trainer.eval_every=5", "task.num_validation=32", "task.num_test=16")


@pytest.fixture
def stopped(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> tuple[DictConfig, RunFolder]:
    """A run that was stopped after step 7."""
    config = compose(*SHORT)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingLoop, "_should_stop", after_step(7, lambda loop: setattr(loop, "_stop", True)))
        run(config)
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
    monkeypatch.setattr("cope.run.loop.code_fingerprint", lambda: "0123456789abcdef")
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
