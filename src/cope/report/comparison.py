"""A Markdown table of a task's results beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import yaml

from cope.report.tables import MISSING, spread
from cope.results.metrics import METRICS

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


def comparison_table(
    section: str, results: dict[str, list[dict[str, Any]]], num_seeds: int, shown: Sequence[str] | None = None
) -> str:
    """One row an encoding or variant, one column a test split: mean (standard deviation) here, and below it the paper's.

    Args:
        section: its title, and its name in ``paper.yaml``.
        shown: the splits; None is every test split.
        results: the finished runs of each row; fewer than ``num_seeds`` are marked, none at all is "missing".
    """
    finished = [result for runs in results.values() for result in runs]
    if not finished:
        return f"**{section}**: {MISSING}"
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
        cells = []
        for split in splits:
            cell = spread([run["splits"][split][headline] for run in runs if split in run["splits"]], METRICS[headline])
            cells.append(cell + _published(paper.get(row, {}).get(split)))
        seconds = f"{sum(run['time_s'] for run in runs) / len(runs):.0f}" if runs else MISSING
        name = row + ("" if len(runs) == num_seeds else f" ({len(runs)} of {num_seeds} seeds)")
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
