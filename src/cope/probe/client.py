"""Asking an OpenAI-compatible server: ``POST <endpoint>/chat/completions``.

The protocol is that of the OpenAI API reference (chat completions), which vLLM, llama.cpp, Ollama and others speak too. The key
comes from the environment variable OPENAI_API_KEY, goes into the Authorization header and nowhere else: what servers send back
is cleared of it before it is shown or stored, and redirects are not followed, so that no other host gets it.

What may pass (rate limit, server error, silence, an answer that is no JSON) is tried again, with growing pauses. What no other
question would be spared (a refused key, an unknown model) ends the probe with one message.
"""

from __future__ import annotations

import json
import logging
import os
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from cope.errors import UserError, nearest
from cope.probe.responder import Reply, RequestFailed
from cope.probe.settings import ProbeSettings

log = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
ATTEMPTS = 4
FIRST_PAUSE_S = 1.0  # doubled after each attempt
LONGEST_PAUSE_S = 60.0  # also of what a server asks for
PASSING = (408, 409, 425, 429)  # besides 5xx
LARGEST_ANSWER = 16 * 2**20  # bytes: a reply is text of a few thousand
SHORTEST_SECRET = 8  # characters: local servers take keys such as "x", which are no secret and stand in many a reply
SHOWN_MODELS = 20


class _NotNow(Exception):
    """A request that may succeed when it is repeated."""

    def __init__(self, message: str, *, pause_s: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(message)
        self.pause_s = pause_s
        self.unreachable = unreachable


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # the redirection then is an HTTPError


def key_from_environment() -> str | None:
    """The key, None without one.

    Raises:
        UserError: it cannot be sent in a header; Python's own message would show it.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{KEY_VARIABLE} (not shown here) is not a key; allowed: printable ASCII characters without spaces.")
    return key or None


class Endpoint:
    """A model behind an OpenAI-compatible server. See :class:`cope.probe.responder.Responder`."""

    def __init__(self, settings: ProbeSettings) -> None:
        assert settings.endpoint is not None
        self._address = settings.endpoint.rstrip("/")
        self._settings = settings
        self._key = key_from_environment()
        self._opener = build_opener(_NoRedirects)
        self._has_answered = False
        address = urlsplit(self._address)
        if self._key and address.scheme == "http" and address.hostname not in ("localhost", "127.0.0.1", "::1"):
            log.warning("%s is sent to %s unencrypted: the address is http, not https.", KEY_VARIABLE, self._address)

    def reply(self, prompt: str, seed: int) -> Reply:
        body = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self._settings.temperature,
            "top_p": self._settings.top_p,
            "seed": seed,
        }
        if self._settings.max_tokens is not None:
            body["max_tokens"] = self._settings.max_tokens
        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply = self._completion(self._request("/chat/completions", body, self._settings.timeout_s))
                self._has_answered = True
                return reply
            except HTTPError as error:
                problem = self._refusal(error)
            except _NotNow as error:
                problem = error
            if attempt < ATTEMPTS:
                time.sleep(min(LONGEST_PAUSE_S, max(problem.pause_s, FIRST_PAUSE_S * 2 ** (attempt - 1))))
        if problem.unreachable and not self._has_answered:
            raise UserError(f"endpoint={self._address}: {problem}. Is the address right, and the server running?")
        raise RequestFailed(f"{problem}; tried {ATTEMPTS} times")

    def _request(self, path: str, body: dict[str, Any] | None, timeout_s: float) -> bytes:
        """The bytes of a successful answer; raises HTTPError or _NotNow."""
        request = Request(self._address + path, headers={"Accept": "application/json", "User-Agent": "cope-lab"})
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                content: bytes = response.read(LARGEST_ANSWER)
                return content
        except HTTPError:
            raise
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _NotNow(f"no answer within {timeout_s:g} s (timeout_s)", unreachable=True) from None
            text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise _NotNow(self._cleared(f"the server cannot be reached ({text})"), unreachable=True) from None

    def _completion(self, content: bytes) -> Reply:
        try:
            answer = json.loads(content)
        except ValueError:
            raise _NotNow("the server's answer is not JSON") from None
        try:
            choice = answer["choices"][0]
            text, finish_reason = choice["message"].get("content"), choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError):
            raise _NotNow(f"the server's answer is not a chat completion{self._told(content)}") from None
        if text is None:
            text = ""  # a reasoning model that was cut off before it said anything
        if not isinstance(text, str):
            raise _NotNow("the server's answer is not a chat completion: its content is not text")
        return Reply(self._cleared(text), self._cleared(finish_reason) if isinstance(finish_reason, str) else None)

    def _refusal(self, error: HTTPError) -> _NotNow:
        """What an HTTP status means: returned if it may pass, raised if not."""
        with error:
            try:
                told = self._told(error.read(LARGEST_ANSWER))
            except (OSError, HTTPException):
                told = ""  # the status says enough
        code, where = error.code, f"endpoint={self._address}"
        if code in (401, 403):  # servers like to repeat a part of the key: their message is left out
            have = f"refuses the key in {KEY_VARIABLE}" if self._key else f"asks for a key, and {KEY_VARIABLE} is not set"
            raise UserError(f"{where} {have} (HTTP {code}). Set the environment variable {KEY_VARIABLE} to a key for it.")
        if code == 404:
            raise UserError(
                f"{where} model={self._settings.model} is not known (HTTP 404){told}. "
                f"{self._known_models() or 'Does the address end as the server wants it? Most end in /v1.'}"
            )
        if 300 <= code < 400:
            raise UserError(f"{where} redirects (HTTP {code}), which is not followed; give the address it leads to.")
        if code == 429:
            return _NotNow(f"rate limit (HTTP 429){told}", pause_s=_asked_pause(error))
        if code in PASSING or code >= 500:
            return _NotNow(f"server error (HTTP {code}){told}", pause_s=_asked_pause(error))
        raise RequestFailed(f"the request is refused (HTTP {code}){told}")

    def _known_models(self) -> str:
        """The models that the server lists, as a sentence; empty if it lists none."""
        try:
            entries = json.loads(self._request("/models", None, min(self._settings.timeout_s, 10.0)))["data"]
            names = sorted(self._cleared(str(entry["id"])) for entry in entries)
        except (HTTPError, _NotNow, ValueError, LookupError, TypeError):
            return ""
        more = f" and {len(names) - SHOWN_MODELS} more" if len(names) > SHOWN_MODELS else ""
        return f"Allowed: {', '.join(names[:SHOWN_MODELS])}{more}.{nearest(self._settings.model, names)}" if names else ""

    def _told(self, content: bytes) -> str:
        """What the server says of its error, in one short line with a colon before it; empty if it says nothing."""
        text = content.decode(errors="replace")
        try:
            answer = json.loads(text)
        except ValueError:
            answer = text
        if isinstance(answer, dict):
            answer = answer.get("error") or answer.get("detail") or answer.get("message") or ""
        if isinstance(answer, dict):
            answer = answer.get("message") or ""
        # Cleared before it is shortened: half a key is a secret too.
        words = "".join(letter if letter.isprintable() else " " for letter in self._cleared(str(answer))).split()
        line = " ".join(words)
        return f": {line[:200]}" if line else ""

    def _cleared(self, text: str) -> str:
        """``text`` without the key."""
        return text.replace(self._key, "***") if self._key and len(self._key) >= SHORTEST_SECRET else text


def _asked_pause(error: HTTPError) -> float:
    """Seconds that the server asks to wait; 0 if it asks for none (or names a date, which few do)."""
    try:
        return max(0.0, float(error.headers.get("Retry-After", "")))
    except ValueError:
        return 0.0
