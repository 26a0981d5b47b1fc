"""Too little memory; a W&B whose client or server dies in mid-run."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from break_processes import wait_for
from broken_runs import Command, Fault, Harness, processes_in

LOWER = ("trainer.batch_size", "trainer.accumulate")  # of what a message must name, where memory is too small
KEY = "0123456789abcdef" * 2 + "01234567"


def little_memory(harness: Harness, place: Path) -> bool:
    """Address space for 4 to 400 MiB more than Python and its packages take."""
    job = harness.job("counting")
    size = _address_space() + harness.random.randrange(4, 400) * 2**20
    command = harness.finished(job, place, before=partial(resource.setrlimit, resource.RLIMIT_AS, (size, size)))
    named = command.status == 0 or all(key in command.said for key in LOWER)
    if command.has_a_trace or not command.is_told_or_done or not named:
        print(command.said, file=sys.stderr)
        return False
    return harness.recovers(job, place)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def client_killed(harness: Harness, place: Path) -> bool:
    """Training goes on with one warning; the same command needs nothing of W&B's."""
    job = harness.job("wandb")
    command = harness.started(job, place)
    if not wait_for(lambda: clients(place), command):
        print(command.said, file=sys.stderr)
        return False
    time.sleep(harness.random.uniform(0, 0.5) * job.seconds)
    for process in clients(place):
        os.kill(process, signal.SIGKILL)
    return ends_with_one_warning(command) and harness.recovers(job, place)


def ends_with_one_warning(command: Command) -> bool:
    fits = (
        command.wait() == 0 and not command.has_a_trace and len(re.findall("W&B: .*(failed|not everything)", command.said)) <= 1
    )
    if not fits:
        print(command.said, file=sys.stderr)
    return fits


def clients(place: Path) -> list[int]:
    """W&B's own processes of a run in ``place``."""
    return [number for number in processes_in(place) if b"wandb-core" in Path(f"/proc/{number}/cmdline").read_bytes()]


class Answers(BaseHTTPRequestHandler):
    """As much of W&B's server as its client needs to begin a run and to send its lines."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        self._answer({"data": self._data(asked.get("query", ""))} if self.path.endswith("graphql") else {"exitcode": None})

    def do_GET(self) -> None:
        self._answer({})

    def _data(self, query: str) -> dict[str, Any]:
        project = {"id": "p", "name": "cope-lab", "entity": {"id": "e", "name": "somebody"}}
        bucket = {"id": "b", "name": "run", "displayName": "run", "sweepName": None, "project": project, "historyLineCount": 0}
        viewer = {"id": "v", "entity": "somebody", "username": "somebody", "flags": "{}", "teams": {"edges": []}}
        files = {"runID": "b", "uploadHeaders": [], "files": []}
        return {
            **{"upsertBucket": {"bucket": bucket, "inserted": True}, "viewer": viewer, "serverInfo": {"features": []}},
            **{"createRunFiles": files, "project": project},
        }

    def _answer(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def server() -> Iterator[ThreadingHTTPServer]:
    found = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=found.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        found.shutdown()
        found.server_close()


def server_dies(harness: Harness, place: Path) -> bool:
    """The run ends, its own files whole; what W&B did not get can be sent later."""
    job = harness.job("wandb")
    with server() as running:
        online = {"WANDB_MODE": "online", "WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{running.server_port}"}
        command = harness.started(job, place, no_proxy="127.0.0.1", **online)
        if not wait_for(lambda: clients(place), command):
            print(command.said, file=sys.stderr)
            return False
        time.sleep(harness.random.uniform(0.2, 0.7) * job.seconds)
    return ends_with_one_warning(command) and harness.recovers(job, place)


FAULTS = {
    "little_memory": Fault("an address space too small for the run: the message names what to lower", little_memory),
    "client_killed": Fault("SIGKILL to W&B's own process in mid-run", client_killed),
    "server_dies": Fault("W&B's server (a local stand-in) dies in mid-run", server_dies),
}
