"""One run over several devices: its weights in shards, its state as a whole, and its end if one of the processes is lost.

A checkpoint is the same file whatever the number of devices and the strategy: shards are brought together where it is written
and shared out again where it is read. So a run that was saved on two devices goes on on one, or on four.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from cope.errors import Interrupted, UserError
from cope.model.transformer import Transformer

STRATEGIES = ("auto", "ddp", "fsdp")


def run_by(name: str, num_devices: int) -> Strategy | str:
    """What Fabric runs ``name`` of ``STRATEGIES`` by."""
    if name == "ddp":
        # Buffers are constants here. Synchronising them would hang where a device has no batch to evaluate.
        return DDPStrategy(broadcast_buffers=False)
    if name == "fsdp":
        return ModelParallelStrategy(_shard, data_parallel_size=num_devices, tensor_parallel_size=1)
    return name


def _shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Each layer by itself, so that only one is whole at a time; the rest together."""
    transformer = next(module for module in model.modules() if isinstance(module, Transformer))
    transformer.to(mesh.device_type)
    for part in (*transformer.layers, transformer):
        fully_shard(part, mesh=mesh["data_parallel"])
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether every device has a part of the weights only: then all of them must run the model as often."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def whole(state: Any) -> Any:
    """``state`` with every shard brought together, on the CPU; all devices must ask at the same time."""
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    return state.full_tensor().cpu() if isinstance(state, DTensor) else state


def shared_out(tensors: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """``tensors`` in shards where those of the same name in ``like`` are; all devices must ask at the same time."""
    return {name: _shared_out(value, like.get(name)) for name, value in tensors.items()}


def shared_out_optimizer(state: dict[int, dict[str, Any]], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """The same for what an optimiser keeps of each weight."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return {
        number: {name: _shared_out(value, weights[number]) for name, value in kept.items()} for number, kept in state.items()
    }


def _shared_out(value: Any, like: Any) -> Any:
    if not isinstance(like, DTensor) or not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value  # no shard; or of another model, which is told where it is loaded
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


@contextmanager
def ending_together(fabric: Fabric) -> Iterator[None]:
    """Inside, an error of one process ends all of them, and one of them tells of it; without one they part in good order."""
    try:
        yield
        if fabric.world_size > 1:  # a process that ends while others talk to it may be aborted
            fabric.barrier()
            dist.destroy_process_group()
    except UserError as error:
        if fabric.world_size == 1:
            raise
        if isinstance(error, Interrupted):  # all at the same step, and what started them (Slurm's requeue) looks at the first
            if not fabric.is_global_zero:
                sys.exit(130)
        elif not _tells(fabric):
            sys.exit(1)
        raise
    except RuntimeError as error:
        if fabric.world_size == 1 or not _is_of_a_connection(error):
            raise
        if not _tells(fabric):
            sys.exit(1)
        raise UserError(
            f"One of the {fabric.world_size} processes of this run has ended, so the others end too; its own message, if it "
            "left one, is above. The same command goes on from the last checkpoint."
        ) from error


def _tells(fabric: Fabric) -> bool:
    """Whether this process is the first that has something to tell."""
    with suppress(RuntimeError):  # the store is kept by the process with rank 0, unless torchrun has it
        return dist.distributed_c10d._get_default_store().add("cope: told", 1) == 1
    return fabric.global_rank == 1


def _is_of_a_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "onnection"))
