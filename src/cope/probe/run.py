"""A probe from beginning to end: ask what is not answered yet, score all of it, write ``result.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cope.files import write_json
from cope.probe.answers import Answers
from cope.probe.client import Endpoint
from cope.probe.local import LocalModel
from cope.probe.prompts import Question
from cope.probe.responder import RequestFailed, Responder, sampling_seed
from cope.probe.scoring import FAILED, NO_ANSWER, RIGHT, WRONG, outcome, parse_answer
from cope.probe.settings import ProbeSettings
from cope.run.folder import RunFolder

WORDING = "The wording of the prompts paper_* is rebuilt from the paper's description."


def open_responder(settings: ProbeSettings) -> Responder:
    """The model that ``settings`` names."""
    return Endpoint(settings) if settings.endpoint is not None else LocalModel(settings)


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
    questions = settings.questions()
    every = [(question, sample) for question in questions for sample in range(settings.samples)]
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
    result = _result(settings, questions, answers, failures)
    write_json(folder.result, result)
    return result, folder.result


def _result(
    settings: ProbeSettings, questions: Sequence[Question], answers: Answers, failures: dict[tuple[str, int], str]
) -> dict[str, Any]:
    asked = []
    cells: dict[tuple[str, int], Counter[str]] = {}
    days: set[str] = set()
    for question in questions:
        replies: list[dict[str, Any]] = []
        for sample in range(settings.samples):
            stored = answers.get(question.name, sample)
            if stored is None:
                entry: dict[str, Any] = {"outcome": FAILED, "error": failures[question.name, sample]}
            else:
                days.add(stored.date)
                answer = parse_answer(stored.reply.text)
                entry = {
                    "outcome": outcome(answer, question.truth),
                    "answer": answer,
                    "reply": stored.reply.text,
                    "finish_reason": stored.reply.finish_reason,
                    "date": stored.date,
                }
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
        "settings": settings.as_json(),
        "date": max(days, default=None),  # of the last reply
        "wording": WORDING,
        "scores": [
            {"family": family, "sentences": length, **{name: counts[name] for name in (RIGHT, WRONG, NO_ANSWER, FAILED)}}
            for (family, length), counts in cells.items()
        ],
        "questions": asked,
    }
