"""A Markdown table of a task's results beside the paper's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import yaml

from cope.report.plan import PlannedRun
from cope.report.tables import MISSING, spread
from cope.results.metrics import METRICS

FAILED = "failed"

# Sections whose published figures are perplexities; the others' are errors in percent.
PERPLEXITIES = ("wikipedia", "code", "variants", "trained at the full context", "trained at half of it")


def paper_figures() -> dict[str, dict[str, dict[str, list[float]]]]:
    """``{section: {row: {split: [mean, standard deviation] or [value]}}}``: test error in percent, or perplexity."""
    content: dict[str, dict[str, dict[str, list[float]]]] = yaml.safe_load(
        files("cope.report").joinpath("paper.yaml").read_text(encoding="utf-8")
    )
    return content


def headlines() -> dict[str, str]:
    """{section: metric} of the published figures."""
    return {section: "perplexity" if section in PERPLEXITIES else "error" for section in paper_figures()}


def failures(runs: Iterable[PlannedRun], section: str) -> dict[str, int]:
    """{row: how many of its runs ended with an error} of one section."""
    return Counter(run.row for run in runs if run.section == section and run.failed)


def no_figure(num_failed: int, num_seeds: int) -> str:
    """What stands where no run is finished: "failed" if all of them ended with an error."""
    return FAILED if num_failed and num_failed >= num_seeds else MISSING


def num_runs_text(num_finished: int, num_failed: int, num_seeds: int) -> str:
    """``2 of 3 seeds, 1 failed``."""
    return f"{num_finished} of {num_seeds} seeds" + (f", {num_failed} failed" if num_failed else "")


def comparison_table(
    section: str,
    results: dict[str, list[dict[str, Any]]],
    num_seeds: int,
    shown: Sequence[str] | None = None,
    failed: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """One row an encoding or variant, one column a test split: mean (standard deviation) here, and below it the paper's.

    Args:
        section: its title, and its name in ``paper.yaml``.
        results: the finished runs of each row; fewer than ``num_seeds`` are marked, none at all is "missing" or "failed".
        shown: the splits; None is every test split.
        failed: how many runs of a row ended with an error, as :func:`failures` counts them.
    """
    finished = [result for runs in results.values() for result in runs]
    num_failed = sum(failed.values())
    if not finished:
        planned = num_seeds * len(results)
        some = f" ({num_failed} of {planned} runs failed)" if 0 < num_failed < planned else ""
        return f"**{section}**: {no_figure(num_failed, planned)}{some}"
    headline = finished[0]["headline"]
    splits = shown or [split for split in finished[0]["splits"] if split != "validation"]
    paper = paper_figures().get(section, {})
    lines = [
        f"**{section}**, {METRICS[headline].label}",
        "",
        "| | " + " | ".join(splits) + " | seconds a run |",
        "|---" * (len(splits) + 2) + "|",
    ]
    for row, runs in results.items():
        lost = no_figure(failed.get(row, 0), num_seeds)
        cells = []
        for split in splits:
            values = [run["splits"][split][headline] for run in runs if split in run["splits"]]
            cell = spread(values, METRICS[headline]) if values or runs else lost
            cells.append(cell + _published(paper.get(row, {}).get(split)))
        seconds = f"{sum(run['time_s'] for run in runs) / len(runs):.0f}" if runs else lost
        complete = len(runs) == num_seeds
        name = row if complete else f"{row} ({num_runs_text(len(runs), failed.get(row, 0), num_seeds)})"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {seconds} |")
    return "\n".join(lines)


def _published(figures: list[float] | None) -> str:
    """The paper's mean and, where it has one, standard deviation."""
    if figures is None:
        return ""
    deviation = f" ({figures[1]})" if len(figures) > 1 else ""
    return f"<br>*paper {figures[0]}{deviation}*"


def provenance(results: list[dict[str, Any]]) -> str:
    """What the figures come from: scale, seeds, hardware, threads, versions, commit, date."""

    def all_of(values: list[Any]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values))

    hardware = [result["hardware"] for result in results]
    return (
        f"Scale {all_of([r['scale'] for r in results])}; seeds {all_of(sorted(r['seed'] for r in results))}; "
        f"{all_of([h['processor'] for h in hardware])}, {all_of([h['threads'] for h in hardware])} thread(s) a run; "
        f"PyTorch {all_of([r['versions']['torch'] for r in results])}; commit {all_of([r['commit'] for r in results])}; "
        f"{all_of(sorted(r['date'] for r in results))}."
    )
