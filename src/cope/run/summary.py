"""A finished run in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cope.errors import counted
from cope.metrics import METRICS, test_and_worst


def how_it_ended(result: dict[str, Any]) -> str:
    """What to tell of a run that was to train until it no longer improves; empty of one that had its steps."""
    if "stopped" not in result:
        return ""
    if result["still_improving"]:
        return f"had all of its {result['steps']:,} steps before its patience was used up: it may still improve"
    why = "it no longer improved" if result["stopped"] == "patience" else "it had learned the task"
    return f"ended after {counted(result['steps'], 'step')}: {why}"


def run_line(result: dict[str, Any], settings: Sequence[str] = ()) -> str:
    """What it was, its headline metric on ``test`` and on the worst split out of distribution, its time: some 80 columns.

    Args:
        settings: what else tells it apart, such as ``num_variables=3``.
    """
    headline = result["headline"]
    metric = METRICS[headline]
    test, worst = test_and_worst({split: found[headline] for split, found in result["splits"].items()})
    unit = "%" * metric.is_percentage
    scores = f"{metric.label.removesuffix(' %')} {metric.text(test)}{unit}"
    elsewhere = "" if worst is None else f", OOD {metric.text(worst)}{unit}"
    ending = ", still improving" if result.get("still_improving") else ""
    name = " ".join([result["task"], result["encoding"], *settings, f"seed={result['seed']}"])
    return f"{name}: {scores}{elsewhere}; {result['time_s']:.0f} s{ending}"
