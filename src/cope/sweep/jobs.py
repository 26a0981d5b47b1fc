"""What a job of a sweep (``python train.py -m ...``) knows of its sweep, and what it leaves there for the closing table."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cope.errors import UserError
from cope.files import write_json


def is_sweep() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def take_share_of_cores(config: DictConfig) -> None:
    """Settle ``trainer.threads``: all cores, or an equal share where several jobs or devices run at once.

    Raises:
        UserError: a sweep of this machine's own asks for several processes a job; they would start the whole sweep again.
    """
    devices = config.trainer.devices
    if not isinstance(devices, int) or devices < 1 or config.trainer.threads is not None:
        return  # nothing to settle, or wrong: the check of all settings says so
    launcher = HydraConfig.get().launcher if is_sweep() else {}
    target = str(launcher.get("_target_", ""))
    if is_sweep() and devices > 1 and "submitit" not in target:
        raise UserError(
            f"trainer.devices={config.trainer.devices} in a local sweep: each job can have one device only. Run the jobs "
            "one by one, or with hydra/launcher=submitit_slurm."
        )
    cores = num_cores()
    num_jobs = 1
    if "joblib" in target:
        num_jobs = launcher["n_jobs"] if launcher["n_jobs"] > 0 else cores
    config.trainer.threads = max(1, cores // (num_jobs * devices))


def write_job(status: str, folder: str | None, message: str) -> str:
    """Leave ``job.json`` in the sweep's folder; outside a sweep do nothing. Returns the job's own overrides."""
    if not is_sweep():
        return ""
    hydra = HydraConfig.get()
    overrides = [str(override) for override in hydra.overrides.task]
    content = {"overrides": overrides, "status": status, "folder": folder, "message": message}
    write_json(Path(hydra.runtime.output_dir) / "job.json", content)
    return " ".join(overrides)


def read_jobs(sweep_folder: Path) -> list[dict[str, object]]:
    """Every ``job.json`` below ``sweep_folder``, in the order of the jobs."""
    paths = sorted(sweep_folder.glob("*/job.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text()) for path in paths]
