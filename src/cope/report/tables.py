"""Tables, and what is shown of one run, or of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cope.metrics import METRICS, Metric, percent
from cope.report.collect import describe_differences
from cope.report.provenance import provenance_line
from cope.report.statistics import mean_and_spread, wilson_interval
from cope.run.folder import RunFolder
from cope.run.summary import how_it_ended

MISSING = "missing"
FORMATS = ("text", "markdown", "csv", "latex", "json")


@dataclass(frozen=True)
class Table:
    """A title over rows and columns of text."""

    title: str
    frame: pd.DataFrame

    @classmethod
    def of(cls, title: str, rows: Mapping[str, Mapping[str, str]]) -> Table:
        """Of cells by row and column; a row may leave a column out."""
        return cls(title, pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("").reset_index())

    def render(self, form: str) -> str:
        """As one of ``FORMATS``."""
        if form == "csv":
            return self.frame.to_csv(index=False)
        if form == "json":
            return self.frame.to_json(orient="records", indent=2, force_ascii=False)
        if form == "latex":
            return self.frame.to_latex(index=False, caption=self.title, escape=True)
        if form == "text":
            return f"{self.title}\n{self.frame.to_string(index=False)}"
        lines = [list(self.frame.columns), ["---"] * self.frame.shape[1], *self.frame.to_numpy().tolist()]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def scores_table(headline: str, splits: dict[str, Any]) -> str:
    """A row for each split: the headline metric (if a proportion, with its 95% Wilson interval), the others, and counts."""
    order = [headline, *(name for name in METRICS if name != headline)]
    same = all(found["token_count"] == found["count"] for found in splits.values())  # one answer token a sequence
    rows = []
    for split, found in splits.items():
        row: dict[str, Any] = {"split": split}
        for name in order:
            metric = METRICS[name]
            if name not in found or (name != headline and metric.is_percentage and same):
                continue
            row[metric.label] = metric.text(found[name])
            if name == headline and metric.counts is not None:
                wrong, count = (found[key] for key in metric.counts)
                low, high = wilson_interval(wrong, count)
                row["95% interval"] = f"{percent(low)} to {percent(high)}"
                row["wrong"] = f"{wrong} of {count}"
        if "context" in found:
            row |= {"context": found["context"], "stride": found["stride"], "tokens": found["token_count"]}
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
        *([ending] if (ending := how_it_ended(result)) else []),
        f"run folder: {folder.path}",
        *[f"picture:    {path}" for path in pictures],
    ]
    return "\n".join(lines)


def sweep_table(results: list[dict[str, Any]]) -> str:
    """Mean (standard deviation over seeds) of the headline metric, a row for each encoding, a column for each split."""
    parts = []
    for task in dict.fromkeys(result["task"] for result in results):
        of_task = [result for result in results if result["task"] == task]
        headline = of_task[0]["headline"]
        metric = METRICS[headline]
        labels = describe_differences([result["config"] for result in of_task])
        groups: dict[str, list[dict[str, Any]]] = {}
        for result, label in zip(of_task, labels, strict=True):
            groups.setdefault(f"{result['encoding']} {label}".strip(), []).append(result)
        rows = []
        for label, group in groups.items():
            row = {"encoding": label, "seeds": len(group)}
            for split in dict.fromkeys(split for result in of_task for split in result["splits"]):
                values = [result["splits"][split][headline] for result in group if split in result["splits"]]
                row[split] = spread(values, metric)
            rows.append(row)
        title = f"{task}: {metric.label}, mean (standard deviation over seeds), scale {of_task[0]['scale']}"
        parts.append(title + "\n" + pd.DataFrame(rows).to_string(index=False))
    return "\n\n".join([*parts, provenance_line(results)])


def spread(values: list[float], metric: Metric) -> str:
    """``1.23 (0.45)``: mean and standard deviation; no bracket for a single value."""
    if not values:
        return MISSING
    mean, deviation = mean_and_spread(values)
    return metric.text(mean) if deviation is None else f"{metric.text(mean)} ({metric.text(deviation, mean)})"
