"""Tables for the terminal: one run, or a sweep."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from cope.results.collect import describe_differences
from cope.results.record import RunFolder
from cope.results.statistics import mean_and_spread, wilson_interval

MISSING = "missing"


def percent(fraction: float) -> str:
    """0.0123 -> ``1.23``, with more digits where a small number would look like none."""
    value = 100 * fraction
    digits = 2 if value == 0 or value >= 0.01 else -math.floor(math.log10(value))
    return f"{value:.{digits}f}"


def headline_count(split: dict[str, Any], headline: str) -> tuple[int, int]:
    """(errors, count) of the metric that the task is judged by."""
    if headline == "token_error":
        return split["token_errors"], split["token_count"]
    return split["errors"], split["count"]


def scores_table(headline: str, splits: dict[str, Any]) -> str:
    """A row for each split: the headline error with its 95% Wilson interval, and the counts."""
    other = "token_error" if headline == "error" else "error"
    names = {"error": "sequence error %", "token_error": "token error %"}
    rows = []
    for split, found in splits.items():
        errors, count = headline_count(found, headline)
        low, high = wilson_interval(errors, count)
        row = {
            "split": split,
            names[headline]: percent(found[headline]),
            "95% interval": f"{percent(low)} to {percent(high)}",
            "wrong": f"{errors} of {count}",
        }
        if found["token_count"] != found["count"]:
            row[names[other]] = percent(found[other])
        rows.append(row)
    lines = [pd.DataFrame(rows).to_string(index=False)]
    cut = {split: found["num_cut"] for split, found in splits.items() if found["num_cut"]}
    if cut:
        counts = ", ".join(f"{number} of {split}" for split, number in cut.items())
        lines.append(f"sequences cut or left out to fit the context: {counts}")
    return "\n".join(lines)


def run_table(result: dict[str, Any], folder: RunFolder, pictures: Iterable[Path]) -> str:
    """What a run was, its scores, where its folder is, and its pictures."""
    lines = [
        f"{result['encoding']} on {result['task']} (scale {result['scale']}, seed {result['seed']}, "
        f"{result['num_parameters']:,} parameters, {result['num_tokens']:,} tokens in {result['time_s']:.0f} s)",
        "",
        scores_table(result["headline"], result["splits"]),
        "",
        f"run folder: {folder.path}",
        *[f"picture:    {path}" for path in pictures],
    ]
    return "\n".join(lines)


def run_line(result: dict[str, Any]) -> str:
    """One finished run in one line."""
    splits = ", ".join(f"{split} {percent(found[result['headline']])}%" for split, found in result["splits"].items())
    return f"done: {result['task']} {result['encoding']} seed={result['seed']}: {splits} ({result['time_s']:.0f} s)"


def sweep_table(results: list[dict[str, Any]]) -> str:
    """Mean (standard deviation over seeds) of the headline error, a row for each encoding, a column for each split."""
    parts = []
    for task in dict.fromkeys(result["task"] for result in results):
        of_task = [result for result in results if result["task"] == task]
        headline = of_task[0]["headline"]
        name = "sequence error" if headline == "error" else "token error"
        labels = describe_differences([result["config"] for result in of_task])
        groups: dict[str, list[dict[str, Any]]] = {}
        for result, label in zip(of_task, labels, strict=True):
            groups.setdefault(f"{result['encoding']} {label}".strip(), []).append(result)
        rows = []
        for label, group in groups.items():
            row = {"encoding": label, "seeds": len(group)}
            for split in dict.fromkeys(split for result in of_task for split in result["splits"]):
                values = [result["splits"][split][headline] for result in group if split in result["splits"]]
                row[split] = spread(values)
            rows.append(row)
        title = f"{task}: {name} %, mean (standard deviation over seeds), scale {of_task[0]['scale']}"
        parts.append(title + "\n" + pd.DataFrame(rows).to_string(index=False))
    return "\n\n".join(parts)


def spread(values: list[float]) -> str:
    """``1.23 (0.45)`` of fractions, as percentages; no bracket for a single value."""
    if not values:
        return MISSING
    mean, deviation = mean_and_spread(values)
    return percent(mean) if deviation is None else f"{percent(mean)} ({percent(deviation)})"
