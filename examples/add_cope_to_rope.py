"""Add CoPE to a model that was trained with RoPE, and go on with training: what is
gained, and does the table do anything?

    python examples/add_cope_to_rope.py
    python examples/add_cope_to_rope.py steps=1000 table_lr=0.001

A model with RoPE learns to count (`python train.py pe=rope task=counting`). It
gets a table of counted positions that starts at 0, so that nothing changes at
first; then it trains on, beside a copy that trains on without a table. Shown
are the errors before and after, within the trained length and at four times of
it, and the meter: the share of the attention logits' variance that comes from
the table, and the positions that nothing reads.

    steps=500         of further training, for both
    lr=1e-3           of all weights but the table, falling to 0
    table_lr=0.03     of the table; with too low a one it stays inert, and only
                      the meter shows it
    num_positions=16  vectors in the table

All else are settings of train.py, for the run with RoPE: seed=2, output_dir=...
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "loading PyTorch", has_settings_of_train=True)  # before anything slow is imported

import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from lightning_fabric import Fabric
from omegaconf import DictConfig, open_dict

from cope.building import build
from cope.cli import run_command, split_settings
from cope.meter import PositionUse
from cope.model.inspection import position_use_by_layer
from cope.model.transformer import Transformer
from cope.run.batches import Batch
from cope.run.evaluation import score_split
from cope.run.experiment import Experiment
from cope.run.model_building import build_model
from cope.run.trained import load_trained
from cope.tasks.base import Task

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SMALL = [  # a minute of training
    *("model.num_layers=2", "model.num_heads=2", "optimizer.lr=1e-3", "trainer.patience=null", "optimizer.schedule=cosine"),
    *("trainer.steps=1500", "trainer.eval_every=250"),
]
BATCH_SIZE = 32
FOUR_TIMES = "ood_four_times_longer"


@dataclass(frozen=True)
class Settings:
    steps: int = 500
    lr: float = 1e-3
    table_lr: float = 0.03
    num_positions: int = 16


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=["task=counting", "logger=none", *SMALL, *overrides])


def with_a_longer_split(config: DictConfig) -> Task:
    """The task of ``config`` with a split of programs that are four times as long."""
    most, context = config.task.max_operations, config.task.context
    changed = copy.deepcopy(config.task)
    with open_dict(changed.splits):
        changed.splits[FOUR_TIMES] = {"min_operations": 3 * most + 1, "max_operations": 4 * most, "context": 4 * context}
    task: Task = build(changed, "task")
    return task


def with_cope(rope: Transformer, task: Task, num_positions: int, overrides: list[str]) -> Transformer:
    """``rope`` with a table of zeros: the same function of its input."""
    table = [f"pe.num_positions={num_positions}", "pe.init_std=0", "pe.scale=released"]
    config = composed("pe=cope_rope", *table, *overrides)
    model = build_model(config, task)
    missing, unexpected = model.load_state_dict(rope.state_dict(), strict=False)
    assert missing == ["encoding.tables"] and not unexpected
    return model


def train_on(model: Transformer, task: Task, settings: Settings) -> Transformer:
    """Train by new batches of the same examples."""
    tables = [parameter for name, parameter in model.named_parameters() if name == "encoding.tables"]
    others = [parameter for name, parameter in model.named_parameters() if name != "encoding.tables"]
    optimizer = torch.optim.AdamW([{"params": others, "lr": settings.lr}, {"params": tables, "lr": settings.table_lr}])
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.steps)
    examples = task.training_examples(seed=1, epoch=0)
    random = np.random.default_rng(1)
    model.train()
    for _ in range(settings.steps):
        batch = Batch.of(*examples.batch(random.integers(len(examples), size=BATCH_SIZE)))
        loss = F.cross_entropy(model(batch.inputs, batch.where), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        falling.step()
    return model.eval()


def row(label: str, model: Transformer, task: Task, uses: list[PositionUse]) -> str:
    fabric = Fabric(accelerator="cpu", devices=1)
    errors = [100 * score_split(model, task, split, fabric)["error"] for split in ("test", FOUR_TIMES)]
    shares = " ".join(f"{share:.2f}" for use in uses for share in use.share.tolist())
    unused = " ".join(f"{len(use.unused)}/{len(use.reads)}" for use in uses)
    return f"{label:34}{errors[0]:8.1f}{errors[1]:15.1f}   {shares:30}{unused}"


def main(arguments: list[str]) -> None:
    settings, overrides = split_settings(arguments, Settings, "python examples/add_cope_to_rope.py")
    config = composed("pe=rope", *overrides)
    experiment = Experiment(config)
    experiment.run(show_progress=sys.stderr.isatty())
    rope = load_trained(experiment.folder).model.eval()
    task = with_a_longer_split(config)

    examples = task.evaluation_examples(FOUR_TIMES)
    tokens, _ = examples.batch(np.arange(min(32, len(examples))))

    print(f"\n{'sequence error %':34}{'test':>8}{'four times':>15}   {'share of the table, by head':30}unused, by layer")
    print(row("RoPE", rope, task, []))
    both = with_cope(rope, task, settings.num_positions, overrides).eval()
    with torch.no_grad():
        same = torch.equal(both(tokens), rope(tokens)) or torch.allclose(both(tokens), rope(tokens), rtol=1e-4, atol=1e-4)
    assert same, "a table of zeros changes nothing"
    print(row("with CoPE, a table of zeros", both, task, position_use_by_layer(both, tokens)), flush=True)
    print(row(f"RoPE, {settings.steps} steps more", train_on(copy.deepcopy(rope), task, settings), task, []), flush=True)
    both = train_on(both, task, settings)
    print(row(f"with CoPE, {settings.steps} steps more", both, task, position_use_by_layer(both, tokens)))


if __name__ == "__main__":
    run_command(main, __doc__)
