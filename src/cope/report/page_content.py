"""What the page shows, as the plain texts that its template puts in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cope.metrics import METRICS
from cope.report.drawing import Drawing, table_command
from cope.report.findings import Findings, task_and_encoding
from cope.report.markdown import FAILED, num_runs_text
from cope.sweep.plan import Plan, PlannedRun


class RunList:
    """Every run that is finished or failed, once, with the number by which the page's links name it."""

    def __init__(self, findings: Findings) -> None:
        self._entries: dict[Path, dict[str, Any]] = {}
        self._of_row: dict[tuple[str, str], dict[int, Path]] = {}
        for run, result in findings.runs():
            self._add(run, result)
        for run in findings.failed_runs():
            self._add(run, None)

    def entries(self) -> list[dict[str, Any]]:
        """What the page shows of each."""
        return list(self._entries.values())

    def of_row(self, section: str, row: str) -> list[dict[str, Any]]:
        """Those of one row, by seed."""
        return [self._entries[path] for _, path in sorted(self._of_row.get((section, row), {}).items())]

    def behind(self, drawing: Drawing) -> list[dict[str, Any]]:
        """Those that a picture is drawn from."""
        paths = [path for (section, _), found in self._of_row.items() if section in drawing.sections for path in found.values()]
        return [self._entries[path] for path in dict.fromkeys([*paths, *drawing.run_folders]) if path in self._entries]

    def _add(self, run: PlannedRun, result: dict[str, Any] | None) -> None:
        path = run.folder.path
        entry = self._entries.setdefault(path, {**_described(run, result), "number": len(self._entries) + 1, "uses": []})
        use = f"{run.section}: {run.row}"
        if use not in entry["uses"]:
            entry["uses"].append(use)
        self._of_row.setdefault((run.section, run.row), {})[run.seed] = path


def _described(run: PlannedRun, result: dict[str, Any] | None) -> dict[str, Any]:
    task, encoding = task_and_encoding(run)
    found = result or {}
    keys = ("commit", "date", "num_parameters", "time_s", "peak_memory_mib", "best_step", "steps")
    return {key: found.get(key, "") for key in keys} | {
        "task": task,
        "encoding": encoding,
        "seed": run.seed,
        "scale": run.scale,
        "state": "finished" if result else FAILED,
        "command": run.command,
        "folder": str(run.folder.path),
        "log": "" if result else str(run.log),
        "hardware": ", ".join(f"{key} {value}" for key, value in found.get("hardware", {}).items()),
        "versions": ", ".join(f"{key} {value}" for key, value in found.get("versions", {}).items()),
        "config": yaml.safe_dump(found.get("config", {}), sort_keys=False) if result else "",
    }


def tables(plans: Sequence[Plan], table: pd.DataFrame, runs: RunList) -> list[dict[str, Any]]:
    """Each table with its sections, and each section with its rows; those of the paper's tables first."""
    return [
        {
            "name": plan.name,
            "title": plan.title,
            "command": table_command([plan.name]),
            "sections": _sections(table[table["table"] == plan.name], lambda cell: _cell(cell, runs)),
        }
        for plan in sorted(plans, key=lambda plan: not plan.name.startswith("table"))
    ]


def difference_sections(table: pd.DataFrame, runs: RunList) -> list[dict[str, Any]]:
    """The sections of the table of differences that have any."""
    return _sections(table[table["seeds"] > 0], lambda cell: _difference(cell, runs))


def _sections(table: pd.DataFrame, show: Callable[[dict[Any, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for cell in table.to_dict("records"):
        section = sections.setdefault(cell["section"], {"name": cell["section"], "metric": cell["metric"], "rows": []})
        section["rows"].append(show(cell))
    for section in sections.values():
        section["has_errors"] = any(row.get("learned") for row in section["rows"])
    return list(sections.values())


def _identity(cell: dict[Any, Any], runs: RunList) -> dict[str, Any]:
    behind = runs.of_row(cell["section"], cell["row"])
    scales = dict.fromkeys(run["scale"] for run in behind if run["scale"])
    keys = ("row", "split", "task", "encoding", "seeds")
    return {key: cell[key] for key in keys} | {"scale": ", ".join(scales), "runs": behind}


def _cell(cell: dict[Any, Any], runs: RunList) -> dict[str, Any]:
    learned = "" if math.isnan(cell["learned"]) else f"{100 * cell['learned']:.0f}%"
    return _identity(cell, runs) | {
        "ours": _with_spread(cell["metric"], cell["mean"], cell["std"]) if cell["seeds"] else cell["state"],
        "iqm": "" if math.isnan(cell["iqm"]) else _figure(cell["metric"], cell["iqm"]),
        "interval": _interval(cell["iqm_low"], cell["iqm_high"]),
        "learned": learned,
        "learned_interval": _interval(100 * cell["learned_low"], 100 * cell["learned_high"]),
        "still_improving": _number(cell["still_improving"]),
        "paper": _as_printed(cell["paper"], cell["paper_std"]),
        "difference": _signed(cell["difference"]),
        "count": num_runs_text(cell["seeds"], cell["failed"]),
    }


def _difference(cell: dict[Any, Any], runs: RunList) -> dict[str, Any]:
    return _identity(cell, runs) | {
        "difference": _signed(cell["difference"]),
        "interval": _interval(cell["low"], cell["high"]),
        "cope_lower": f"{cell['cope_lower']} of {cell['seeds']}",
        "e_value": f"{max(cell['e_lower'], cell['e_higher']):.3g}",
        "probability": _number(cell["probability"], 2),
    }


def _number(value: float, digits: int = 4) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}g}"


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.3g}"


def _with_spread(label: str, value: float, spread: float) -> str:
    return _figure(label, value) + ("" if math.isnan(spread) else f" ({_figure(label, spread, value)})")


def _figure(label: str, value: float, size: float | None = None) -> str:
    """As in the tables' Markdown."""
    metric = next(metric for metric in METRICS.values() if metric.label == label)
    return metric.text(value / metric.factor, size)


def _as_printed(value: float, spread: float) -> str:
    return _number(value, 6) + ("" if math.isnan(spread) else f" ({spread:.3g})")


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{low:.3g} to {high:.3g}"
