"""A finished run in one line."""

from __future__ import annotations

from typing import Any

from cope.metrics import METRICS


def run_line(result: dict[str, Any]) -> str:
    """What it was, and its headline metric on every split."""
    metric = METRICS[result["headline"]]
    splits = ", ".join(f"{split} {metric.text(found[result['headline']])}" for split, found in result["splits"].items())
    run = f"{result['task']} {result['encoding']} seed={result['seed']}"
    return f"done: {run}: {metric.label}: {splits} ({result['time_s']:.0f} s)"
