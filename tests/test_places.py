"""How many runs a machine has room for, and which GPU each has."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, TASKS
from hydra.core.utils import JobReturn
from omegaconf import DictConfig
from plans import plan_in

from cope.building import build
from cope.run.model_building import model_shape
from cope.run.sizes import TRAINED_BYTES, kept_bytes, num_weights
from cope.sweep.jobs import run_jobs
from cope.sweep.places import gpu_names, memory_gib, num_places
from cope.sweep.plan import composed as composed_settings
from cope.sweep.plan import launcher_for
from cope.sweep.process import Processes


def test_only_gpus_that_may_be_used_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_names() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert gpu_names() == ["2", "3"]


@pytest.mark.parametrize("num_jobs", [2, 6])
def test_jobs_at_once_share_the_gpus_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_jobs: int) -> None:
    runs = plan_in(tmp_path, "table4", 1).runs
    busy: list[str] = []
    seen: list[str] = []

    def call_on_a_gpu(self: Processes, function: object, environment: dict[str, str]) -> JobReturn:
        gpu = environment["CUDA_VISIBLE_DEVICES"]
        assert busy.count(gpu) < num_jobs / 2
        busy.append(gpu)
        seen.append(gpu)
        time.sleep(0.05)
        busy.remove(gpu)
        raise RuntimeError("it ended")

    monkeypatch.setattr("cope.sweep.launcher.gpu_names", lambda: ["2", "3"])
    monkeypatch.setattr(Processes, "call", call_on_a_gpu)
    with launcher_for(CONFIGS, [f"hydra.launcher.jobs={num_jobs}"], lambda config: None) as launcher:
        assert len(run_jobs(launcher, runs)) == len(runs) == len(seen)
    assert set(seen) == {"2", "3"}


@pytest.mark.parametrize(
    ("gpus", "gib", "cores", "settings", "expected"),
    [
        (0, 0, 3, [], 3),
        (1, 80, 16, ["scale=paper"], 8),  # by cores
        (2, 80, 16, ["scale=paper"], 8),
        (1, 16, 64, ["scale=paper"], 2),  # by memory
        (1, 80, 16, ["scale=paper", "trainer.batch_size=2048"], 1),
        (1, 4, 1, ["scale=smoke"], 1),
    ],
)
def test_how_many_runs_a_machine_has_room_for(
    monkeypatch: pytest.MonkeyPatch, gpus: int, gib: int, cores: int, settings: list[str], expected: int
) -> None:
    monkeypatch.setattr("cope.sweep.places.gpu_names", lambda: [str(index) for index in range(gpus)])
    monkeypatch.setattr("cope.sweep.places.smallest_gpu_gib", lambda _: gib)
    monkeypatch.setattr("cope.sweep.places.num_cores", lambda: cores)
    number, why = num_places([composed_settings(CONFIGS, ("pe=cope", "task=counting", *settings))])
    assert number == expected
    assert why.startswith("1 run at once, " if expected == 1 else f"{expected} runs at once, ")


def test_a_language_models_run_takes_a_gpu_for_itself(compose: Callable[..., DictConfig]) -> None:
    paper = [compose("scale=paper", f"task={task}") for task in ("flip_flop", "counting", "wikipedia")]
    small, middle, large = map(memory_gib, paper)
    assert 1 < small < middle < 16
    assert large > 80


@pytest.mark.parametrize("task", TASKS)
def test_no_run_needs_more_than_its_place_has_room_for(compose: Callable[..., DictConfig], task: str) -> None:
    config = compose("scale=paper", f"task={task}")
    built = build(config.task, "task")
    shape = model_shape(config, built)
    weights = num_weights(config, built, shape)
    assert weights is not None
    tokens = config.trainer.batch_size // config.trainer.accumulate * shape.context
    least = TRAINED_BYTES * weights + kept_bytes(shape, config.model.feed_forward_multiple, tokens, config.trainer.precision)
    assert least < memory_gib(config) * 2**30
