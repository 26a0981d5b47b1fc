"""What the figures of a table come from, in a line below it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

NOT_RECORDED = "not recorded"  # of results from before it was


def provenance_line(results: list[dict[str, Any]]) -> str:
    """Scale, seeds, hardware, threads, versions, kernels, commits, code and dates of the runs behind a table."""
    hardware = [result["hardware"] for result in results]
    processors = [h["processor"] + (f" with {h['instructions']}" if "instructions" in h else "") for h in hardware]
    on_gpu = [found["device"] for found in hardware if found.get("device", "cpu") != "cpu"]
    kernels = [result["kernel"] for result in results if "kernel" in result]
    seeds = sorted({result["seed"] for result in results})
    parts = [
        f"Scale {_all_of(result['scale'] for result in results)}",
        f"seed{'s' * (len(seeds) > 1)} {_all_of(seeds)}",
        *([_all_of(on_gpu)] if on_gpu else []),
        f"{_all_of(processors)}, {_threads(hardware)} a run",
        f"PyTorch {_all_of(result['versions']['torch'] for result in results)}",
        *([f"attention by {_all_of(kernels)}"] if kernels else []),
        f"commit {_all_of(result['commit'] or 'not known' for result in results)}",
        _code(results),
        _all_of(sorted(result["date"] for result in results)),
    ]
    return "; ".join(parts) + "."


def _all_of(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def _code(results: list[dict[str, Any]]) -> str:
    """The fingerprint of the code that trained; several are said as such."""
    counts = Counter(result.get("code", NOT_RECORDED) for result in results)
    if len(counts) == 1:
        return f"code {next(iter(counts))}"
    return "runs of different code: " + ", ".join(f"{code} ({number})" for code, number in counts.items())


def _threads(hardware: list[dict[str, Any]]) -> str:
    numbers = {found["threads"] for found in hardware}
    return f"{_all_of(found['threads'] for found in hardware)} thread{'s' * (numbers != {1})}"
