"""The settings of a probe, checked, and the name of the folder that they define."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cope.errors import UserError, check_at_least, check_between
from cope.probe.paper import paper_figures
from cope.probe.prompts import Question, generated_questions, paper_questions

NOT_PART_OF_THE_RUN = ("timeout_s",)  # it changes which requests fail, not what is answered


@dataclass(frozen=True)
class ProbeSettings:
    """Whom to ask, how, and what; the keys of ``configs/probe/llm.yaml``.

    Args:
        endpoint: address of an OpenAI-compatible server, such as http://localhost:8000/v1, without /chat/completions; or None.
        model: its name for the model; None with ``local``.
        local: folder or name of a Hugging Face model to be run here; or None.
        temperature: of sampling, 0 to 2; 0 takes the likeliest token.
        top_p: of sampling, 0 to 1.
        max_tokens: the most tokens of a reply; None leaves it to the server.
        samples: replies asked for of each prompt.
        seed: of the generated prompts, and of sampling.
        lengths: sentences in the generated texts.
        prompts: generated prompts of each family at each length.
        timeout_s: seconds of silence from a server after which a request is given up.

    Raises:
        UserError: neither endpoint nor local model, or both; or a value that is not allowed.
    """

    endpoint: str | None
    model: str | None
    local: str | None
    temperature: float
    top_p: float
    max_tokens: int | None
    samples: int
    seed: int
    lengths: list[int]
    prompts: int
    timeout_s: float

    def __post_init__(self) -> None:
        if self.endpoint is None and self.local is None:
            raise UserError(
                "There is no model to ask: set endpoint=http://host:port/v1 model=NAME (any OpenAI-compatible server; its key "
                "is read from the environment variable OPENAI_API_KEY) or local=/path/or/name (a Hugging Face model).\n"
                f"{paper_figures()}"
            )
        if self.endpoint is not None and self.local is not None:
            raise UserError(f"local={self.local} and an endpoint are both set; allowed: one of them.")
        if self.endpoint is not None:
            _check_text("endpoint", self.endpoint)
            _check_address(self.endpoint)
            if self.model is None:
                raise UserError(f"model must be set: the name that endpoint={self.endpoint} knows the model by.")
            _check_text("model", self.model)
        else:
            _check_text("local", self.local)
            if self.model is not None:
                raise UserError(f"model={self.model} has no effect with local={self.local}, which names the model itself.")
            if self.max_tokens is None:
                raise UserError("max_tokens=null leaves the limit to a server, and local= has none; allowed: 1 or more.")
        _check_number("temperature", self.temperature, 0, 2)
        _check_number("top_p", self.top_p, 0, 1)
        if self.max_tokens is not None:
            _check_whole_number("max_tokens", self.max_tokens, 1)
        _check_whole_number("samples", self.samples, 1)
        _check_whole_number("seed", self.seed, 0)
        _check_whole_number("prompts", self.prompts, 0)
        _check_number("timeout_s", self.timeout_s, 0.001, 86400)
        if not isinstance(self.lengths, list) or not self.lengths:
            raise UserError(f"lengths={self.lengths} is not a list of whole numbers; allowed: such as lengths=[2,4,8].")
        for length in self.lengths:
            _check_whole_number("lengths", length, 2)
        if len(set(self.lengths)) < len(self.lengths):
            raise UserError(f"lengths={self.lengths} names a length twice; allowed: each once.")

    @property
    def name(self) -> str:
        """The model's name."""
        name = self.model or self.local
        assert name is not None
        return name

    def questions(self) -> list[Question]:
        """Everything that is asked, the paper's prompts first."""
        return [*paper_questions(), *generated_questions(self.seed, self.lengths, self.prompts)]

    def as_json(self) -> dict[str, Any]:
        """The settings as plain values. A key is none of them."""
        return asdict(self)

    def folder(self, output_dir: str) -> Path:
        """Where the answers go: ``<output_dir>/probe/<model>/<hash>``, the hash over settings and prompts themselves."""
        identity = {key: value for key, value in self.as_json().items() if key not in NOT_PART_OF_THE_RUN}
        identity["questions"] = [asdict(question) for question in self.questions()]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        readable = re.sub(r"[^\w.-]+", "_", self.name, flags=re.ASCII).strip("._") or "model"
        return Path(output_dir) / "probe" / readable[-80:] / digest


def _check_address(endpoint: str) -> None:
    """Refuse what is no address, and what would put a secret into ``result.json``; such a value is not shown."""
    example = "allowed: http://host:port/v1 or https://host/v1."
    try:
        parts = urlsplit(endpoint)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or a bracket that is not closed
        raise UserError(f"endpoint is not an address that can be read; {example}") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            f"endpoint holds a user name, a password or a query (not shown here); {example} "
            "A key belongs into the environment variable OPENAI_API_KEY."
        )
    if (
        parts.scheme not in ("http", "https")
        or not has_host
        or not endpoint.isascii()
        or not endpoint.isprintable()
        or " " in endpoint
    ):
        raise UserError(f"endpoint={endpoint} is not an address of a server; {example}")


def _check_text(key: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{key}={value!r} is not a name; allowed: text that is not empty.")


def _check_number(key: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{key}={value} is not a number; allowed: {low} to {high}.")
    check_between(key, value, low, high)


def _check_whole_number(key: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{key}={value} is not a whole number; allowed: {low} or more.")
    check_at_least(key, value, low)
