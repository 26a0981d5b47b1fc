"""What runs will cost, as tables: of one that is about to be started, and of all that the paper's tables are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from cope.errors import counted
from cope.report.names import row_name, section_name, table_title
from cope.report.sheets import Sheet
from cope.run.cost import GPUS, REACHED, Cost
from cope.run.device import PRECISIONS
from cope.sweep.clock import duration
from cope.sweep.plan import Plan, PlannedRun

GPU_OF_TABLES = "h100"  # that the paper's runs are told for
ALL = "all, each run once"  # tables share runs


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


def costs_sheets(plans: Sequence[Plan], costs: Mapping[Path, tuple[Cost, str]], seeds: int) -> list[Sheet]:
    """What all runs of each table take with so many seeds, then, for each table, what each of its runs takes.

    Args:
        costs: by a run's folder, with its precision; their times here are told if they were measured.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this CPU"
    is_measured = any(cost.sequences for cost, _ in costs.values())
    places = (*((f"on {device}",) if is_measured else ()), f"on an {GPU_OF_TABLES}, a guess")

    def times(paths: Iterable[Path], number: int = 1) -> tuple[str, ...]:
        known = [costs[path] for path in paths]
        here = sum(cost.here_s for cost, _ in known)
        there = sum(cost.on_gpu_s(GPU_OF_TABLES, precision) for cost, precision in known)
        return (*((duration(number * here),) if is_measured else ()), duration(number * there))

    def together(name: str, paths: Collection[Path]) -> tuple[str, ...]:
        known = [costs[path][0] for path in paths]
        tokens, flops = (seeds * sum(getattr(cost, what) for cost in known) for what in ("tokens", "flops"))
        disk = seeds * sum(cost.disk_bytes for cost in known)
        return (name, f"{seeds * len(paths)}", f"{tokens:.2e}", f"{flops:.1e}", size(disk), *times(paths, seeds))

    def alone(run: PlannedRun) -> tuple[str, ...]:
        name, (cost, _) = f"{section_name(run.section)}: {row_name(run.row)}", costs[run.folder.path]
        sizes = (f"{cost.parameters:,}", f"{cost.tokens:.2e}", f"{cost.flops:.1e}", size(cost.memory_bytes))
        return (name, *sizes, size(cost.disk_bytes), *times([run.folder.path]))

    sums = [together(table_title(plan.name), {run.folder.path for run in plan.runs}) for plan in plans]
    if len(plans) > 1:
        sums.append(together(ALL, costs))
    title = f"All runs of a table, {counted(seeds, 'seed')} each, one after another"
    each = ("runs of one seed", "parameters", "tokens", "FLOPs", "memory, at least", "disk", *places)
    return [
        Sheet(title, ("table", "runs", "tokens", "FLOPs", "disk", *places), tuple(sums)),
        *(Sheet(f"{table_title(plan.name)}: {plan.title}", each, tuple(map(alone, plan.runs))) for plan in plans),
    ]


def size(number: float) -> str:
    """Bytes, as people say them."""
    amount, unit = (number / 2**30, "GiB") if number >= 2**30 else (number / 2**20, "MiB")
    return f"{amount:,.{1 if amount < 100 else 0}f} {unit}"
