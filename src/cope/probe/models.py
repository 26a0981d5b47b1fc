"""Whom a probe asks, and how: a server that speaks OpenAI's protocol, or a Hugging Face model on this machine.

The key of a server comes from the environment variable OPENAI_API_KEY, goes into the Authorization header and nowhere else:
what servers send back is cleared of it before it is shown or stored, and redirects are not followed, so that no other host gets
it.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from cope.errors import UserError, check_at_least, check_between, nearest
from cope.files import digest_of, user_path
from cope.probe.questions import Question, generated_questions, paper_questions, published_answers

log = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
RETRIES = 3
SHORTEST_SECRET = 8  # characters: local servers take keys such as "x", which are no secret and stand in many a reply
SHOWN_MODELS = 20
NOT_PART_OF_THE_RUN = ("timeout_s",)  # it changes which requests fail, not what is answered


@dataclass(frozen=True)
class ProbeSettings:
    """Whom to ask, how, and what: the keys of ``configs/probe/llm.yaml``, explained there.

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
        if not self.endpoint and not self.local:
            raise UserError(
                "There is no model to ask: set endpoint=http://host:port/v1 model=NAME (any OpenAI-compatible server; its key "
                f"is read from the environment variable {KEY_VARIABLE}) or local=/path/or/name (a Hugging Face model).\n"
                f"{published_answers()}"
            )
        if self.endpoint and self.local:
            raise UserError(f"local={self.local} and an endpoint are both set; allowed: one of them.")
        if self.endpoint:
            _check_address(self.endpoint)
            if not self.model:
                raise UserError(f"model must be set: the name that endpoint={self.endpoint} knows the model by.")
        elif self.model:
            raise UserError(f"model={self.model} has no effect with local={self.local}, which names the model itself.")
        elif self.max_tokens is None:
            raise UserError("max_tokens=null leaves the limit to a server, and local= has none; allowed: 1 or more.")
        check_between("temperature", self.temperature, 0, 2)
        check_between("top_p", self.top_p, 0, 1)
        check_between("timeout_s", self.timeout_s, 0.001, 86400)
        numbers = [("max_tokens", self.max_tokens, 1), ("samples", self.samples, 1), ("seed", self.seed, 0)]
        for key, number, least in [*numbers, ("prompts", self.prompts, 0), *(("lengths", n, 2) for n in self.lengths)]:
            if number is not None:
                check_at_least(key, number, least)
        if not self.lengths or len(set(self.lengths)) < len(self.lengths):
            raise UserError(f"lengths={self.lengths} is empty or names a length twice; allowed: such as lengths=[2,4,8].")

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model or self.local or ""

    def questions(self) -> list[Question]:
        """Everything that is asked, the paper's prompts first."""
        return [*paper_questions(), *generated_questions(self.seed, self.lengths, self.prompts)]

    def folder(self, output_dir: str) -> Path:
        """Where the answers go: ``<output_dir>/probe/<model>/<hash>``, the hash over settings and prompts themselves."""
        identity = {key: value for key, value in asdict(self).items() if key not in NOT_PART_OF_THE_RUN}
        identity["questions"] = [asdict(question) for question in self.questions()]
        readable = re.sub(r"[^\w.-]+", "_", self.name, flags=re.ASCII).strip("._") or "model"
        return user_path("output_dir", output_dir) / "probe" / readable[-80:] / digest_of(identity, 8)


def _check_address(endpoint: str) -> None:
    """Refuse what is no address, and what would put a secret into ``result.json``; such a value is not shown."""
    example = "allowed: http://host:port/v1 or https://host/v1."
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or a bracket that is not closed
        raise UserError(f"endpoint is not an address that can be read; {example}") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            f"endpoint holds a user name, a password or a query (not shown here); {example} "
            f"A key belongs into the environment variable {KEY_VARIABLE}."
        )
    if not is_address or not endpoint.isascii() or not endpoint.isprintable() or " " in endpoint:
        raise UserError(f"endpoint={endpoint} is not an address of a server; {example}")


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


