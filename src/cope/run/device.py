"""Devices, precision and threads, through Lightning Fabric: a laptop, one GPU, or many under torchrun or Slurm."""

from __future__ import annotations

import ctypes
import os
import platform
import warnings
from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from cope.errors import UserError, check_at_least, check_between, check_choice, counted
from cope.run.distributed import STRATEGIES, run_by

MOST_THREADS = 1024  # more than any machine's cores here; a system has no room for the stacks of many more
NAMES_THE_MACHINE = ("NODE_RANK", "GROUP_RANK", "SLURM_NODEID", "OMPI_COMM_WORLD_RANK", "JSM_NAMESPACE_RANK", "RANK")
PRECISIONS = ("32-true", "tf32", "bf16-mixed")


@dataclass(frozen=True)
class TrainerSettings:
    """The keys of ``trainer``.

    Args:
        steps: optimiser steps.
        batch_size: examples a step, over all devices and micro-batches together.
        accumulate: micro-batches that each device splits its share into, to save memory.
        eval_every: steps between validations; each also writes a checkpoint.
        log_every: steps between lines of ``train/loss``.
        patience: steps without a lower validation loss after which a run ends before ``steps``, see ``cope.run.stopping``; null
            never does.
        eval_splits: splits to score at validations, beside ``validation``, which alone chooses a checkpoint: ``auto`` (those
            that are out of distribution; longer contexts of a language task), or a list.
        eval_examples: the most of each that are scored.
        eval_splits_every: validations from one such look to the next.
        device: ``auto``, ``cpu`` or ``cuda``.
        devices: how many, on each machine.
        num_nodes: machines.
        strategy: ``auto`` (one device), ``ddp`` (each device has all weights) or ``fsdp`` (each has a share of them).
        precision: ``32-true``; ``tf32``, the same with products of 10 fraction bits on a GPU; or ``bf16-mixed``.
        compile: run the model through ``torch.compile``, as a whole.
        cuda_graphs: whether steps are recorded and replayed as CUDA graphs; ``auto`` does so where it can be done: on one GPU,
            with one micro-batch.
        threads: CPU threads; null takes what OMP_NUM_THREADS says, or an equal share of the cores for each job and device.
    """

    steps: int
    batch_size: int
    accumulate: int
    eval_every: int
    log_every: int
    device: str
    devices: int
    num_nodes: int
    strategy: str
    precision: str
    compile: bool
    cuda_graphs: bool | str
    threads: int | None
    # These have defaults, since runs from before they were there have none.
    patience: int | None = None
    eval_splits: str | list[str] = "auto"
    eval_examples: int = 200
    eval_splits_every: int = 1

    def __post_init__(self) -> None:
        for key in (
            "steps",
            "batch_size",
            "accumulate",
            "eval_every",
            "log_every",
            "devices",
            "num_nodes",
            "eval_examples",
            "eval_splits_every",
        ):
            check_at_least(f"trainer.{key}", getattr(self, key), 1)
        if isinstance(self.eval_splits, str) and self.eval_splits != "auto":
            raise UserError(f"trainer.eval_splits={self.eval_splits} is no list; allowed: auto, or [{self.eval_splits}].")
        if self.patience is not None:
            check_at_least("trainer.patience", self.patience, 1)
        if self.threads is not None:
            check_between("trainer.threads", self.threads, 1, MOST_THREADS)
        check_choice("trainer.device", self.device, ["auto", "cpu", "cuda"])
        check_choice("trainer.strategy", self.strategy, STRATEGIES)
        check_choice("trainer.precision", self.precision, PRECISIONS)
        if not isinstance(self.cuda_graphs, bool) and self.cuda_graphs != "auto":
            raise UserError(f"trainer.cuda_graphs={self.cuda_graphs} is not known; allowed: auto, true, false.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("trainer.device=cuda, but PyTorch finds no GPU here; allowed: auto, cpu.")
        if self.accelerator == "cpu" and self.precision == "tf32":
            raise UserError("trainer.precision=tf32 has no effect on a CPU; allowed there: 32-true, bf16-mixed.")
        if self.cuda_graphs is True and self.accelerator == "cpu":
            raise UserError("trainer.cuda_graphs=true needs a GPU; allowed on a CPU: auto, false.")
        if self.accelerator == "cuda" and self.devices > (there := torch.cuda.device_count()):
            raise UserError(
                f"trainer.devices={self.devices} is more than the {counted(there, 'GPU')} here; allowed: 1 to {there}."
            )
        if self.devices * self.num_nodes > 1 and self.strategy == "auto":
            key = "devices" if self.devices > 1 else "num_nodes"
            raise UserError(f"trainer.{key}={getattr(self, key)} needs trainer.strategy=ddp or fsdp.")
        if self.num_nodes > 1 and not any(name in os.environ for name in NAMES_THE_MACHINE):
            raise UserError(
                f"trainer.num_nodes={self.num_nodes}: nothing says which of them this machine is; allowed: 1, or to start the "
                "command on each with torchrun or srun."
            )
        parts = self.devices * self.num_nodes * self.accumulate
        if self.batch_size % parts:
            raise UserError(
                f"trainer.batch_size={self.batch_size} cannot be shared evenly by trainer.devices x trainer.num_nodes x "
                f"trainer.accumulate = {parts}; allowed: multiples of {parts}."
            )
        if self.cuda_graphs is True and parts > 1:
            raise UserError(
                f"trainer.cuda_graphs=true records steps of one device and micro-batch, not of {parts}; allowed: auto, false."
            )

    @property
    def accelerator(self) -> str:
        """``cpu`` or ``cuda``."""
        return {"auto": "cuda" if torch.cuda.is_available() else "cpu"}.get(self.device, self.device)

    @property
    def uses_graphs(self) -> bool:
        """Whether steps are to be recorded as CUDA graphs."""
        alone = self.devices * self.num_nodes * self.accumulate == 1
        return self.cuda_graphs is True or (self.cuda_graphs == "auto" and self.accelerator == "cuda" and alone)

    def alone(self) -> TrainerSettings:
        """The same on one device, without graphs."""
        return replace(self, devices=1, num_nodes=1, strategy="auto", cuda_graphs=False)

    def fabric(self) -> Fabric:
        """The launched Fabric. Where it starts further processes, they run the same command from its beginning."""
        return launched(self.accelerator, self.precision, self.devices, self.num_nodes, self.strategy)


def launched(accelerator: str, precision: str, devices: int = 1, num_nodes: int = 1, strategy: str = "auto") -> Fabric:
    """Fabric on these devices, ready; ``accelerator`` may be ``auto``, and TF32, which is a GPU's own, is float32 elsewhere."""
    is_tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if is_tf32 and torch.cuda.is_available() else "highest")
    # cuDNN's attention plans anew for every shape, at milliseconds each; FlashAttention does not plan.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Of Lightning's and PyTorch's names for what they do; what replaces them does something else, or is not there yet.
    warnings.filterwarnings("ignore", message=".*(broadcast_buffers|functional.all_gather).* is deprecated")
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=run_by(strategy, devices * num_nodes),
            precision="32-true" if is_tf32 else precision,  # type: ignore[arg-type]  # checked where it is set
            # One device needs no cluster, and is not to be stopped by the variables of the one it is in.
            plugins=LightningEnvironment() if devices * num_nodes == 1 else None,
        )
    except (RuntimeError, ValueError) as error:  # of a cluster's variables
        raise UserError(f"trainer.devices={devices}, trainer.num_nodes={num_nodes}: {error}") from error
    fabric.launch()
    return fabric


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that are freed, instead of giving them back to the system and asking again.

    A training step frees and asks for the same blocks over and over, and a new page costs the system more than the arithmetic
    that fills it. Only glibc (Linux) is known to need this; elsewhere nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mmap_max, trim_threshold = -4, -1  # glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD
    library = ctypes.CDLL(None)
    library.mallopt(mmap_max, 0)  # large blocks come from the heap too
    library.mallopt(trim_threshold, 2**31 - 1)  # and the heap's end is not given back


def peak_memory_mib() -> float:
    """The process's peak resident memory and the GPU's peak allocation, whichever is larger, in MiB."""
    try:
        import resource  # which Windows has not
    except ImportError:
        resident_kib = 0.0
    else:
        resident_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if platform.system() == "Darwin" else 1)
    allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return max(resident_kib / 1024, allocated / 2**20)
