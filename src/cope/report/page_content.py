"""What the page shows, as the plain texts that its template puts in place."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cope.metrics import LABELLED, METRICS
from cope.report.claims import Verdict
from cope.report.comparisons import Outcome
from cope.report.drawing import Drawing, table_command
from cope.report.findings import Findings
from cope.report.names import encoding_name, row_name, section_name, split_name, table_title, task_name
from cope.report.paper import headline_of, paper_values
from cope.report.plan_sheets import FAILED, num_runs_text, published_text
from cope.sweep.plan import Plan, PlannedRun

SPARK = (72, 18)  # width and height of a curve in the list of runs
SPARK_POINTS = 30
MOST_PLACES = 3  # of the paper's figures beside a claim

# ---- claims ----------------------------------------------------------------------------------------------------------


def in_a_sentence(verdicts: Sequence[Verdict]) -> str:
    """How many claims came out how, what is decided first."""
    counts = Counter(verdict.outcome for verdict in verdicts)
    found = ", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome])
    return f"Of the paper's {len(verdicts)} claims: {found}."


def anchor(source: str) -> str:
    """Table 2 -> table2; Figures 4 and 6 -> figure4."""
    kind, number = source.lower().split()[:2]
    return kind.rstrip("s") + number


def published(verdict: Verdict) -> str:
    """The paper's figures for what a claim compares."""
    places: dict[tuple[str, str], dict[str, float]] = {}
    for part in verdict.comparisons:
        for row in part.rows:
            figures = paper_values().get(part.section, {}).get(row, {}).get(part.split)
            if figures:
                places.setdefault((part.section, part.split), {})[row] = figures[0]
    told = []
    for (section, _), values in places.items():
        metric = METRICS[headline_of(section)]
        unit = "%" if metric.is_percentage else ""
        told.append(", ".join(f"{row_name(row)} {published_text([value], metric)}{unit}" for row, value in values.items()))
    return "; ".join(told) if len(told) <= MOST_PLACES else "; ".join([*told[:MOST_PLACES], "…"])


# ---- runs ------------------------------------------------------------------------------------------------------------


class RunList:
    """Every run that is finished or failed, once, with the number by which the page's links name it.

    Args:
        files_of: where the page finds a run's files.
    """

    def __init__(self, findings: Findings, files_of: Callable[[PlannedRun], dict[str, str]]) -> None:
        self._entries: dict[Path, dict[str, Any]] = {}
        self._of_row: dict[tuple[str, str], dict[int, Path]] = {}
        self._files_of = files_of
        for run, result in findings.runs():
            self._add(run, result, findings.curve_of(run, result))
        for run in findings.failed_runs():
            self._add(run, None, [])

    def by_task(self) -> dict[str, list[dict[str, Any]]]:
        """What the page shows of each."""
        found: dict[str, list[dict[str, Any]]] = {}
        for entry in self._entries.values():
            found.setdefault(task_name(entry["task"]), []).append(entry)
        return found

    def of_row(self, section: str, row: str) -> list[dict[str, Any]]:
        """Those of one row, by seed."""
        return [self._entries[path] for _, path in sorted(self._of_row.get((section, row), {}).items())]

    def behind(self, drawing: Drawing) -> list[dict[str, Any]]:
        """Those that a picture is drawn from."""
        paths = [path for (section, _), found in self._of_row.items() if section in drawing.sections for path in found.values()]
        return [self._entries[path] for path in dict.fromkeys([*paths, *drawing.run_folders]) if path in self._entries]

    def _add(self, run: PlannedRun, result: dict[str, Any] | None, curve: list[tuple[int, float]]) -> None:
        path = run.folder.path
        if path not in self._entries:
            self._entries[path] = {**_described(run, result, curve), "files": self._files_of(run), "uses": []}
            self._entries[path]["number"] = len(self._entries)
        use = f"{section_name(run.section)}: {row_name(run.row)}"
        if use not in self._entries[path]["uses"]:
            self._entries[path]["uses"].append(use)
        self._of_row.setdefault((run.section, run.row), {})[run.seed] = path


