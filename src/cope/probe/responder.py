"""Who answers: an endpoint or a local model, by one contract."""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Protocol


class Reply(NamedTuple):
    """What a model said, and why it stopped (``stop``, or ``length`` where it was cut off; None if it is not known)."""

    text: str
    finish_reason: str | None


class RequestFailed(Exception):
    """One question could not be answered; the next one may be."""


class Responder(Protocol):
    """Answers prompts, one at a time."""

    def reply(self, prompt: str, seed: int) -> Reply:
        """What the model says to ``prompt``, sampled with ``seed``.

        Raises:
            RequestFailed: this question was not answered.
            UserError: no question can be answered.
        """


def sampling_seed(seed: int, question: str, sample: int) -> int:
    """31 bits that depend on these alone: a resumed probe draws what an unbroken one would have drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{question}/{sample}".encode()).digest()[:4], "little") >> 1
