"""What ``python train.py -m`` is by default, where Hydra looks for it: every combination of the values, in our own queue."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

# So that Hydra makes its folders where runs go, and none that is called "~".
OmegaConf.register_new_resolver("user_path", lambda text: str(Path(str(text)).expanduser()), replace=True)

MOST_RUNS = 1000  # of one sweep: each is composed and checked before the first begins
PRELOAD = ("cope.report.figures", "cope.report.run_sheets")  # what train.py imports when a run is done


class GridSweeper(BasicSweeper):
    """``hydra/sweeper=grid``: like Hydra's own, but one failed job leaves the others and the closing table alone."""

    def __init__(self) -> None:
        super().__init__(max_batch_size=None)

    def sweep(self, arguments: list[str]) -> None:
        # Imported here, since Hydra imports this module before every command.
        from cope.cli import reporting_errors
        from cope.endings import LEFT_OVER
        from cope.report.run_sheets import sweep_sheets
        from cope.report.sheets import show
        from cope.sweep.jobs import check_jobs, job_of, run_jobs, tell_end, without_hydra

        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        with reporting_errors():
            check_number(overrides)
            (combinations,) = self.split_arguments(overrides, None)
            configs = [without_hydra(loader.load_sweep_config(self.config, list(combination))) for combination in combinations]
            check_jobs(configs, self.launcher)
            jobs = [job_of(config, combination) for config, combination in zip(configs, combinations, strict=True)]
            left_over = run_jobs(self.launcher, jobs, again=any(config.force for config in configs))
            different = list({job.folder.path: job for job in jobs}.values())
            results = [result for job in different if (result := job.result()) is not None]
            if results:
                print()
                show(sweep_sheets(results))
            tell_end(different, left_over)
        if left_over:
            sys.exit(LEFT_OVER)


def check_number(overrides: Sequence[Override]) -> None:
    """Raise UserError for a sweep of more runs than anybody means, before it is written out."""
    from cope.errors import UserError

    counts = {override.input_line: _num_values(override) for override in overrides if override.is_sweep_override()}
    number = math.prod(counts.values())
    if number > MOST_RUNS:
        parts = ", ".join(f"{text} ({count:,})" for text, count in counts.items())
        raise UserError(f"This sweep has {number:,} runs: {parts}; allowed: {MOST_RUNS:,} at most. Make it in parts.")


def _num_values(override: Override) -> int:
    from cope.errors import UserError

    values = override.value()
    if isinstance(values, IntervalSweep):
        raise UserError(
            f"{override.input_line} is no list of values; allowed in a grid: a,b, choice(a,b), range(start,stop,step), glob(*)."
        )
    if isinstance(values, RangeSweep) and values.start is not None and values.stop is not None:
        return max(0, math.ceil((values.stop - values.start) / values.step))
    return len(values.list) if isinstance(values, ChoiceSweep) else sum(1 for _ in override.sweep_iterator())


class LocalLauncher(Launcher):
    """``hydra/launcher=local``: see :mod:`cope.sweep.launcher`.

    Args:
        jobs: at once; null takes as many as GPUs have room for, or one a core where there is none.
    """

    def __init__(self, jobs: int | None) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from cope.building import converted
        from cope.errors import check_at_least
        from cope.sweep.launcher import LocalQueue, calls_for

        at_once: int | None = converted(self.jobs, int | None, "hydra.launcher.jobs")
        if at_once is not None:
            check_at_least("hydra.launcher.jobs", at_once, 1)
        return LocalQueue(at_once, PRELOAD).run(calls_for(self, job_overrides, initial_job_idx))
