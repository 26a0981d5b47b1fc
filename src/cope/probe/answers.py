"""The replies of a probe on disk, so that none is asked for twice.

``answers.jsonl`` has a line for each reply, appended as it comes; ``result.json`` is made of it at the end. A line that was cut
short, as by a full disk, is dropped, and its question asked again.
"""

from __future__ import annotations

import json
import logging
from datetime import date
from pathlib import Path
from typing import NamedTuple

from cope.errors import UserError
from cope.files import write_text
from cope.probe.responder import Reply

log = logging.getLogger(__name__)


class StoredReply(NamedTuple):
    """A reply and the day it was given."""

    reply: Reply
    date: str


class Answers:
    """The replies so far, by question and sample.

    Raises:
        UserError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[tuple[str, int], StoredReply] = {}
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        whole = [line for line in lines if self._take(line)]
        if len(whole) < len(lines):
            log.warning("%s: %d damaged line(s) dropped; their questions are asked again.", path, len(lines) - len(whole))
            write_text(path, b"".join(whole).decode())

    def _take(self, line: bytes) -> bool:
        """Note what a line says; False if it is damaged."""
        try:
            entry = json.loads(line)
            question, sample, text, reason, day = (
                entry[key] for key in ("question", "sample", "reply", "finish_reason", "date")
            )
        except (ValueError, LookupError, TypeError):
            return False
        whole = line.endswith(b"\n") and all(isinstance(value, str) for value in (question, text, day))
        if whole and isinstance(sample, int) and isinstance(reason, (str, type(None))):
            self._found[question, sample] = StoredReply(Reply(text, reason), day)
            return True
        return False

    def get(self, question: str, sample: int) -> StoredReply | None:
        """The reply to a question, None if there is none yet."""
        return self._found.get((question, sample))

    def add(self, question: str, sample: int, reply: Reply) -> None:
        """Keep a reply."""
        stored = StoredReply(reply, date.today().isoformat())
        entry = {"question": question, "sample": sample, "reply": reply.text, "finish_reason": reply.finish_reason}
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({**entry, "date": stored.date}) + "\n")
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written: {error.strerror}. Free some space and run the same command again."
            ) from error
        self._found[question, sample] = stored
