"""One trial of tuning, in a process of its own: the runs that ``train.py`` would make with the tuning seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import Trial

from cope.errors import Interrupted, UserError
from cope.sweep.plan import composed
from cope.sweep.process import output_to
from cope.sweep.tuning import pruner, storage_of


@dataclass(frozen=True)
class TrialRun:
    """What a process needs to know of a trial."""

    configs: Path
    storage: Path
    encoding: str  # the name of its study
    trial_id: int
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]

    def __call__(self) -> list[float] | UserError:
        """The validation loss of each seed; of fewer if the trial was broken off; or why it cannot be run."""
        # Imported here: the process that asks for trials needs no PyTorch.
        from cope.run.experiment import Experiment
        from cope.run.loop import Diverged

        config = composed(self.configs, self.overrides)
        study = optuna.load_study(
            storage=storage_of(self.storage), study_name=self.encoding, pruner=pruner(config.trainer.steps)
        )
        trial = Trial(study, self.trial_id)
        losses: list[float] = []
        steps, time_s = [], 0.0
        for seed in self.seeds:
            config.seed = seed
            experiment = Experiment(config)
            output_to(experiment.folder.log)
            try:
                observe = _observer(trial) if seed == self.seeds[0] else None
                result = experiment.run(show_progress=False, splits=("validation",), observe=observe)
            except optuna.TrialPruned:
                return losses
            except Diverged:
                losses.append(math.inf)
                continue
            except Interrupted as error:
                raise KeyboardInterrupt from error  # as a job of a sweep does
            except UserError as error:
                return error
            losses.append(result["splits"]["validation"]["loss"])
            steps.append(result["steps"])
            time_s += result["time_s"]
            for key, value in (("losses", losses), ("steps", steps), ("time_s", round(time_s))):
                trial.set_user_attr(key, value)
        return losses


def _observer(trial: Trial) -> Callable[[int, float], None]:
    told = set(trial.study._storage.get_trial(trial._trial_id).intermediate_values)

    def observe(step: int, loss: float) -> None:
        if step not in told:  # a run that goes on validates some steps again
            trial.report(loss, step)
        if trial.should_prune():
            raise optuna.TrialPruned

    return observe
