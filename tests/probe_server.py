"""A chat-completions server on this machine for the tests of the word-counting probe, and the settings that ask it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cope.building import arguments
from cope.probe.models import ProbeSettings

KEY = "sk-very-secret-0123456789"
Answer = tuple[int, dict[str, str], bytes]


def completion(text: Any, **message: Any) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    return 200, {"Content_Type": "application/json"}, json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def refusal(status: int, message: str = "", **headers: str) -> Answer:
    return status, headers, json.dumps({"error": {"message": message, "type": "test"}}).encode()


class Server:
    """A chat-completions server whose answers a test decides; it notes what it was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Answer] = lambda body: completion("0")
        self.queue: list[Answer] = []  # given first
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/chat/completions"
                server.requests.append(body)
                server.authorizations.append(self.headers["Authorization"])
                self._send(server.queue.pop(0) if server.queue else server.answer(body))

            def do_GET(self) -> None:
                assert self.path == "/v1/models"
                self._send((200, {}, json.dumps({"data": [{"id": "small-chat"}, {"id": "large-chat"}]}).encode()))

            def _send(self, answer: Answer) -> None:
                status, headers, content = answer
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def everything_below(folder: Path) -> str:
    """What all files say."""
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def settings(server: Server | None = None, **changes: Any) -> ProbeSettings:
    """The paper's two prompts alone, unless ``prompts`` is given."""
    defaults: dict[str, Any] = {
        "endpoint": server.address if server else None, "model": "small-chat" if server else None, "local": None,
        "temperature": 1.0, "top_p": 1.0, "max_tokens": 512, "samples": 1, "seed": 1, "lengths": [2, 4], "prompts": 0,
        "timeout_s": 60.0,
    }  # fmt: skip
    return ProbeSettings(**arguments(OmegaConf.create({**defaults, **changes}), ProbeSettings, ""))
