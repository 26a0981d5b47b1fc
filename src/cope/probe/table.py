"""The table of a probe for the terminal, with what the paper reports beside it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from cope.metrics import percent
from cope.probe.paper import paper_figures
from cope.probe.scoring import FAILED, NO_ANSWER, RIGHT, WRONG
from cope.report.statistics import wilson_interval


def probe_table(result: dict[str, Any]) -> str:
    """A row for each family and length: shares in percent with 95% Wilson intervals, then what the paper's prompts gave."""
    rows = []
    for cell in result["scores"]:
        count = cell[RIGHT] + cell[WRONG] + cell[NO_ANSWER]
        shares = {f"{name} % (95% interval)": _share(cell[name], count) for name in (RIGHT, WRONG, NO_ANSWER)}
        rows.append(
            {"prompts": cell["family"], "sentences": cell["sentences"], **shares, "replies": count, FAILED: cell[FAILED]}
        )
    settings = result["settings"]
    sampling = f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}, samples {settings['samples']}"
    lines = [
        f"{result['model']} ({sampling}, seed {settings['seed']}, {result['date'] or 'no reply'})",
        "",
        pd.DataFrame(rows).to_string(index=False),
        "",
        *_own_answers(result),
        paper_figures(),
        result["wording"],
    ]
    if settings["samples"] > 1:
        lines.append("Intervals take replies as independent, and those to one prompt are not: they are somewhat too narrow.")
    if (silent := _replies(result, NO_ANSWER)) and silent[0]["reply"].strip():
        lines.append(f"No answer, for example: {silent[0]['reply'][:200]!r}")
    return "\n".join(lines)


def failures_line(result: dict[str, Any]) -> str:
    """How many requests failed and why, in one line; empty if none did."""
    failed = _replies(result, FAILED)
    if not failed:
        return ""
    asked = sum(len(question["replies"]) for question in result["questions"])
    reasons = dict.fromkeys(reply["error"] for reply in failed)
    others = f" (and {len(reasons) - 1} other reasons, in result.json)" if len(reasons) > 1 else ""
    return f"{len(failed)} of {asked} requests failed: {next(iter(reasons))}{others}. The same command asks them again."


def _share(part: int, count: int) -> str:
    if count == 0:
        return "-"
    low, high = wilson_interval(part, count)
    return f"{percent(part / count)} ({percent(low)} to {percent(high)})"


def _own_answers(result: dict[str, Any]) -> list[str]:
    """What this model said to the paper's prompts."""
    lines = []
    for question in result["questions"]:
        if question["family"].startswith("paper_"):
            said = [
                str(reply["answer"]) if reply.get("answer") is not None else reply["outcome"] for reply in question["replies"]
            ]
            lines.append(f"{question['name']}: the truth is {question['truth']}, the model said {', '.join(said)}")
    return lines


def _replies(result: dict[str, Any], outcome: str) -> list[dict[str, Any]]:
    return [reply for question in result["questions"] for reply in question["replies"] if reply["outcome"] == outcome]
