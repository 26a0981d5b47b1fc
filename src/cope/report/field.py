"""Encodings x tasks: one heat map, a ranking for each task with ties, one table, and published figures beside them.

    field/field.md        rankings: error on every split, rank with ties, seconds and MiB of a run; what was published
    field/field.csv       the same as one row for each task, encoding and split
    field/heat_map.svg

What ranks mean: ``RANKS``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from scipy.stats import ttest_rel

from cope.metrics import METRICS
from cope.report.comparisons import Margins, Outcome, compare, notes_on_training
from cope.report.drawing import save
from cope.report.findings import Findings
from cope.report.names import encoding_name, packaged, split_name, task_name
from cope.report.plan_sheets import num_runs_text
from cope.report.provenance import provenance_line
from cope.report.sheets import Sheet, as_text
from cope.report.statistics import MISSING, spread
from cope.report.style import picture_style
from cope.sweep.plan import Plan

RANKS = (
    "CoPE, RoPE and the best other are judged by the rule of ``configs/plan.yaml``. The best other is chosen by the first "
    "seeds, which count, so that a verdict against CoPE is reached a little too easily. Ranks only describe: two encodings "
    "are told apart on a split if the mean of their differences, seed by seed, is not 0 by "
    "Student's paired test at 5%. An encoding's rank is one more than the number of those that are told apart from it and "
    "are better: equal ranks are ties; with fewer than three seeds it has none. These tests are many and not corrected for "
    "their number. Seconds are of machines that did other work as well, more at some times than at others."
)
LEVEL = 0.05
LEAST_SEEDS = 3
JUDGED = ("cope", "rope")
DECIDED = {Outcome.HOLDS: "for CoPE", Outcome.CONTRADICTED: "against CoPE"}


def published() -> dict[str, dict[str, dict[str, float]]]:
    """``{task: {encoding: {split: error in percent}}}`` from ``field.yaml``."""
    content: dict[str, dict[str, dict[str, float]]] = packaged("field.yaml")
    return content


def better(first: Mapping[int, float], second: Mapping[int, float]) -> int:
    """1 if ``first`` has less error than ``second`` (both by seed), -1 if it has more, 0 if they are not told apart."""
    seeds = sorted(first.keys() & second.keys())
    differences = np.array([second[seed] - first[seed] for seed in seeds])
    if len(seeds) < LEAST_SEEDS:
        return 0
    if np.ptp(differences) < 1e-9:  # every seed says the same, where the test is not defined
        told_apart = abs(differences[0]) > 1e-9
    else:
        told_apart = ttest_rel([first[seed] for seed in seeds], [second[seed] for seed in seeds]).pvalue < LEVEL
    return int(np.sign(differences.mean())) if told_apart else 0


def field_cells(plan: Plan, findings: Findings) -> pd.DataFrame:
    """One row for each task, encoding and split; what has not been run has no error, what has few seeds no rank."""
    rows = []
    for task in plan.sections:
        for split in findings.splits(task) or ("test",):
            errors = {encoding: findings.values(task, encoding, split) for encoding in plan.rows(task)}
            for encoding, own in errors.items():
                runs = findings.results(task, encoding)
                beaten_by = sum(better(other, own) == 1 for other in errors.values())
                rows.append(
                    {
                        "task": task,
                        "encoding": encoding,
                        "split": split,
                        "metric": METRICS[findings.headline(task)].label,
                        "seeds": len(own),
                        "mean": np.mean(list(own.values())) if own else np.nan,
                        "std": np.std(list(own.values()), ddof=1) if len(own) > 1 else np.nan,
                        "rank": 1 + beaten_by if len(own) >= LEAST_SEEDS else np.nan,
                        "published": published().get(task, {}).get(encoding, {}).get(split, np.nan),
                        "seconds": np.mean([run["time_s"] for run in runs]) if runs else np.nan,
                        "mib": np.mean([run.get("peak_memory_mib") or np.nan for run in runs]) if runs else np.nan,
                    }
                )
    return pd.DataFrame(rows)


def ranking(
    task: str, table: pd.DataFrame, findings: Findings, claims: Sequence[Mapping[str, Any]], margins: Margins, in_full: bool
) -> Sheet:
    """A task's encodings by their mean error on its first split. What the rule says, and published orders, are below.

    Args:
        in_full: with the figures behind what the rule says, and a row for every encoding, run or not.
    """
    own = table[table["task"] == task]
    if not own["seeds"].any():
        return Sheet(f"{task_name(task)}: {MISSING}", ("encoding",), ())
    metric, splits = METRICS[findings.headline(task)], list(dict.fromkeys(own["split"]))
    rows, without = [], []
    for encoding in own[own["split"] == splits[0]].sort_values("mean")["encoding"]:
        of_encoding = own[own["encoding"] == encoding].set_index("split")
        if not (in_full or of_encoding["seeds"].any() or findings.failures(task)[encoding]):
            without.append(encoding_name(encoding))
            continue
        cells = []
        for split in splits:
            values = [value / metric.factor for value in findings.values(task, encoding, split).values()]
            rank, reported = of_encoding.loc[split, ["rank", "published"]]
            ranked = "" if np.isnan(rank) else f" [{rank:.0f}]"
            cells.append(spread(values, metric) + ranked + ("" if np.isnan(reported) else f", published {reported:g}"))
        costs = (_whole(of_encoding.loc[splits[0], name]) for name in ("seconds", "mib"))
        seeds = num_runs_text(of_encoding.loc[splits[0], "seeds"], findings.failures(task)[encoding])
        rows.append((encoding_name(encoding), *cells, seeds, *costs))
    columns = ("encoding", *map(split_name, splits), "seeds", "seconds a run", "MiB")
    notes = [f"Without a run: {', '.join(without)}"] if without else []
    notes += by_the_rule(task, claims, findings, margins, in_full) + agreement(task, splits, findings)
    return Sheet(f"{task_name(task)}: {metric.label} [rank]", columns, tuple(rows), tuple(notes), aside=frozenset(columns[-3:]))


def field_claims(plan: Plan, findings: Findings, seeds: Collection[int]) -> list[dict[str, Any]]:
    """CoPE below RoPE, and below the best of the others by the mean of ``seeds``, on every split: as claims of a plan."""
    claims: list[dict[str, Any]] = []
    for task in plan.sections:
        for split in findings.splits(task):
            values = {encoding: findings.values(task, encoding, split) for encoding in plan.rows(task)}
            means = {
                encoding: np.mean([own[seed] for seed in seeds]) for encoding, own in values.items() if own.keys() >= set(seeds)
            }
            best = sorted(means.keys() - set(JUDGED), key=lambda encoding: means[encoding])[:1]
            for other in [*JUDGED[1:], *best]:
                if {JUDGED[0], other} <= means.keys():
                    relation = {"section": task, "split": split, "order": [JUDGED[0], other]}
                    topic = f"{task}, {split}"
                    claim = f"{topic}: {encoding_name(JUDGED[0])} below {encoding_name(other)}"
                    claims.append(
                        {"number": len(claims) + 1, "topic": topic, "claim": claim, "source": "", "relations": [relation]}
                    )
    return claims


def by_the_rule(
    task: str, claims: Iterable[Mapping[str, Any]], findings: Findings, margins: Margins, in_full: bool
) -> list[str]:
    """What the rule of the plan says to the claims about a task; ``in_full`` with the figures behind it."""
    relations = [relation for claim in claims for relation in claim["relations"] if relation["section"] == task]
    parts = [part for relation in relations for part in compare(relation, margins, findings)]
    lines = [
        f"- {DECIDED.get(part.outcome, part.outcome)}: {part.text if in_full else f'{part.where}: {part.finding}'}"
        for part in parts
    ]
    return ["By the rule:", *lines, *(notes_on_training(parts, findings) if in_full else ())] if lines else []


def agreement(task: str, splits: Sequence[str], findings: Findings) -> list[str]:
    """Whether ours are in the order that was published, pair by pair."""
    reported = published().get(task, {})
    found: dict[str, list[str]] = {"as published": [], "the other way round": [], "not told apart here": []}
    for split in splits:
        for first, second in combinations([encoding for encoding in reported if split in reported[encoding]], 2):
            sign = np.sign(reported[second][split] - reported[first][split])
            ours = [findings.values(task, encoding, split) for encoding in (first, second)]
            if sign == 0 or not all(ours):
                continue
            outcome = {1: "as published", -1: "the other way round", 0: "not told apart here"}[int(sign * better(*ours))]
            order = f"{encoding_name(first)} {'<' if sign > 0 else '>'} {encoding_name(second)}"
            found[outcome].append(f"{order} ({split_name(split)})")
    lines = [f"- {outcome}: {', '.join(pairs)}" for outcome, pairs in found.items() if pairs]
    return ["Pairs with a published order:", *lines] if lines else []


def _whole(value: float) -> str:
    return MISSING if np.isnan(value) else f"{value:.0f}"


def draw_heat_map(plan: Plan, table: pd.DataFrame, folder: Path) -> Path:
    """Mean error of every encoding on every task and split; what is missing is grey."""
    columns = list(dict.fromkeys(zip(table["task"], table["split"], strict=True)))
    encodings = list(dict.fromkeys(table["encoding"]))
    wide = table.pivot(index="encoding", columns=["task", "split"], values="mean").loc[encodings, columns]
    values = np.ma.masked_invalid(wide.to_numpy(dtype=float))
    with picture_style("heat_map"):
        figure, axes = plt.subplots(figsize=(2 + 0.3 * len(columns), 1.6 + 0.17 * len(encodings)), layout="constrained")
        colours = plt.get_cmap("viridis_r").with_extremes(bad="0.85")
        image = axes.imshow(values, vmin=0, vmax=100, cmap=colours, aspect="auto")
        axes.set_xticks(
            range(len(columns)), [f"{task_name(task)}, {split_name(split)}" for task, split in columns], rotation=90
        )
        axes.set_yticks(range(len(encodings)), [encoding_name(encoding) for encoding in encodings])
        for (row, column), value in np.ndenumerate(wide.to_numpy(dtype=float)):
            if not np.isnan(value):
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6, color="w" if value > 50 else "k")
        figure.colorbar(image, label="error %, mean over seeds")
        axes.set_title(plan.title)
        return save(figure, folder, "heat_map")


def write_field(
    plan: Plan, table: pd.DataFrame, findings: Findings, rankings: Sequence[Sheet], folder: Path, command: str
) -> Path:
    """Write all of it to ``folder``; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "field.csv", index=False, float_format="%.6g")
    picture = draw_heat_map(plan, table, folder)
    finished = [result for _, result in findings.runs()]
    parts = [
        f"# {plan.title}",
        f"Made by `{command}`.",
        RANKS,
        f"![mean error of every encoding on every task]({picture.name})",
        as_text(rankings, "markdown"),
        *([provenance_line(finished)] if finished else []),
    ]
    page = folder / "field.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page
