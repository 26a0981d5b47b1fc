"""Data sets of the Hugging Face Hub, and what to say when there is no network.

``datasets`` itself retries an unreachable hub for some 25 seconds before it gives up; here it is asked for with a short
timeout first. Without a network, what was downloaded before is used. ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are honoured.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from cope.errors import UserError

CONNECT_SECONDS = 3.0


def load_hub_dataset(key: str, path: str, name: str | None = None, *, split: str, streaming: bool = False, instead: str) -> Any:
    """A split of a data set of the Hub; when that cannot be reached, of what an earlier run downloaded.

    Args:
        key: the setting that asks for it, with its value, for messages.
        path: the data set.
        name: its configuration.
        split: its split.
        streaming: read it as it is downloaded, keeping nothing: for what is too large to keep.
        instead: what to do without it, a sentence.

    Raises:
        UserError: the data set can be had neither from the Hub nor from the cache.
    """
    import datasets  # a second to import

    online = not datasets.config.HF_HUB_OFFLINE and is_reachable(endpoint())
    try:
        if online:
            return datasets.load_dataset(path, name, split=split, streaming=streaming)
        with _offline(datasets):
            return datasets.load_dataset(path, name, split=split, streaming=streaming)
    except Exception as error:  # datasets raises the errors of half a dozen libraries, which share no base class
        if online:
            raise UserError(f"{key}: cannot load {path} from the Hugging Face Hub ({first_line(error)}). {instead}") from error
        why = "HF_HUB_OFFLINE is set" if datasets.config.HF_HUB_OFFLINE else f"{endpoint()} cannot be reached"
        kept = "cannot be read without a network" if streaming else "was not downloaded before"
        raise UserError(f"{key}: {why}, and {path} {kept}. {instead}") from error


def first_line(error: BaseException) -> str:
    """What a library's error says, without the lines below."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def endpoint() -> str:
    """The address of the Hub."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def is_reachable(url: str) -> bool:
    """Whether something answers at ``url``, or at the proxy that leads there, within CONNECT_SECONDS."""
    proxies = getproxies()
    address = urlsplit(proxies.get(urlsplit(url).scheme) or proxies.get("all") or url)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        with socket.create_connection((address.hostname or "", port), timeout=CONNECT_SECONDS):
            return True
    except (OSError, ValueError):  # ValueError: the port of a mistyped address
        return False


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Both libraries read their environment variables when imported, which is too late now; these are what they set."""
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
