"""A finished run in one line."""

from __future__ import annotations

from typing import Any

from cope.errors import counted
from cope.metrics import METRICS


def how_it_ended(result: dict[str, Any]) -> str:
    """What to tell of a run that was to train until it no longer improves; empty of one that had its steps."""
    if "stopped" not in result:
        return ""
    if result["still_improving"]:
        return f"had all of its {result['steps']:,} steps before its patience was used up: it may still improve"
    why = "it no longer improved" if result["stopped"] == "patience" else "it had learned the task"
    return f"ended after {counted(result['steps'], 'step')}: {why}"


def run_line(result: dict[str, Any]) -> str:
    """What it was, and its headline metric on every split."""
    metric = METRICS[result["headline"]]
    splits = ", ".join(f"{split} {metric.text(found[result['headline']])}" for split, found in result["splits"].items())
    run = f"{result['task']} {result['encoding']} seed={result['seed']}"
    ending = how_it_ended(result)
    return f"done: {run}: {metric.label}: {splits} ({result['time_s']:.0f} s{ending and '; '}{ending})"
