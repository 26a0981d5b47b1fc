"""Runs that train until they no longer improve: one rule, the rate that falls at the end, and what is said of it."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from omegaconf import DictConfig
from runs import after_step, run, same_tensors, without_times

from cope.errors import Interrupted, UserError
from cope.run import evaluation
from cope.run.configuration import definition
from cope.run.loop import TrainingLoop
from cope.run.stopping import Stopping
from cope.run.summary import how_it_ended
from cope.tasks.scores import Score

Compose = Callable[..., DictConfig]
SETTINGS = (
    *("pe=none", "trainer.steps=40", "trainer.eval_every=2", "trainer.log_every=4", "trainer.patience=6"),
    "trainer.eval_splits=[]",
    *("optimizer.schedule=wsd", "optimizer.warmup_steps=2", "task.num_validation=16", "task.num_test=16"),
)


@pytest.mark.parametrize(
    ("losses", "last_step", "found"),
    [
        ([2.0, 1.0, 0.995, 0.992, 0.991], 12, ("patience", False)),  # falls by less than 1% in six steps: 10 and a fifth of all
        ([2.0, 1.0, 0.995, 0.992, 0.98, 0.98, 0.98, 0.98], 20, ("patience", False)),  # slowly, but by more than 1%
        ([2.0 * 0.98**step for step in range(20)], 40, ("cap", True)),
        ([2.0, 2.5, 3.0, 3.5, 4.0], 10, ("patience", False)),  # overfitting
        ([1.0, 0.0009, 0.0005, 0.0001, 0.00001], 12, ("patience", False)),  # by much, but of next to nothing: learned
        ([2.0 * 0.8**step for step in range(14)] + [0.0005], 40, ("cap", False)),  # learned at the last moment
    ],
)
def test_the_rule(losses: list[float], last_step: int, found: tuple[str, bool]) -> None:
    stopping = Stopping(40, 6, decays=True)
    seen = [stopping.see(loss, 2 * index) for index, loss in enumerate(losses, 1)]
    assert stopping.last_step == last_step
    assert sum(seen) == (last_step < 40)  # it is decided once
    assert stopping.found == dict(zip(("stopped", "still_improving"), found, strict=True))
    assert not stopping.see(0.0, 39)  # while the rate falls nothing is decided
    assert Stopping(40, None, decays=True).found == {}


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation finds the same loss from step 8 on."""
    real = evaluation.score

    def score(model: object, examples: object, fabric: object) -> Score:
        found = real(model, examples, fabric)  # type: ignore[arg-type]
        calls.append(1)
        return Score(found.count, found.errors, found.token_count, found.token_errors, 1 / min(len(calls), 4), 0)

    calls: list[int] = []
    monkeypatch.setattr(evaluation, "score", score)


def test_a_run_ends_early_and_its_rate_falls(compose: Compose, flat: None) -> None:
    folder, result = run(compose(*SETTINGS))
    assert (result["steps"], result["stopped"], result["still_improving"]) == (18, "patience", False)  # 14, and 20% to fall
    rates = [line["train/lr"] for line in folder.read_metrics() if "train/lr" in line]
    assert rates[0] == rates[1] == rates[2] > rates[3] > rates[4] == pytest.approx(0.05 * rates[0])
    assert how_it_ended(result) == "ended after 18 steps: it no longer improved"


@pytest.mark.parametrize("step", [6, 14, 16])  # before it is decided, when it is, and while the rate falls
def test_a_broken_run_ends_when_an_unbroken_one_does(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, flat: None, step: int, tmp_path: object
) -> None:
    unbroken, broken = compose(*SETTINGS), compose(*SETTINGS)
    broken.output_dir = f"{tmp_path}/elsewhere"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingLoop, "_end_if_asked", after_step(step, lambda loop: loop.interruption.ask(signal.SIGINT)))
        run(broken)
    found = run(broken)[0]
    assert without_times(found)[1]["steps"] == 18
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "score", _again())
        whole = run(unbroken)[0]
    assert without_times(whole) == without_times(found)
    assert same_tensors(whole.last_checkpoint, found.last_checkpoint)


def _again() -> Callable[..., Score]:
    """What ``flat`` gives, from its first call on."""
    from cope.run.evaluation import score as real

    calls: list[int] = []

    def score(*arguments: object) -> Score:
        found = real(*arguments)  # type: ignore[arg-type]
        calls.append(1)
        return Score(found.count, found.errors, found.token_count, found.token_errors, 1 / min(len(calls), 4), 0)

    return score


def test_a_run_that_has_all_its_steps_says_whether_it_still_improves(compose: Compose) -> None:
    _, result = run(compose(*SETTINGS, "trainer.patience=39"))
    assert (result["steps"], result["stopped"], result["still_improving"]) == (40, "cap", True)
    assert how_it_ended(result) == "had all of its 40 steps before its patience was used up: it may still improve"
    assert "stopped" not in run(compose(*SETTINGS, "trainer.patience=null", "trainer.steps=4"))[1]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_that_needs_to_know_the_end(compose: Compose, schedule: str) -> None:
    with pytest.raises(UserError, match=rf"optimizer\.schedule={schedule} .*trainer\.patience=6.*allowed with it: wsd"):
        run(compose(*SETTINGS, f"optimizer.schedule={schedule}"))


def test_patience_is_part_of_a_run_only_while_it_is_on(compose: Compose) -> None:
    assert "patience" not in definition(compose())["trainer"]
    assert definition(compose("trainer.patience=5", "optimizer.schedule=wsd"))["trainer"]["patience"] == 5
