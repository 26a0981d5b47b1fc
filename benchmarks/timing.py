"""What every benchmark shares: candidates timed in turn, and where results are written."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cope.run.provenance import commit, hardware, versions

OUTPUT = Path("outputs/benchmark")
MATRIX_SIZE = 1024
TURN_S, LONGEST_TURN = 0.02, 20  # of short calls: seconds, and at most so many of them


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


def medians_of_calls(calls: dict[Any, Callable[[], object]], repeats: int, device: str) -> dict[Any, float]:
    """Seconds of each call, so short that the clock and the wait for a GPU would show: a turn is as many as take 20 ms."""
    turns = {}
    for name, call in calls.items():
        for _ in range(2):  # kernels are compiled, libraries make their plans
            call()
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        turns[name] = max(1, min(LONGEST_TURN, int(TURN_S / (time.perf_counter() - start))))

    def take_turn(call: Callable[[], object], number: int) -> None:
        for _ in range(number):
            call()
        synchronize(device)

    seconds = medians({name: partial(take_turn, call, turns[name]) for name, call in calls.items()}, repeats)
    return {name: seconds[name] / turns[name] for name in calls}


def synchronize(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def large_matmul() -> Callable[[], object]:
    """A matrix multiplication that shows what the machine can do, to be timed in turn with what is measured."""
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE)
    return lambda: matrix @ matrix


def matmul_rate(seconds: float) -> float:
    """Operations per second of a :func:`large_matmul` that took ``seconds``."""
    return 2 * MATRIX_SIZE**3 / seconds


def circumstances(device: str) -> dict[str, Any]:
    """What figures were measured on, and when."""
    found: dict[str, Any] = {
        "date": str(date.today()), "commit": commit(), "versions": versions(), "hardware": hardware(torch.device(device)),
    }  # fmt: skip
    own, packages = found["hardware"], found["versions"]
    software = [f"PyTorch {packages['torch']}"]
    if device == "cuda":
        own["memory_gib"] = torch.cuda.get_device_properties(0).total_memory / 2**30
        packages |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        software += [f"CUDA {packages['cuda']}", f"cuDNN {packages['cudnn']}", f"Triton {packages.get('triton', 'missing')}"]
    found["in_words"] = ", ".join(
        [own["device"], f"{own['processor']} with {own['cores']} cores", *software, f"commit {found['commit']}", found["date"]]
    )
    return found


def as_cell(error: str) -> str:
    """A failure's message as a cell of a Markdown table."""
    return error.replace("\n", " ").replace("|", "/")[:300]


def write_result(name: str, result: dict[str, Any], repeats: int, device: str = "cpu") -> None:
    """``outputs/benchmark/<name>.json``, with what the figures were measured on."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    content = result | circumstances(device) | {"repeats": repeats}
    (OUTPUT / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    print(f"written: {OUTPUT / name}.json")
