"""What a run will cost, told before it is started."""

from __future__ import annotations

import json
import math
import runpy
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import CONFIGS, ROOT
from omegaconf import DictConfig
from runs import command_here
from torch.utils.flop_counter import FlopCounterMode

from cope.errors import UserError
from cope.report.cost_sheets import ALL, cost_sheet, costs_sheets
from cope.run.batches import StepBatch, TrainingBatches
from cope.run.configuration import definition
from cope.run.cost import flops_of_step
from cope.run.experiment import Experiment
from cope.sweep.plan import read_plans

Compose = Callable[..., DictConfig]


def dry(config: DictConfig, value: bool | str = True) -> DictConfig:
    config.dry = value
    return config


@pytest.mark.parametrize("task", ["counting", "wikipedia"])
def test_a_dry_run_tells_costs_and_leaves_nothing(compose: Compose, tmp_path: object, task: str) -> None:
    config = compose(f"task={task}", "trainer.accumulate=2")
    experiment = Experiment(dry(config, "h100"))
    cost = experiment.cost()
    assert cost.parameters == experiment.model.num_parameters()
    if task == "wikipedia":
        assert cost.tokens == cost.steps * config.trainer.batch_size * config.task.context
    assert cost.here_s == pytest.approx(cost.step_s * config.trainer.steps) and cost.step_s > 0
    assert cost.on_gpu_s("h100", "bf16-mixed") < cost.on_gpu_s("v100", "32-true")
    shown = cost_sheet("cope", cost, "h100", "32-true")
    assert shown.rows[0] == ("parameters", f"{cost.parameters:,}") and "training on one h100" in shown.rows[-1][0]
    assert not experiment.folder.path.exists()


def test_all_but_the_time_is_told_without_a_step(compose: Compose) -> None:
    measured, told = (Experiment(dry(compose())).cost(measured) for measured in (True, False))
    assert measured.sequences > 0 == told.sequences and math.isnan(told.here_s)
    assert replace(told, step_s=0, sequences=0) == replace(measured, step_s=0, sequences=0)
    (plan,), _ = read_plans(CONFIGS, ["scale=smoke"], (1,), ["figure4"])
    (run,) = plan.runs
    with_time, without = (costs_sheets([plan], {run.folder.path: (cost, "32-true")}, 1) for cost in (measured, told))
    for one, other in zip(with_time, without, strict=True):
        assert set(one.columns) - set(other.columns) == {"on this CPU"}


def test_a_step_of_a_generated_task_waits_for_its_batch(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    at = TrainingBatches.at

    def slow(batches: TrainingBatches, step: int) -> StepBatch:
        time.sleep(0.2)
        return at(batches, step)

    monkeypatch.setattr(TrainingBatches, "at", slow)
    assert Experiment(dry(compose("task=flip_flop", "trainer.steps=2"))).cost().step_s > 0.2


def test_tokens_are_those_that_a_run_reads(compose: Compose) -> None:
    """Programs of a counting task are of many lengths: the first batch may be far from the usual one."""
    settings = ("task=counting", "pe=none", "trainer.steps=40", "trainer.eval_every=40", "task.num_test=16")
    told = Experiment(dry(compose(*settings))).cost().tokens
    assert told == Experiment(compose(*settings)).run(show_progress=False)["num_tokens"]


def test_whether_a_run_is_dry_is_no_part_of_it(compose: Compose) -> None:
    assert definition(dry(compose())) == definition(compose())
    with pytest.raises(UserError, match=r"dry=h101 is not known; .*Did you mean 'h100'"):
        Experiment(dry(compose(), "h101"))


def test_what_has_no_effect_on_slopes_is_refused() -> None:
    settings = runpy.run_path(str(ROOT / "scripts" / "costs.py"))["CostSettings"]
    for own in ({"table": ("table2",)}, {"seeds": 3}, {"measured": False}):
        with pytest.raises(UserError, match=f"{next(iter(own))}= has no effect with slopes=true"):
            settings(slopes=True, **own)


def test_flops_are_those_that_pytorch_counts(make_model: Callable[..., torch.nn.Module]) -> None:
    model = make_model("pe=none", "model.dim=64")
    tokens = torch.zeros(2, 32, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        model(tokens).sum().backward()
    told = flops_of_step(model, tokens.numel(), tokens.numel(), tokens.shape[1])
    # PyTorch counts the whole square of attention, of which half is masked.
    assert told == pytest.approx(counted.get_total_flops(), rel=0.15)


@pytest.mark.slow  # composes every table
def test_the_costs_of_tables_with_the_logger_that_runs_have_by_default() -> None:
    """What two tables share stands in both, and counts once in what all of them take."""
    told = command_here("scripts/costs.py", "scale=smoke", "table=figure5,table2", "seeds=3", "measured=false", "format=json")
    assert told.returncode == 0, told.stderr
    sums, table, figure = json.loads(told.stdout)
    assert [(row["table"], row["runs"]) for row in sums["rows"]] == [("Table 2", "30"), ("Figure 5", "9"), (ALL, "30")]
    assert [row["runs of one seed"] for row in figure["rows"]] == ["Flip-flop: Absolute", "Flip-flop: RoPE", "Flip-flop: CoPE"]
    assert all(row in table["rows"] for row in figure["rows"])
    alone = sum(float(row["tokens"]) for row in table["rows"])
    assert [float(row["tokens"]) for row in sums["rows"]][::2] == pytest.approx([3 * alone] * 2, rel=0.01)
