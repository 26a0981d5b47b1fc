"""What a run's numbers come from (code, data, versions, hardware, kernel), taken at its start for result.json and W&B."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import cope
from cope.functional import chosen_backend
from cope.kernels.native.build import find_compiler
from cope.positions.base import PositionEncoding
from cope.tasks.base import Task

PACKAGE = Path(cope.__file__).resolve().parent
# Of the package, what no number of a run depends on: what makes many runs of one, reads results, or speaks to the user.
ABOVE_A_RUN = (
    "command.py",
    "commands",
    "huggingface.py",
    "cli.py",
    "help.py",
    "overrides.py",
    "command_start.py",
    "endings.py",
    "lines.py",
    "sweep",
    "report",
    "heads",
    "probe",
)
PACKAGES = ("cope-lab", "torch", "numpy", "lightning-fabric", "hydra-core", "triton", "sentencepiece", "datasets")


@dataclass(frozen=True)
class Provenance:
    """Where a run's numbers come from.

    Args:
        code: see :func:`code_fingerprint`.
        commit: see :func:`commit`.
        data: the task's own fingerprint: of its corpus, or its generator's version.
        kernel: the attention that runs, and what compiled it.
        date: on which it began.
    """

    code: str
    commit: str | None
    data: str
    kernel: str
    versions: dict[str, str]
    hardware: dict[str, Any]
    date: str

    @classmethod
    def taken(cls, task: Task, encoding: PositionEncoding, device: torch.device, num_devices: int) -> Provenance:
        """What it is now."""
        return cls(
            code=code_fingerprint(),
            commit=commit(),
            data=task.fingerprint,
            kernel=kernel(encoding, device),
            versions=versions(),
            hardware=hardware(device) | {"devices": num_devices},
            date=datetime.now(UTC).date().isoformat(),
        )


@cache
def code_fingerprint() -> str:
    """A hash of all code that can change a run's numbers, C++ included, as it was when this was first asked."""
    files = [
        path
        for path in sorted(PACKAGE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.relative_to(PACKAGE).parts[0] not in ABOVE_A_RUN
    ]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def commit() -> str | None:
    """The commit of the code when first asked; None outside a git checkout.

    It is followed by ``+changes`` where a file was changed since, or one was added below src or configs.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(cope.__file__).name)  # a wheel may lie in a checkout of something else
        revision = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no") or _git(
            "status", "--porcelain", "--untracked-files=all", "--", ":/src", ":/configs"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def kernel(encoding: PositionEncoding, device: torch.device) -> str:
    """Which backend of :func:`cope.cope_attention` runs, with the compiler of one that is compiled here."""
    if encoding.kernel is None:
        has_bias = type(encoding).bias is not PositionEncoding.bias
        return "plain PyTorch" if has_bias else "PyTorch's scaled_dot_product_attention"
    chosen = chosen_backend(encoding.kernel, device.type, torch.float32)
    if chosen == "triton":
        return f"{chosen} (Triton {version('triton')})"
    if chosen != "native":
        return chosen
    told = subprocess.run([*find_compiler(), "--version"], capture_output=True, text=True)
    return f"{chosen} ({told.stdout.splitlines()[0]})"


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run runs on: processor, its vector instructions, cores, threads, device. No host name, no environment."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor that gives no name: the platform's own word stands
    return {
        "processor": model,
        "instructions": torch.backends.cpu.get_cpu_capability(),  # others round differently, which shows like another seed
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change numbers, of those that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
