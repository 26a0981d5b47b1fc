"""What the runs behind the paper's tables and figures cost, before any is started.

    # every table: what all of its runs take, then each of them
    python scripts/costs.py scale=paper seeds=3
    python scripts/costs.py scale=paper table=table2
    # how a step grows with context, layers, dimension and vocabulary
    python scripts/costs.py slopes=true
    # as in docs/costs.md
    python scripts/costs.py scale=paper measured=false format=markdown

Time is measured by a few steps of each on this machine, on random tokens where
a task reads text, unless measured=false. Runs that several tables have stand in
each of them.

    table=all       files of configs/table, with commas between
    seeds=1         of each run, in what all take
    measured=true   false: all but the time here, which takes a moment
    slopes=false    true: how the time of a step grows, instead
    format=table    or markdown, csv, latex, json

All else are settings of train.py, for every run.
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "reading configs", has_settings_of_train=True)  # before anything slow is imported

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from cope.cli import run_command, split_settings
from cope.errors import UserError, check_between, check_choice
from cope.report.sheets import FORMATS, Sheet, show
from cope.sweep.plan import all_runs, composed, planned_seeds, read_plans

if TYPE_CHECKING:
    from cope.run.cost import Cost

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GROWING = {
    "task.context": (128, 256, 512, 1024),
    "model.num_layers": (2, 4, 8),
    "model.dim": (64, 128, 256),
    "task.tokenizer.vocab_size": (2048, 8192, 32768),
}
BASE = ("task=wikipedia", "scale=laptop", "pe=cope", "trainer.batch_size=8", "trainer.threads=1", "logger=none")


@dataclass(frozen=True)
class CostSettings:
    table: tuple[str, ...] = ("all",)
    seeds: int = 1
    measured: bool = True
    slopes: bool = False
    format: str = "table"

    def __post_init__(self) -> None:
        for key, usual in (("table", ("all",)), ("seeds", 1), ("measured", True)):
            if self.slopes and getattr(self, key) != usual:
                raise UserError(f"{key}= has no effect with slopes=true, which has runs of its own; allowed: one of the two.")
        check_choice("format", self.format, FORMATS)


def main(arguments: list[str]) -> None:
    settings, overrides = split_settings(arguments, CostSettings, "python scripts/costs.py scale=paper")
    if settings.slopes:
        show([slopes(overrides)], settings.format)
        return
    seeds = planned_seeds(CONFIGS)
    check_between("seeds", settings.seeds, 1, len(seeds))
    names = None if settings.table == ("all",) else settings.table
    plans, left_out = read_plans(CONFIGS, overrides, seeds[:1], names)
    for line in left_out:
        print(line, file=sys.stderr)
    plans.sort(key=lambda plan: plan.name.startswith("figure"))  # tables first; the runs of most figures are theirs
    costs = {}
    for run in all_runs(plans):
        config = composed(CONFIGS, run.settings)
        costs[run.folder.path] = (cost(config, settings.measured), str(config.trainer.precision))
    from cope.report.cost_sheets import costs_sheets  # it imports PyTorch, for which a slip need not wait

    show(costs_sheets(plans, costs, settings.seeds), settings.format)


def cost(config: DictConfig, measured: bool = True) -> Cost:
    """Of the run that ``config`` is of."""
    dry = OmegaConf.merge(config, {"dry": True})
    assert isinstance(dry, DictConfig)
    dry.logger = {"_target_": "cope.run.loggers.NoLogger"}
    from cope.run.experiment import Experiment

    return Experiment(dry).cost(measured)


def slopes(overrides: list[str]) -> Sheet:
    """The time of a step as one setting is doubled, and the exponent that it grows with between the last two."""
    import math

    rows = []
    for key, values in GROWING.items():
        times = [cost(composed(CONFIGS, (*BASE, *overrides, f"{key}={value}"))).step_s for value in values]
        exponent = math.log(times[-1] / times[-2]) / math.log(values[-1] / values[-2])
        told = ", ".join(f"{value}: {seconds:.3g}" for value, seconds in zip(values, times, strict=True))
        rows.append((key, told, f"{exponent:.2f}"))
    columns = ("setting", "seconds a step", "exponent of the last doubling")
    return Sheet(f"{' '.join((*BASE, *overrides))}, else as the recipe", columns, tuple(rows))


if __name__ == "__main__":
    run_command(main, __doc__)