def links_to(folder: Path, with_runs: bool) -> Callable[[PlannedRun], dict[str, str]]:
    """Where a page in ``folder`` finds a run's files: beside it if they are copied there, else in the run's own folder."""

    def files_of(run: PlannedRun) -> dict[str, str]:
        own = run.folder
        if with_runs:
            return {"result.json": f"runs/{own.place.as_posix()}/result.json"} if own.result.exists() else {}
        paths = {"result.json": own.result, "config": own.config, "curves": own.metrics, "log": own.log}
        return {name: os.path.relpath(path, folder).replace(os.sep, "/") for name, path in paths.items() if path.exists()}

    return files_of


def _described(run: PlannedRun, result: dict[str, Any] | None, curve: list[tuple[int, float]]) -> dict[str, Any]:
    found = result or {}
    keys = ("commit", "date", "num_parameters", "best_step", "steps")
    return {key: found.get(key, "") for key in keys} | {
        "task": run.folder.task,
        "encoding": run.folder.encoding,
        "label": encoding_name(run.folder.encoding),
        "seed": run.seed,
        "scale": run.scale,
        "state": "finished" if result else FAILED,
        "seconds": f"{found['time_s']:.0f}" if result else "",
        "scores": _scores(result) if result else "",
        "spark": _spark(curve),
        "command": run.command,
        "folder": str(run.folder.path),
        "hardware": ", ".join(f"{key} {value}" for key, value in found.get("hardware", {}).items()),
        "torch": found["versions"]["torch"] if result else "",  # the others are in result.json
    }


def _scores(result: dict[str, Any]) -> str:
    metric = METRICS[result["headline"]]
    found = {split: scores[result["headline"]] for split, scores in result["splits"].items() if split != "validation"}
    return ", ".join(f"{split_name(split, not metric.is_percentage)} {metric.text(value)}" for split, value in found.items())