class Endpoint:
    """A model behind an OpenAI-compatible server, such as vLLM, llama.cpp or Ollama. See :class:`Responder`.

    The client of the package ``openai`` repeats what may pass: rate limits, server errors, silence.
    """

    def __init__(self, settings: ProbeSettings) -> None:
        try:
            import openai
        except ImportError as error:
            raise UserError("endpoint= needs the package openai, which is not installed: pip install -e '.[probe]'") from error
        self._openai = openai
        self._settings = settings
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key.isascii() or not self._key.isprintable() or " " in self._key:
            raise UserError(
                f"{KEY_VARIABLE} (not shown here) is not a key; allowed: printable ASCII characters without spaces."
            )
        address = urlsplit(settings.endpoint)
        if self._key and address.scheme == "http" and address.hostname not in ("localhost", "127.0.0.1", "::1"):
            log.warning("%s is sent to %s unencrypted: the address is http, not https.", KEY_VARIABLE, settings.endpoint)
        unsent = ["OpenAI-Organization", "OpenAI-Project", *([] if self._key else ["Authorization"])]
        self._headers = {header: openai.Omit() for header in unsent}
        self._client: Any = openai.OpenAI(
            api_key=self._key or "none",
            base_url=settings.endpoint,
            timeout=settings.timeout_s,
            max_retries=RETRIES,
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        self._has_answered = False

    def reply(self, prompt: str, seed: int) -> Reply:
        asked = self._settings
        limit = {} if asked.max_tokens is None else {"max_tokens": asked.max_tokens}
        try:
            completion = self._client.chat.completions.create(
                model=asked.name,
                messages=[{"role": "user", "content": prompt}],
                temperature=asked.temperature,
                top_p=asked.top_p,
                seed=seed,
                extra_headers=self._headers,
                **limit,
            )
        except self._openai.APITimeoutError:
            raise self._silence(f"no answer within {asked.timeout_s:g} s (timeout_s)") from None
        except self._openai.APIConnectionError as error:
            raise self._silence(f"the server cannot be reached ({self._cleared(str(error.__cause__ or error))})") from None
        except self._openai.APIStatusError as error:
            raise self._refusal(error) from None
        except (self._openai.APIError, ValueError) as error:
            raise RequestFailed(f"the server's answer is not a chat completion: {self._line(str(error))}") from None
        try:
            choice = completion.choices[0]
            text = self._cleared(choice.message.content or "")  # a reasoning model may be cut off before it says a word
            reply = Reply(text, self._cleared(choice.finish_reason) if isinstance(choice.finish_reason, str) else None)
        except (AttributeError, LookupError, TypeError):
            raise RequestFailed("the server's answer is not a chat completion") from None
        self._has_answered = True
        return reply

    def _silence(self, problem: str) -> Exception:
        if self._has_answered:
            return RequestFailed(f"{problem}; tried {RETRIES + 1} times")
        return UserError(f"endpoint={self._settings.endpoint}: {problem}. Is the address right, and the server running?")

    def _refusal(self, error: Any) -> Exception:
        """What an HTTP status means: a UserError if no other question would be spared it."""
        code, where = error.status_code, f"endpoint={self._settings.endpoint}"
        if code in (401, 403):  # servers like to repeat a part of the key: their message is left out
            have = f"refuses the key in {KEY_VARIABLE}" if self._key else f"asks for a key, and {KEY_VARIABLE} is not set"
            return UserError(f"{where} {have} (HTTP {code}). Set the environment variable {KEY_VARIABLE} to a key for it.")
        told = error.body.get("message", "") if isinstance(error.body, dict) else error.body or ""
        told = f": {line}" if (line := self._line(str(told))) else ""
        if code == 404:
            known = self._known_models() or "Does the address end as the server wants it? Most end in /v1."
            return UserError(f"{where} model={self._settings.model} is not known (HTTP 404){told}. {known}")
        if 300 <= code < 400:
            return UserError(f"{where} redirects (HTTP {code}), which is not followed; give the address it leads to.")
        passing = "rate limit" if code == 429 else "server error" if code in (408, 409) or code >= 500 else ""
        if passing:
            return RequestFailed(f"{passing} (HTTP {code}){told}; tried {RETRIES + 1} times")
        return RequestFailed(f"the request is refused (HTTP {code}){told}")

    def _known_models(self) -> str:
        """The models that the server lists, as a sentence; empty if it lists none."""
        try:
            names = sorted(self._cleared(str(model.id)) for model in self._client.models.list(extra_headers=self._headers))
        except (self._openai.OpenAIError, AttributeError, TypeError, ValueError):
            return ""
        more = f" and {len(names) - SHOWN_MODELS} more" if len(names) > SHOWN_MODELS else ""
        return f"Allowed: {', '.join(names[:SHOWN_MODELS])}{more}.{nearest(self._settings.model, names)}" if names else ""

    def _line(self, text: str) -> str:
        """A server's words in one short line; cleared before they are shortened: half a key is a secret too."""
        return " ".join("".join(letter if letter.isprintable() else " " for letter in self._cleared(text)).split())[:200]

    def _cleared(self, text: str) -> str:
        """``text`` without the key."""
        if not isinstance(text, str):
            raise TypeError(f"{type(text).__name__} where a server should send text")
        return text.replace(self._key, "***") if len(self._key) >= SHORTEST_SECRET else text


class LocalModel:
    """A causal language model of the package transformers, on a GPU where there is one. See :class:`Responder`.

    The prompt goes through the tokenizer's chat template where it has one; a model without is given the bare prompt.
    """

    def __init__(self, settings: ProbeSettings) -> None:
        import torch

        key = f"local={settings.local}"
        name = str(user_path("local", settings.local or ""))
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise UserError(
                f"{key} needs the package transformers, which is not installed: pip install -e '.[transformers]'\n"
                "Without it, a server can be asked: endpoint=http://host:port/v1 model=NAME"
            ) from error
        self._settings = settings
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
            model: Any = AutoModelForCausalLM.from_pretrained(name)
            self._model = model.to(self._device).eval()
        except Exception as error:  # transformers raises the errors of several libraries, which share no base class
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"{key} cannot be loaded ({reason}); allowed: a folder of save_pretrained, or a model's name on the Hub."
            ) from error

    def reply(self, prompt: str, seed: int) -> Reply:
        import torch

        if self._tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            inputs = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            inputs = self._tokenizer(prompt, return_tensors="pt")
        inputs = inputs.to(self._device)
        # top_k=0, because transformers would keep the 50 likeliest tokens alone, on top of what top_p keeps.
        sampling = {"temperature": self._settings.temperature, "top_p": self._settings.top_p, "top_k": 0}
        greedy = self._settings.temperature == 0
        torch.manual_seed(seed)
        with torch.no_grad():
            output = self._model.generate(
                **inputs, max_new_tokens=self._settings.max_tokens, do_sample=not greedy, **({} if greedy else sampling)
            )
        new_tokens = output[0, inputs["input_ids"].shape[1] :]
        cut = len(new_tokens) == self._settings.max_tokens
        return Reply(self._tokenizer.decode(new_tokens, skip_special_tokens=True), "length" if cut else "stop")


def open_responder(settings: ProbeSettings) -> Responder:
    """The model that ``settings`` names."""
    return Endpoint(settings) if settings.endpoint else LocalModel(settings)
