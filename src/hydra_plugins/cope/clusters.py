"""Launchers for clusters, where Hydra looks for them; what they do is in :mod:`cope.sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class _ClusterLauncher(Launcher):
    """A launcher that needs a package of its own, and limits how many jobs run at once."""

    package = ""
    name = ""  # of the choice of hydra/launcher
    extra = ""  # that installs the package

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def check(self) -> None:
        """Raise UserError where nothing can be launched."""
        from cope.errors import UserError, check_at_least

        if find_spec(self.package) is None:
            raise UserError(
                f"hydra/launcher={self.name} needs {self.package}: pip install -c constraints.txt -e '.[{self.extra}]'"
            )
        check_at_least("hydra.launcher.jobs", self.jobs, 1)


class SubmititLauncher(_ClusterLauncher):
    """``hydra/launcher=submitit_slurm``, see :mod:`cope.sweep.slurm_queue`.

    Args:
        jobs: at once.
        folder: for submitit's files.
        num_requeues: how often a job that runs out of time goes back into the queue.
        sbatch: what the jobs ask of Slurm.
    """

    package, name, extra = "submitit", "submitit_slurm", "slurm"

    def __init__(self, jobs: int, folder: str, num_requeues: int, **sbatch: Any) -> None:
        super().__init__(jobs)
        self.folder, self.num_requeues = Path(folder), num_requeues
        self.sbatch = {
            key: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value for key, value in sbatch.items()
        }

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from cope.sweep.launcher import calls_for
        from cope.sweep.slurm_queue import run_on_slurm

        self.check()
        calls = calls_for(self, job_overrides, initial_job_idx)
        return run_on_slurm(calls, self.folder, self.jobs, self.num_requeues, self.sbatch)


class RayLauncher(_ClusterLauncher):
    """``hydra/launcher=ray``, see :mod:`cope.sweep.ray_queue`.

    Args:
        jobs: at once.
        address: of the cluster.
        cpus, gpus: that a job reserves.
        num_retries: how often a job may lose its machine.
    """

    package, name, extra = "ray", "ray", "ray"

    def __init__(self, jobs: int, address: str | None, cpus: float, gpus: float, num_retries: int) -> None:
        super().__init__(jobs)
        self.address, self.cpus, self.gpus, self.num_retries = address, cpus, gpus, num_retries

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from cope.sweep.launcher import calls_for
        from cope.sweep.ray_queue import run_on_ray

        self.check()
        calls = calls_for(self, job_overrides, initial_job_idx)
        return run_on_ray(calls, self.address, self.cpus, self.gpus, self.num_retries, self.jobs)