def _spark(curve: Sequence[tuple[int, float]]) -> str:
    """The points of an SVG polyline: the headline metric of the validations, from 0 up."""
    if len(curve) < 2:
        return ""
    curve = [*curve[:: max(1, len(curve) // SPARK_POINTS)], curve[-1]]
    last, highest = curve[-1][0] or 1, max(value for _, value in curve) or 1
    width, height = SPARK
    return " ".join(f"{width * step / last:.0f},{1 + (height - 2) * (1 - value / highest):.1f}" for step, value in curve)


# ---- tables ----------------------------------------------------------------------------------------------------------


def tables(
    plans: Sequence[Plan],
    verdicts: Sequence[Verdict],
    cells: pd.DataFrame,
    differences: pd.DataFrame,
    drawings: Sequence[Drawing],
    runs: RunList,
) -> list[dict[str, Any]]:
    """Each table that has runs: its claims, its sections in the paper's form, its pictures, and every number of it."""
    found = []
    for plan in sorted(plans, key=lambda plan: (not plan.name.startswith("table"), plan.name)):
        own = cells[(cells["table"] == plan.name) & cells["section"].isin(_with_runs(cells, plan))]
        beside = differences[differences["section"].isin(own["section"]) & (differences["seeds"] > 0)]
        pictures = [drawing for drawing in drawings if table_of(drawing) == plan.name]
        if own.empty:
            continue
        found.append(
            {
                "name": plan.name,
                "label": table_title(plan.name),
                "title": plan.title,
                "command": table_command([plan.name]),
                "claims": [verdict for verdict in verdicts if anchor(verdict.source) == plan.name],
                "sections": _matrices(own, runs),
                "details": _sections(own, lambda cell: _cell(cell, runs)),
                "differences": _sections(beside, lambda cell: _difference(cell, runs)),
                "pictures": [(drawing, runs.behind(drawing)) for drawing in pictures],
            }
        )
    return found


def _with_runs(cells: pd.DataFrame, plan: Plan) -> list[str]:
    own = cells[cells["table"] == plan.name]
    return list(own[(own["seeds"] > 0) | (own["failed"] > 0)]["section"].unique())


def table_of(drawing: Drawing) -> str:
    """The table or figure of the paper that a picture belongs to; of what there is no table of, its own name."""
    return "figure4" if drawing.path.stem.startswith("position_alone") else drawing.path.stem


def _matrices(cells: pd.DataFrame, runs: RunList) -> list[dict[str, Any]]:
    """One for each section, a column a split; where sections have one split each, one for all of them, a column a section."""
    by_split = [(str(section), own) for section, own in cells.groupby("section", sort=False)]
    if len(by_split) > 1 and cells["metric"].nunique() == 1 and all(own["split"].nunique() == 1 for _, own in by_split):
        return [_matrix("", cells.assign(column=cells["section"].map(section_name)), runs)]
    return [
        _matrix(section_name(section), own.assign(column=[_split(cell) for cell in own.to_dict("records")]), runs)
        for section, own in by_split
    ]


def _matrix(name: str, cells: pd.DataFrame, runs: RunList) -> dict[str, Any]:
    """In the paper's form: a row an encoding or variant; ours, and beside it the paper's where it has any."""
    in_paper = set(cells[cells["paper"].notna()]["column"])
    columns = list(cells["column"].unique())
    rows, not_run = [], []
    for row, own in cells.groupby("row", sort=False):
        if not own[["seeds", "failed"]].any(axis=None) and own["paper"].isna().all():
            not_run.append(row_name(str(row)))
            continue
        of = {cell["column"]: cell for cell in own.to_dict("records")}
        counts = [num_runs_text(int(cell["seeds"]), int(cell["failed"])) for cell in of.values()]
        rows.append(
            _identity(next(iter(of.values())), runs)
            | {
                "name": row_name(str(row)),
                "cells": [_beside(of.get(column), column in in_paper) for column in columns],
                "count": "; ".join(counts if len(set(counts)) > 1 else counts[:1]),
            }
        )
    heads = [head for column in columns for head in ([column, "paper"] if column in in_paper else [column])]
    return {"name": name, "metric": cells["metric"].iloc[0], "columns": heads, "rows": rows, "not_run": not_run}


def _beside(cell: dict[Any, Any] | None, has_paper: bool) -> tuple[str, str | None]:
    """Our figure, and the paper's where the column has any."""
    return _ours(cell) if cell else "", (_as_printed(cell) if cell else "") if has_paper else None


def _sections(table: pd.DataFrame, show: Callable[[dict[Any, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for cell in table.to_dict("records"):
        section = sections.setdefault(
            cell["section"], {"name": section_name(cell["section"]), "metric": cell["metric"], "rows": []}
        )
        section["rows"].append(show(cell))
    for section in sections.values():
        section["has_errors"] = any(row.get("learned") for row in section["rows"])
    return list(sections.values())


def _identity(cell: dict[Any, Any], runs: RunList) -> dict[str, Any]:
    return {
        "encoding": cell["encoding"],
        "name": row_name(cell["row"]),
        "split": _split(cell),
        "runs": runs.of_row(cell["section"], cell["row"]),
    }


def _split(cell: dict[Any, Any]) -> str:
    return split_name(cell["split"], not LABELLED[cell["metric"]].is_percentage)


def _ours(cell: dict[Any, Any]) -> str:
    return _with_spread(cell["metric"], cell["mean"], cell["std"]) if cell["seeds"] else str(cell["state"])


def _cell(cell: dict[Any, Any], runs: RunList) -> dict[str, Any]:
    learned = "" if math.isnan(cell["learned"]) else f"{100 * cell['learned']:.0f}%"
    return _identity(cell, runs) | {
        "ours": _ours(cell),
        "iqm": "" if math.isnan(cell["iqm"]) else _figure(cell["metric"], cell["iqm"]),
        "interval": _interval(cell["metric"], cell["iqm_low"], cell["iqm_high"]),
        "learned": learned,
        "learned_interval": "" if not learned else f"{100 * cell['learned_low']:.0f} to {100 * cell['learned_high']:.0f}%",
        "still_improving": _number(cell["still_improving"]),
        "paper": _as_printed(cell),
        "difference": _signed(cell["difference"]),
        "count": num_runs_text(cell["seeds"], cell["failed"]),
    }


def _difference(cell: dict[Any, Any], runs: RunList) -> dict[str, Any]:
    return _identity(cell, runs) | {
        "difference": _signed(cell["difference"]),
        "interval": "" if math.isnan(cell["low"]) else f"{cell['low']:.3g} to {cell['high']:.3g}",
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
    return LABELLED[label].text_of_shown(value, size)


def _as_printed(cell: dict[Any, Any]) -> str:
    figures = [value for value in (cell["paper"], cell["paper_std"]) if not math.isnan(value)]
    return published_text(figures, LABELLED[cell["metric"]])


def _interval(label: str, low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{_figure(label, low)} to {_figure(label, high)}"
