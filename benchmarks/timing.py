"""What every benchmark shares: candidates timed in turn, and where results are written."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from cope.run.provenance import hardware

OUTPUT = Path("outputs/benchmark")
MATRIX_SIZE = 1024


def medians(
    steps: dict[Any, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Any, float]:
    """Seconds of each, all taking turns, after one round to warm up."""
    times: dict[Any, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, run in steps.items():
            start = clock()
            run()
            if repeat > 0:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def large_matmul() -> Callable[[], object]:
    """A matrix multiplication that shows what the machine can do, to be timed in turn with what is measured."""
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE)
    return lambda: matrix @ matrix


def matmul_rate(seconds: float) -> float:
    """Operations per second of a :func:`large_matmul` that took ``seconds``."""
    return 2 * MATRIX_SIZE**3 / seconds


def write_result(name: str, result: dict[str, Any], repeats: int, device: str = "cpu") -> None:
    """``outputs/benchmark/<name>.json``, with what the figures were measured on."""
    circumstances = {
        "date": str(date.today()),
        "torch": torch.__version__,
        "hardware": hardware(torch.device(device)),
        "repeats": repeats,
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{name}.json").write_text(json.dumps(result | circumstances, indent=2) + "\n")
    print(f"written: {OUTPUT / name}.json")
