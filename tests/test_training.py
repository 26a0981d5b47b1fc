"""Training: broken and unbroken runs agree to the bit, divergence is noticed, finished runs are left alone."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from runs import after_step, contents, folder_of, release, run, same_tensors, without_times

from cope.errors import Interrupted, UserError
from cope.run import experiment
from cope.run.evaluation import Validated, Validation
from cope.run.folder import RunFolder
from cope.run.loop import Diverged, TrainingLoop
from cope.run.optimizer import OptimizerSettings
from cope.tasks.flip_flop import FlipFlop

Compose = Callable[..., DictConfig]
SHORT = (
    *("trainer.steps=18", "trainer.eval_every=5", "trainer.eval_splits=[]", "trainer.log_every=4"),
    *("task.num_validation=32", "task.num_test=16"),
)


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def ask_to_stop(_: TrainingLoop) -> None:
    signal.raise_signal(signal.SIGINT)


def terminate(_: TrainingLoop) -> None:
    signal.raise_signal(signal.SIGTERM)


def kill(loop: TrainingLoop) -> None:
    with loop.folder.metrics.open("a") as file:
        file.write('{"step": 17, "train/lo')
    raise Killed


@pytest.fixture
def pair(compose: Compose, tmp_path: Path) -> Callable[..., tuple[DictConfig, DictConfig]]:
    """``pair(*overrides)``: the same short run in two places."""

    def made(*overrides: str) -> tuple[DictConfig, DictConfig]:
        first, second = compose(*SHORT, *overrides), compose(*SHORT, *overrides)
        second.output_dir = str(tmp_path / "elsewhere")
        return first, second

    return made


def check_same(first: RunFolder, second: RunFolder) -> None:
    assert without_times(first) == without_times(second)
    assert same_tensors(first.last_checkpoint, second.last_checkpoint)
    assert same_tensors(first.best_checkpoint, second.best_checkpoint)


@pytest.mark.parametrize(
    ("settings", "breaks"),
    [
        # At a validation, of other splits too, and once round the 16 batches of the training set.
        (["trainer.eval_splits=auto"], [(10, ask_to_stop)]),
        (["model.dropout=0.2", "trainer.accumulate=2"], [(7, ask_to_stop)]),
        (["task=flip_flop", "pe=rope", "task.num_pairs=6"], [(3, terminate), (13, ask_to_stop)]),  # endless training data
        (["model.dropout=0.1", "task.loss=everywhere"], [(17, kill)]),  # leaves last.pt of step 15, and half a line
        (["pe=absolute"], [(2, kill)]),  # before there is any checkpoint
        (["pe=none"], [(18, ask_to_stop)]),  # trained to the end, not scored
    ],
)
def test_a_broken_run_ends_as_an_unbroken_one(
    pair: Callable[..., tuple[DictConfig, DictConfig]],
    monkeypatch: pytest.MonkeyPatch,
    settings: list[str],
    breaks: list[tuple[int, Callable[[TrainingLoop], None]]],
) -> None:
    monkeypatch.setattr(FlipFlop, "epoch_size", 64)  # four batches, so that epochs end
    unbroken, broken = pair(*settings)
    whole, _ = run(unbroken)
    for step, act in breaks:
        with monkeypatch.context() as patch, pytest.raises((Interrupted, Killed)) as stopped:
            patch.setattr(TrainingLoop, "_end_if_asked", after_step(step, act))
            run(broken)
        if act is not kill:
            assert f"Stopped after step {step} of 18" in str(stopped.value)
        assert not folder_of(broken).result.exists()
    resumed, _ = run(broken)
    check_same(whole, resumed)


def test_a_run_killed_just_before_its_result_ends_as_an_unbroken_one(
    pair: Callable[..., tuple[DictConfig, DictConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise Killed

    unbroken, broken = pair("pe=none")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(experiment, "write_json", fail)
        run(broken)
    check_same(run(unbroken)[0], run(broken)[0])


def test_the_best_checkpoint_may_be_from_before_the_break(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Validation.is_best

    def worse_each_time(validation: Validation, found: Validated, step: int) -> bool:
        return real(validation, found._replace(headline=float(step)), step)

    monkeypatch.setattr(Validation, "is_best", worse_each_time)
    config = compose(*SHORT, "pe=none")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingLoop, "_end_if_asked", after_step(7, ask_to_stop))
        run(config)
    folder, result = run(config)
    assert result["best_step"] == 5
    assert torch.load(folder.best_checkpoint, weights_only=True)["step"] == 5


def test_the_same_seed_gives_the_same_run_and_another_does_not(
    pair: Callable[..., tuple[DictConfig, DictConfig]], compose: Compose
) -> None:
    first, second = pair("model.dropout=0.1")
    check_same(run(first)[0], run(second)[0])
    other, _ = run(compose(*SHORT, "model.dropout=0.1", "seed=2"))
    assert not same_tensors(folder_of(first).last_checkpoint, other.last_checkpoint)


def test_evaluation_does_not_move_training(compose: Compose) -> None:
    often, seldom = (run(compose(*SHORT, "model.dropout=0.2", f"trainer.eval_every={every}"))[0] for every in (1, 100))
    ends = [torch.load(folder.last_checkpoint, weights_only=True) for folder in (often, seldom)]
    assert all(torch.equal(ends[0]["model"][name], tensor) for name, tensor in ends[1]["model"].items())
    losses = [[line["train/loss"] for line in folder.read_metrics() if "train/loss" in line] for folder in (often, seldom)]
    assert len(losses[0]) == 5
    assert losses[0] == losses[1]


def test_accumulation_changes_nothing_but_rounding(compose: Compose) -> None:
    # Adam with a large epsilon is nearly plain gradient descent: with a small one, rounding of gradients near 0 is magnified.
    # Flip-flop, since its sequences have different numbers of answers: each answer must weigh the same in every micro-batch.
    settings = ("task=flip_flop", "optimizer.epsilon=1", "optimizer.lr=1", "optimizer.clip_norm=null", "trainer.steps=4")
    folders = [run(compose(*SHORT, *settings, f"trainer.accumulate={parts}"))[0] for parts in (1, 2, 4)]
    whole, *parted = (torch.load(folder.last_checkpoint, weights_only=True)["model"] for folder in folders)
    for weights in parted:
        for name, tensor in whole.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_rate_that_is_logged_is_the_schedules(compose: Compose) -> None:
    config = compose(*SHORT, "optimizer.schedule=linear", "optimizer.lr=1e-2", "pe=none")
    folder, _ = run(config)
    logged = {line["step"]: line["train/lr"] for line in folder.read_metrics() if "train/lr" in line}
    assert logged[4] == pytest.approx(1e-2 * 4 / 5)  # the fourth step's own, of five steps of warm-up
    assert logged[18] < logged[12] < logged[8]


# ---- divergence ----------------------------------------------------------------------------------------------------------


# Not a number must pass through every kind of attention.
DIVERGING = ["absolute", "relative", "cope"]


def explode_from(step: int) -> Callable[..., float]:
    return lambda settings, now, *_: 1e30 if now >= step else settings.lr


@pytest.mark.parametrize("encoding", DIVERGING)
def test_a_loss_that_is_not_a_number_ends_the_run(compose: Compose, encoding: str) -> None:
    config = compose(*SHORT, f"pe={encoding}", "optimizer.lr=1e30", "optimizer.clip_norm=null", "optimizer.warmup_steps=0")
    with pytest.raises(Diverged) as error:
        run(config)
    for part in (
        "nan at step 1;",
        "no checkpoint",
        "optimizer.lr (now 1e+30)",
        "optimizer.warmup_steps (now 0)",
        "clip_norm=1",
    ):
        assert part in str(error.value)
    folder = folder_of(config)
    assert not folder.last_checkpoint.exists()
    assert not folder.result.exists()


@pytest.mark.parametrize("first_bad", [11, 14])  # amid two validations; and the very step before one
def test_divergence_keeps_the_last_good_checkpoint(compose: Compose, monkeypatch: pytest.MonkeyPatch, first_bad: int) -> None:
    config = compose(*SHORT, "pe=none", "optimizer.clip_norm=null")
    monkeypatch.setattr(OptimizerSettings, "learning_rate", explode_from(first_bad))
    with pytest.raises(Diverged) as error:
        run(config)
    folder = folder_of(config)
    assert f"at step {first_bad + 1};" in str(error.value)
    assert f"the best checkpoint so far is {folder.best_checkpoint}" in str(error.value)
    for path in (folder.last_checkpoint, folder.best_checkpoint):
        state = torch.load(path, weights_only=True)
        assert state["step"] <= 10
        assert all(tensor.isfinite().all() for tensor in state["model"].values())
    for line in folder.metrics.read_text().splitlines():
        assert all(math.isfinite(value) for value in json.loads(line).values())
    monkeypatch.undo()
    release(folder)
    assert run(config)[1]["steps"] == 18  # and the run can go on from there


# ---- finished runs -------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_shown_and_not_repeated(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(*SHORT, "pe=none")
    folder, result = run(config)

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.name != ".lock"}

    before, files = times(), contents(folder.path)
    # What does not enter the numbers does not make another run either.
    again = compose(*SHORT, "pe=none", "trainer.threads=1")
    again.data_dir = str(folder.path)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "run", lambda *_: pytest.fail("it was trained again"))
        shown_folder, shown = run(again)
    assert shown_folder.path == folder.path
    assert shown == result
    assert (times(), contents(folder.path)) == (before, files)


def test_force_starts_over(compose: Compose) -> None:
    config = compose(*SHORT, "pe=none")
    folder, _ = run(config)
    kept = contents(folder.path)
    folder.result.write_text("{}")
    folder.figures.mkdir(exist_ok=True)
    (folder.figures / "old.png").touch()
    shutil.copy(folder.best_checkpoint, folder.last_checkpoint)
    run(compose(*SHORT, "pe=none", "force=true"))
    assert not (folder.figures / "old.png").exists()
    assert without_times(folder)[1]["steps"] == 18
    again = contents(folder.path)
    assert again.keys() == kept.keys()
    assert again["config.yaml"].replace(b"force: true", b"force: false") == kept["config.yaml"]


def test_force_starts_over_an_unfinished_run(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(*SHORT, "pe=none")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingLoop, "_end_if_asked", after_step(12, ask_to_stop))
        run(config)
    steps: list[int] = []
    monkeypatch.setattr(TrainingLoop, "_end_if_asked", lambda loop: steps.append(loop.step))
    run(compose(*SHORT, "pe=none", "force=true"))
    assert steps == list(range(1, 19))


def test_a_second_interrupt_does_not_wait(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(_: TrainingLoop) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(TrainingLoop, "_end_if_asked", after_step(2, twice))
    with pytest.raises(KeyboardInterrupt):
        run(compose(*SHORT))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_more_sequences_in_a_batch_than_there_are(compose: Compose) -> None:
    with pytest.raises(UserError, match=r"trainer\.batch_size=512 is more than the 256 training examples"):
        run(compose("trainer.batch_size=512"))


def test_a_batch_may_happen_to_have_no_answer(compose: Compose) -> None:
    sparse = ("task.loss=answers", "task.p_blank=0.9", "task.num_steps=8", "trainer.batch_size=1", "trainer.log_every=1")
    folder, result = run(compose("task=grid_navigation", *sparse))
    assert result["steps"] == 20 and 0.0 in [line.get("train/loss") for line in folder.read_metrics()]


def test_a_split_on_which_the_model_gives_no_number_is_wrong_and_ends_no_run(compose: Compose) -> None:
    """xPos leaves the range of numbers in sequences that are much longer than those it was trained on."""
    longer_ones = ("+task.splits.ood_longer.num_pairs=1500", "task.num_test=2")
    folder, result = run(compose("pe=xpos", "pe.scale_base=8", "task=flip_flop", *longer_ones))
    longer = result["splits"]["ood_longer"]
    assert longer["token_error"] > 0.8 and longer["loss"] == 700.0 and result["splits"]["test"]["loss"] < 700
    watched = [line["eval/ood_longer/loss"] for line in folder.read_metrics() if "eval/ood_longer/loss" in line]
    assert watched and set(watched) == {700.0}
