"""What is shown of one run, of a sweep, and of runs side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cope.metrics import METRICS, percent
from cope.report.collect import describe_differences
from cope.report.names import split_name
from cope.report.provenance import provenance_line
from cope.report.sheets import Sheet
from cope.report.statistics import MISSING, spread, wilson_interval
from cope.run.folder import RunFolder
from cope.run.summary import how_it_ended


def scores_sheet(headline: str, splits: dict[str, Any], title: str = "", notes: Iterable[str] = ()) -> Sheet:
    """A row for each split: the headline metric (if a proportion, with its 95% Wilson interval), the others, and counts."""
    order = [headline, *(name for name in METRICS if name != headline)]
    same = all(found["token_count"] == found["count"] for found in splits.values())  # one answer token a sequence
    rows = []
    for split, found in splits.items():
        row: dict[str, str] = {"split": split}
        for name in order:
            metric = METRICS[name]
            if name not in found or (name != headline and metric.is_percentage and same):
                continue
            row[metric.label] = metric.text(found[name])
            if name == headline and metric.counts is not None:
                wrong, count = (found[key] for key in metric.counts)
                low, high = wilson_interval(wrong, count)
                row["95% interval"] = f"{percent(low)} to {percent(high)}"
                row["wrong"] = f"{wrong:,} of {count:,}"
        if "context" in found:
            row |= {"context": f"{found['context']}", "stride": f"{found['stride']}", "tokens": f"{found['token_count']:,}"}
        rows.append(row)
    cut = {split: found["num_cut"] for split, found in splits.items() if found["num_cut"]}
    told = ", ".join(f"{number} of {split}" for split, number in cut.items())
    return _sheet(title, rows, [*([f"sequences cut or left out to fit the context: {told}"] if told else []), *notes])


def run_sheet(result: dict[str, Any], folder: RunFolder, pictures: Iterable[Path]) -> Sheet:
    """What a run was, its scores, where its folder is, and its pictures."""
    title = (
        f"{result['encoding']} on {result['task']} (scale {result['scale']}, seed {result['seed']}, "
        f"{result['num_parameters']:,} parameters, {result['num_tokens']:,} tokens in {result['time_s']:.0f} s)"
    )
    ending = how_it_ended(result)
    places = ["", *([ending] if ending else []), f"run folder: {folder.path}", *[f"picture:    {path}" for path in pictures]]
    return scores_sheet(result["headline"], result["splits"], title, places)


def sweep_sheets(results: list[dict[str, Any]]) -> list[Sheet]:
    """Mean (standard deviation over seeds) of the headline metric, a row for each encoding, a column for each split."""
    sheets = []
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
            row = {"encoding": label, "seeds": str(len(group))}
            for split in dict.fromkeys(split for result in of_task for split in result["splits"]):
                values = [result["splits"][split][headline] for result in group if split in result["splits"]]
                row[split_name(split, not metric.is_percentage)] = spread(values, metric)
            rows.append(row)
        title = f"{task}: {metric.label}, mean (standard deviation over seeds), scale {of_task[0]['scale']}"
        sheets.append(_sheet(title, rows))
    return [*sheets[:-1], replace(sheets[-1], notes=(provenance_line(results),))]


def comparison_sheets(results: Sequence[dict[str, Any]], splits: Sequence[str] = ()) -> list[Sheet]:
    """Runs side by side, those of each task and scale in a table of their own: others' errors cannot be compared with theirs.

    Args:
        splits: to be shown; none takes all.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["task"], result["scale"], result["headline"]), []).append(result)
    sheets = []
    for (task, scale, headline), group in groups.items():
        metric = METRICS[headline]
        shown = list(dict.fromkeys(split for result in group for split in result["splits"]))
        shown = [split for split in shown if not splits or split in splits]
        rows = []
        for result, label in zip(group, describe_differences([result["config"] for result in group]), strict=True):
            found = result["splits"]
            scores = {
                split_name(split, not metric.is_percentage): metric.text(found[split][headline]) if split in found else MISSING
                for split in shown
            }
            row = {"pe": result["encoding"], "seed": str(result["seed"])} | scores
            rows.append(
                row | {"seconds": f"{result['time_s']:.0f}", "parameters": f"{result['num_parameters']:,}", "differs in": label}
            )
        rows.sort(key=lambda row: (row["pe"], int(row["seed"])))
        if not any(row["differs in"] for row in rows):
            rows = [{key: value for key, value in row.items() if key != "differs in"} for row in rows]
        sheets.append(_sheet(f"{task}, scale {scale}: {metric.label}", rows))
    return sheets


def _sheet(title: str, rows: Sequence[dict[str, str]], notes: Iterable[str] = ()) -> Sheet:
    aside = frozenset({"seconds", "parameters", "context", "stride", "tokens"})
    return Sheet.of(title, rows, notes, words=frozenset({"differs in"}), aside=aside)
