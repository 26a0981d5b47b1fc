"""What runs will cost, as tables: of one that is about to be started, and of all that the paper's tables are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cope.report.sheets import Sheet
from cope.run.cost import GPUS, REACHED, Cost
from cope.run.device import PRECISIONS

GPU_OF_TABLES = "h100"  # that the paper's runs are told for


def cost_sheet(name: str, cost: Cost, dry: str | bool, precision: str) -> Sheet:
    """A row for each thing that a run takes; ``dry`` may name a GPU."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this CPU"
    rows = [
        ("parameters", f"{cost.parameters:,}"),
        ("tokens read in training", f"{cost.tokens:,}"),
        ("training FLOPs", f"{cost.flops:.2e}"),
        ("memory on each device, at least", size(cost.memory_bytes)),
        ("disk, two checkpoints", size(cost.disk_bytes)),
        (f"training on {device}", f"{duration(cost.here_s)} ({cost.step_s:.3g} s a step)"),
    ]
    notes = [
        f"Measured with {cost.sequences} sequences at once on one device; validation, scoring and compilation come on top."
    ]
    if isinstance(dry, str):
        gpu = dry
        rows.append((f"training on one {gpu}", f"about {duration(cost.on_gpu_s(gpu, precision))}"))
        peak = GPUS[gpu][PRECISIONS.index(precision)]
        notes.append(
            f"On {gpu}: at {REACHED:.0%} of its {peak:,.0f} TFLOP/s in {precision}, which is a guess (docs/cluster.md)."
        )
    return Sheet(f"{name}: what it would cost; nothing was started", ("", "costs"), tuple(rows), ("", *notes))


def costs_sheet(costs: Sequence[tuple[str, int, Cost, str]]) -> Sheet:
    """A row for each kind of run: its name, how many there are of it, its cost, its precision; its time here if measured."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this CPU"
    is_measured = any(cost.sequences for _, _, cost, _ in costs)
    columns = (
        *("runs of", "number a seed", "parameters", "tokens", "FLOPs", "memory, at least", "disk"),
        *((f"each, on {device}",) if is_measured else ()),
        f"each, on an {GPU_OF_TABLES}, a guess",
    )
    rows = [
        (
            *(name, f"{number}", f"{cost.parameters:,}", f"{cost.tokens:.2e}", f"{cost.flops:.1e}", size(cost.memory_bytes)),
            size(cost.disk_bytes),
            *((duration(cost.here_s),) if is_measured else ()),
            duration(cost.on_gpu_s(GPU_OF_TABLES, precision)),
        )
        for name, number, cost, precision in costs
    ]
    return Sheet("", columns, tuple(rows))


def size(number: float) -> str:
    """Bytes, as people say them."""
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds, as people say them."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} s"
