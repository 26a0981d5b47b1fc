"""Asks a language model to count words, scores what it says, and prints the table (Table 1 of arXiv 2405.18719).

``answers.jsonl`` has a line for each reply, appended as it comes, so that the same command asks only what is not answered yet;
``result.json`` is made of it at the end. A line that was cut short, as by a full disk, is dropped, its question asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cope.errors import UserError, counted
from cope.files import append_json_line, write_json, write_text
from cope.metrics import percent
from cope.probe.models import ProbeSettings, Reply, RequestFailed, Responder, open_responder
from cope.probe.questions import FAILED, NO_ANSWER, RIGHT, WRONG, outcome, parse_answer, published_answers
from cope.report.sheets import Sheet, as_text
from cope.report.statistics import wilson_interval
from cope.run.folder import RunFolder

log = logging.getLogger(__name__)

WORDING = "The wording of the prompts paper_* is rebuilt from the paper's description."


class Answers:
    """The replies so far, by question and sample; each an entry of ``answers.jsonl``.

    Raises:
        UserError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[tuple[str, int], dict[str, Any]] = {}
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        whole = [line for line in lines if self._take(line)]
        if len(whole) < len(lines):
            log.warning(
                "%s: dropped %s; what they answered is asked again.", path, counted(len(lines) - len(whole), "damaged line")
            )
            write_text(path, b"".join(whole).decode())

    def _take(self, line: bytes) -> bool:
        """Note what a line says; False if it is damaged."""
        try:
            entry = json.loads(line)
            is_whole = line.endswith(b"\n") and all(isinstance(entry[key], str) for key in ("question", "reply", "date"))
            if is_whole and isinstance(entry["sample"], int) and isinstance(entry["finish_reason"], str | None):
                self._found[entry["question"], entry["sample"]] = entry
                return True
        except (ValueError, LookupError, TypeError):
            pass
        return False

    def get(self, question: str, sample: int) -> dict[str, Any] | None:
        """The reply to a question, None if there is none yet."""
        return self._found.get((question, sample))

    def add(self, question: str, sample: int, reply: Reply) -> None:
        """Keep a reply."""
        entry = {"question": question, "sample": sample, "reply": reply.text, "finish_reason": reply.finish_reason}
        entry["date"] = date.today().isoformat()
        append_json_line(self._path, entry)
        self._found[question, sample] = entry


def sampling_seed(seed: int, question: str, sample: int) -> int:
    """31 bits that depend on these alone: a resumed probe draws what an unbroken one would have drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{question}/{sample}".encode()).digest()[:4], "little") >> 1


def run_probe(
    settings: ProbeSettings,
    output_dir: str,
    *,
    show_progress: bool = False,
    open_responder: Callable[[ProbeSettings], Responder] = open_responder,
) -> tuple[dict[str, Any], Path]:
    """Ask every question that has no reply yet; returns what ``result.json`` holds, and its path.

    Args:
        settings: whom, how and what to ask.
        output_dir: the folder of all results.
        show_progress: draw a bar.
        open_responder: called if there is anything to ask.

    Raises:
        UserError: nothing can be asked, or the folder cannot be written; replies so far are kept.
    """
    folder = RunFolder(settings.folder(output_dir))
    folder.lock()
    answers = Answers(folder.path / "answers.jsonl")
    every = [(question, sample) for question in settings.questions() for sample in range(settings.samples)]
    missing = [(question, sample) for question, sample in every if answers.get(question.name, sample) is None]
    failures: dict[tuple[str, int], str] = {}
    if missing:
        responder = open_responder(settings)
        for question, sample in tqdm(missing, "asking", unit="prompt", disable=not show_progress):
            try:
                reply = responder.reply(question.prompt, sampling_seed(settings.seed, question.name, sample))
            except RequestFailed as error:
                failures[question.name, sample] = str(error)
            else:
                answers.add(question.name, sample, reply)
    result = _result(settings, answers, failures)
    write_json(folder.result, result)
    return result, folder.result


def _result(settings: ProbeSettings, answers: Answers, failures: dict[tuple[str, int], str]) -> dict[str, Any]:
    asked = []
    cells: dict[tuple[str, int], Counter[str]] = {}
    days: set[str] = set()
    for question in settings.questions():
        replies: list[dict[str, Any]] = []
        for sample in range(settings.samples):
            stored = answers.get(question.name, sample)
            if stored is None:
                entry: dict[str, Any] = {"outcome": FAILED, "error": failures[question.name, sample]}
            else:
                days.add(stored["date"])
                answer = parse_answer(stored["reply"])
                entry = {"outcome": outcome(answer, question.truth), "answer": answer}
                entry |= {key: stored[key] for key in ("reply", "finish_reason", "date")}
            replies.append({"sample": sample, **entry})
            cells.setdefault((question.family, question.length), Counter())[entry["outcome"]] += 1
        asked.append(
            {
                "name": question.name,
                "family": question.family,
                "sentences": question.length,
                "prompt": question.prompt,
                "truth": question.truth,
                "replies": replies,
            }
        )
    return {
        "model": settings.name,
        "settings": asdict(settings),
        "date": max(days, default=None),  # of the last reply
        "wording": WORDING,
        "scores": [
            {"family": family, "sentences": length, **{name: counts[name] for name in (RIGHT, WRONG, NO_ANSWER, FAILED)}}
            for (family, length), counts in cells.items()
        ],
        "questions": asked,
    }


def probe_table(result: dict[str, Any]) -> str:
    """A row for each family and length: shares in percent with 95% Wilson intervals, then what the paper's prompts gave."""
    rows = []
    for cell in result["scores"]:
        count = cell[RIGHT] + cell[WRONG] + cell[NO_ANSWER]
        shares = {f"{name} %": _share(cell[name], count) for name in (RIGHT, WRONG, NO_ANSWER)}
        rows.append(
            {"prompts": cell["family"], "sentences": f"{cell['sentences']}", **shares, "replies": f"{count}",
             FAILED: f"{cell[FAILED]}"}
        )  # fmt: skip
    settings = result["settings"]
    sampling = f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}, samples {settings['samples']}"
    lines = [
        f"{result['model']} ({sampling}, seed {settings['seed']}, {result['date'] or 'no reply'})",
        "",
        as_text([Sheet.of("", rows, aside=frozenset({f"{NO_ANSWER} %", "replies", FAILED}))], "table"),
        "In brackets: 95% intervals (Wilson's).",
        "",
        *_own_answers(result),
        published_answers(),
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
