"""The jobs of a sweep: each is one run of ``train.py``, and all go to a launcher of Hydra's kind."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from cope.cli import message_of
from cope.errors import AlreadyRunning, Interrupted, UserError, counted
from cope.files import user_path, write_text
from cope.lines import as_typed
from cope.run.configuration import Problems, run_folder
from cope.run.folder import RunFolder
from cope.run.loggers import waits_for_upload


@dataclass(frozen=True)
class Job:
    """One run, and what its files say of it."""

    overrides: tuple[str, ...]
    folder: RunFolder
    scale: str

    @property
    def task(self) -> str:
        """Its name."""
        return self.folder.task

    @property
    def command(self) -> str:
        """What to type for it."""
        return as_typed(shlex.join(["python", "train.py", *self.overrides]))

    def result(self) -> dict[str, Any] | None:
        """Its result; None while it is not finished, and of a damaged one, which is told."""
        return self.folder.sound_result()

    def ended_with(self, error: BaseException) -> str:
        """What to tell of it; a failure is kept in its folder, unless that cannot be written, which is told already."""
        if isinstance(error, Interrupted):
            return f"stopped: {self.command}; the same command goes on from there"
        if isinstance(error, AlreadyRunning):
            return f"left alone: {self.command}; another process is running it"
        with suppress(UserError):
            write_text(self.folder.failure, f"{self.command}\n{message_of(error)}\n")
        see = f"; see {self.folder.log}" if self.folder.log.exists() else ""
        return f"FAILED: {self.command}: {message_of(error)}{see}"

    @property
    def failed(self) -> bool:
        """Whether its last try ended with an error."""
        return self.folder.failure.exists() and self.result() is None


def job_of(config: DictConfig, overrides: Sequence[str]) -> Job:
    """The job that composes to ``config``."""
    return Job(tuple(overrides), run_folder(config), config.scale)


def without_hydra(config: DictConfig) -> DictConfig:
    """What a job sees of a sweep's configuration: all but Hydra's own part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def error_of(outcome: JobReturn) -> BaseException | None:
    """What a job raised. Not by ``return_value``, which prints at each look that there was an error."""
    return None if outcome.status == JobStatus.COMPLETED else outcome._return_value


def check_jobs(configs: Sequence[DictConfig], launcher: Launcher) -> None:
    """Raise UserError with everything that is wrong with the settings, so that no job begins only to fail."""
    from cope.run.experiment import Experiment  # it imports PyTorch, for which a typing error need not wait

    problems = Problems()
    for config in configs:
        with problems.collect():
            if config.dry:
                raise UserError(
                    f"dry={config.dry} tells what one run would cost; allowed: in the command of one run. Of many: python "
                    "scripts/costs.py."
                )
            devices = Experiment(config).trainer.devices
            if devices > 1 and "Submitit" not in type(launcher).__name__:  # the others' processes would start the sweep again
                raise UserError(
                    f"trainer.devices={devices} in a sweep on this machine; allowed: 1 a job. Run the jobs one by one, or with "
                    "hydra/launcher=submitit_slurm."
                )
    problems.messages = list(dict.fromkeys(problems.messages))  # a wrong override is wrong in every row
    problems.raise_if_any()
    for folder in dict.fromkeys(user_path("output_dir", config.output_dir) for config in configs):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"output_dir={folder} cannot be made: {error.strerror}. Choose another with output_dir=..."
            ) from error


def run_jobs(launcher: Launcher, jobs: Sequence[Job], again: bool = False) -> dict[Path, str]:
    """Run those that are not finished; one that fails does not stop the others.

    Args:
        again: the finished ones too.

    Returns:
        of each folder whose run failed, was stopped, or belongs to another process, what to tell of it.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; those that went on have saved their state.
    """
    different = list({job.folder.path: job for job in jobs}.values())
    if len(different) < len(jobs):
        print(f"{len(jobs)} jobs, {len(different)} of them different: equal ones are run once", flush=True)
    waiting = [job for job in different if again or job.result() is None]
    print(f"{len(different) - len(waiting)} of {_runs_are(len(different))} finished", flush=True)
    for job in waiting:
        job.folder.failure.unlink(missing_ok=True)
    returned = _launched(launcher, waiting) if waiting else []
    left_over = {}
    for job, error in zip(waiting, map(error_of, returned), strict=True):
        is_finished_by_another = isinstance(error, AlreadyRunning) and not again and job.result() is not None
        if error is not None and not is_finished_by_another:
            left_over[job.folder.path] = job.ended_with(error)
    return left_over


def _launched(launcher: Launcher, jobs: Sequence[Job]) -> Sequence[JobReturn]:
    """The outcomes; what another's launcher cannot do with its settings is the user's to mend, and told in one message."""
    try:
        return launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
    except Exception as error:
        if isinstance(error, UserError) or type(launcher).__module__.startswith("hydra_plugins.cope"):
            raise
        raise UserError(f"hydra/launcher: {type(launcher).__name__} cannot run these jobs: {message_of(error)}") from error


def _runs_are(number: int) -> str:
    return f"{counted(number, 'run')} {'is' if number == 1 else 'are'}"


def tell_end(jobs: Sequence[Job], left_over: dict[Path, str]) -> None:
    """Say at the end what is not finished, and how W&B gets what was kept offline."""
    for told in left_over.values():
        print(told, file=sys.stderr)
    if left_over:
        print(f"{len(left_over)} of {_runs_are(len(jobs))} not finished; the same command runs only those.", file=sys.stderr)
    folders = {job.folder.path: job.folder for job in jobs}
    offline = [folder for folder in folders.values() if folder.result.exists() and waits_for_upload(folder.path)]
    if offline:
        outputs = dict.fromkeys(folder.outputs for folder in offline)
        records = [f"{shlex.quote(str(folder))}/*/*/*/*/wandb/offline-run-*" for folder in outputs]
        told = f"W&B: {counted(len(offline), 'run')} offline; upload later with: wandb sync {' '.join(records)}"
        print(told, file=sys.stderr)
