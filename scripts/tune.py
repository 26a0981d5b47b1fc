"""Tune encodings on a task: as many trials for each, over the same ranges, by the
validation loss of seeds never reported.

    python scripts/tune.py task=flip_flop pe=cope,rope,absolute,relative
    # as much as 12 processes do in 7 minutes
    python scripts/tune.py task=flip_flop pe=cope,rope jobs=12 limit=420
    python scripts/tune.py task=counting pe=cope trials=8 trainer.steps=1000

    task=                      one task
    pe=                        encodings, with commas between
    trials=null                of each encoding; null: what configs/tuning.yaml
                               says, where the ranges are
    jobs=null                  trials at once; null: one a core
    limit=null                 seconds after which to stop; the same command
                               goes on from there
    folder=outputs/tuning      for the trials' runs, and their SQLite file for
                               Optuna
    to=outputs/tuning          for <task>.csv: every trial (those behind
                               docs/results are in docs/results/tuning)

All else are settings of train.py, for every trial. A trial that does badly is
broken off, and counts. No test split is ever looked at. The exit status is 0 if
every encoding has its trials, 3 if some are left.
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "reading configs and runs", has_settings_of_train=True)  # before anything slow is imported

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from cope.cli import run_command, split_settings
from cope.endings import LEFT_OVER
from cope.errors import check_at_least, check_choice, counted
from cope.files import lock
from cope.run.configuration import Problems
from cope.sweep.plan import composed
from cope.sweep.trial import TrialRun
from cope.sweep.tuner import Tuner, indented
from cope.sweep.tuning import Tuning, read_search, storage_of, write_trials
from cope.threads import num_cores

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


@dataclass(frozen=True)
class TuneSettings:
    task: str
    pe: tuple[str, ...]
    trials: int | None = None
    jobs: int | None = None
    limit: float | None = None
    folder: Path = Path("outputs/tuning")
    to: Path = Path("outputs/tuning")  # never where published trials are: it is written anew

    def __post_init__(self) -> None:
        for key in ("trials", "jobs", "limit"):
            if getattr(self, key) is not None:
                check_at_least(key, getattr(self, key), 1)
        check_choice("task", self.task, sorted(path.stem for path in (CONFIGS / "task").glob("*.yaml")))
        for encoding in self.pe:
            check_choice("pe", encoding, sorted(path.stem for path in (CONFIGS / "pe").glob("*.yaml")))


def main(arguments: list[str]) -> None:
    settings, others = split_settings(arguments, TuneSettings, "python scripts/tune.py task=flip_flop pe=cope,rope")
    search = read_search(CONFIGS / "tuning.yaml")
    if settings.trials is not None:
        search = replace(search, num_trials=settings.trials)
    check(settings, others)
    storage = settings.folder / f"{settings.task}.db"

    def all_overrides(encoding: str, own: tuple[str, ...] = ()) -> tuple[str, ...]:
        places = (f"output_dir={settings.folder}", "logger=none")
        return (f"task={settings.task}", f"pe={encoding}", *others, *own, *places)

    held = lock(storage.with_suffix(".lock"))  # another command would run, and tell Optuna of, the same trials
    opened = storage_of(storage)
    tunings = [
        Tuning(opened, encoding, search, others, composed(CONFIGS, all_overrides(encoding)))
        for encoding in dict.fromkeys(settings.pe)
    ]

    def run_of(tuning: Tuning, trial: object) -> TrialRun:
        own = tuning.overrides(trial)
        return TrialRun(CONFIGS, storage, tuning.encoding, trial._trial_id, all_overrides(tuning.encoding, own), search.seeds)

    file = settings.to / f"{settings.task}.csv"
    tuner = Tuner(tunings, run_of, settings.jobs or num_cores(), lambda: write_trials(tunings, file))
    is_done = tuner.run(settings.limit)
    held.release()
    for tuning in tunings:
        tell(tuning)
    print(f"every trial: {file}")
    if not is_done:
        print("Stopped; the same command goes on from there.", file=sys.stderr)
        sys.exit(LEFT_OVER)


def check(settings: TuneSettings, others: list[str]) -> None:
    """Raise UserError with everything that is wrong with the settings, before any trial begins."""
    from cope.run.experiment import Experiment  # it imports PyTorch, for which a typing error need not wait

    problems = Problems()
    search = read_search(CONFIGS / "tuning.yaml")
    searched = {key for encoding in settings.pe for key in search.space(encoding)} | {"output_dir", "logger", "seed"}
    for override in others:
        if (key := override.partition("=")[0].lstrip("+")) in searched:
            problems.messages.append(f"{key} is what trials set themselves; allowed: other settings (configs/tuning.yaml).")
    for encoding in settings.pe:
        overrides = (f"task={settings.task}", f"pe={encoding}", *others, f"output_dir={settings.folder}", "logger=none")
        with problems.collect():
            config = composed(CONFIGS, overrides)
            if not problems.messages:
                Experiment(config)
    problems.messages = list(dict.fromkeys(problems.messages))
    problems.raise_if_any()


def tell(tuning: Tuning) -> None:
    """Print what was found for an encoding."""
    best = tuning.best()
    if best is None:
        print(f"{tuning.encoding}: no trial is finished")
        return
    ends = tuning.at_an_end()
    beyond = f"; at the end of what was tried: {', '.join(ends)}" if ends else ""
    print(f"{tuning.encoding}: lowest validation loss {best.value:.5g}, of {counted(len(tuning.trials), 'trial')}{beyond}")
    print(indented(tuning.overrides(best)))


if __name__ == "__main__":
    run_command(main, __doc__)
