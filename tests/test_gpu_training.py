"""What training does on a GPU, as far as a CPU can show it: there a graph that is replayed is the step that was recorded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from runs import after_step, folder_of, release, run, same_tensors, without_times
from test_training import SHORT, ask_to_stop, explode_from

from cope.errors import Interrupted, UserError
from cope.run.device import TrainerSettings
from cope.run.loop import Diverged, TrainingLoop
from cope.run.optimizer import OptimizerSettings
from cope.run.step import StepGraphs, TrainingStep

Compose = Callable[..., DictConfig]


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training runs as on a GPU, with graphs; what happens is noted."""
    noted: list[str] = []

    def begin(loop: TrainingLoop, *arguments: Any, **others: Any) -> None:
        real_begin(loop, *arguments, **others)
        loop.train_step.graphs = StepGraphs(required=False, forget=loop.optimizer.zero_grad)

    def capture(_: StepGraphs, step: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            noted.append("replayed")
            step()

        noted.append("recorded")
        return replay

    def look(step: TrainingStep) -> tuple[float, int]:
        noted.append("looked")
        return real_look(step)

    real_begin, real_look = TrainingLoop.__init__, TrainingStep.look
    monkeypatch.setattr(TrainingLoop, "__init__", begin)
    monkeypatch.setattr(TrainingLoop, "on_gpu", True)
    monkeypatch.setattr(TrainingStep, "look", look)
    monkeypatch.setattr(StepGraphs, "_capture", capture)
    monkeypatch.setattr(StepGraphs, "stream", lambda *_: nullcontext())
    return noted


@pytest.mark.parametrize(
    ("task", "encoding"),
    [
        ("counting", "cope"),
        *(
            pytest.param(*found, marks=pytest.mark.slow)
            for found in (("flip_flop", "absolute"), ("flip_flop", "cope_relative"), ("selective_copy", "rope"))
        ),
    ],
)
def test_a_run_finds_what_it_finds_on_a_cpu(compose: Compose, request: pytest.FixtureRequest, task: str, encoding: str) -> None:
    settings = (
        *SHORT,
        f"task={task}",
        f"pe={encoding}",
        "optimizer.epsilon=1",
        "optimizer.lr=1",
    )  # so that rounding stays rounding
    plain, result = run(compose(*settings))
    noted = request.getfixturevalue("like_a_gpu")
    other = compose(*settings)
    other.output_dir += "_gpu"
    folder, found = run(other)
    assert found["num_tokens"] == result["num_tokens"]
    lines, expected = without_times(folder)[0], without_times(plain)[0]
    assert [line.keys() for line in lines] == [line.keys() for line in expected]
    for line, wanted in zip(lines, expected, strict=True):
        if "train/loss" in line:
            assert line["train/loss"] == pytest.approx(wanted["train/loss"], rel=1e-4)
    assert noted.count("looked") == len({4, 8, 12, 16, 18} | {5, 10, 15})  # log_every=4, eval_every=5
    num_shapes = noted.count("recorded")
    assert 1 <= num_shapes <= 3
    assert 18 - 2 * num_shapes - 3 <= noted.count("replayed") <= 18 - num_shapes


def test_a_broken_run_ends_as_an_unbroken_one(compose: Compose, like_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken, broken = compose(*SHORT, "model.dropout=0.2"), compose(*SHORT, "model.dropout=0.2")
    broken.output_dir += "_broken"
    whole, _ = run(unbroken)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingLoop, "_end_if_asked", after_step(7, ask_to_stop))
        run(broken)
    resumed, _ = run(broken)
    for line, other in zip(without_times(whole)[0], without_times(resumed)[0], strict=True):
        assert line == pytest.approx(other, rel=1e-12)  # the loss is summed in other groups
    assert same_tensors(whole.best_checkpoint, resumed.best_checkpoint)
    assert "replayed" in like_a_gpu


@pytest.mark.parametrize("first_bad", [9, 11, 14])  # looked at one, and three steps later; and at the validation itself
def test_divergence_is_seen_later_and_tells_the_step(
    compose: Compose, like_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch, first_bad: int
) -> None:
    config = compose(*SHORT, "pe=none", "optimizer.clip_norm=null")
    monkeypatch.setattr(OptimizerSettings, "learning_rate", explode_from(first_bad))
    with pytest.raises(Diverged, match=rf"at step {first_bad + 1}; the best checkpoint so far is"):
        run(config)
    folder = folder_of(config)
    release(folder)
    for path in (folder.last_checkpoint, folder.best_checkpoint):
        state = torch.load(path, weights_only=True)
        assert state["step"] <= 10
        assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_step_that_cannot_be_recorded_is_done_as_it_is(
    compose: Compose, like_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, other = compose(*SHORT), compose(*SHORT)
    other.output_dir += "_without"
    with_graphs, _ = run(config)

    def break_off(_: StepGraphs, step: Callable[[], None]) -> Callable[[], None]:
        # As a recording, it computes nothing, but leaves gradients behind.
        for parameter in step.func.__self__.model.parameters():  # type: ignore[attr-defined]
            parameter.grad = torch.ones_like(parameter)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(StepGraphs, "_capture", break_off)
    without, _ = run(other)
    assert same_tensors(with_graphs.last_checkpoint, without.last_checkpoint)
    assert [record.message for record in caplog.records if "cuda_graphs" in record.message] == [
        "trainer.cuda_graphs=auto: a step cannot be recorded (operation not permitted when stream is capturing); going on "
        "without graphs"
    ]


def test_a_step_that_cannot_be_recorded_is_an_error_if_it_must_be(
    compose: Compose, like_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(graphs: StepGraphs, _: Callable[[], None]) -> Callable[[], None]:
        graphs.required = True
        raise RuntimeError("out of memory")

    monkeypatch.setattr(StepGraphs, "_capture", break_off)
    with pytest.raises(UserError, match=r"trainer.cuda_graphs=true: a step cannot be recorded \(out of memory\); allowed"):
        run(compose(*SHORT))


# ---- settings ------------------------------------------------------------------------------------------------------------


def trainer(**changes: object) -> TrainerSettings:
    values = {
        "steps": 10, "batch_size": 8, "accumulate": 1, "eval_every": 5, "log_every": 5, "device": "auto", "devices": 1,
        "num_nodes": 1, "strategy": "auto", "precision": "32-true", "compile": False, "cuda_graphs": "auto", "threads": None,
    }  # fmt: skip
    return TrainerSettings(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"precision": "tf32"}, "trainer.precision=tf32 has no effect on a CPU; allowed there: 32-true, bf16-mixed"),
        ({"precision": "bf16"}, "trainer.precision=bf16 is not known; allowed: 32-true, tf32, bf16-mixed"),
        ({"cuda_graphs": True}, "trainer.cuda_graphs=true needs a GPU; allowed on a CPU: auto, false"),
        ({"cuda_graphs": "yes"}, "trainer.cuda_graphs=yes is not known; allowed: auto, true, false"),
    ],
)
def test_settings_that_a_cpu_has_not(changes: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        trainer(device="cpu", **changes)


def test_graphs_are_for_one_gpu_and_one_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert trainer().uses_graphs
    assert trainer(cuda_graphs=True, precision="tf32").uses_graphs
    assert not trainer(cuda_graphs=False).uses_graphs
    assert not trainer(accumulate=2).uses_graphs
    assert not trainer(devices=2, strategy="ddp").uses_graphs
    assert not trainer(device="cpu").uses_graphs
    with pytest.raises(UserError, match=r"cuda_graphs=true records steps of one device and micro-batch, not of 4"):
        trainer(cuda_graphs=True, accumulate=4)


def test_whether_graphs_are_used_makes_no_other_run(compose: Compose) -> None:
    assert folder_of(compose("trainer.cuda_graphs=false")).path == folder_of(compose()).path
    assert folder_of(compose("trainer.precision=bf16-mixed")).path != folder_of(compose()).path
