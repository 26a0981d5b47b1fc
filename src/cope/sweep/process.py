"""Jobs, some at a time, each in a process of its own, which on Linux is forked from one that has imported everything.

To start Python and import PyTorch, Lightning, SciPy and W&B takes a processor some six seconds, a tenth of a short run's time.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cloudpickle

from cope.endings import INTERRUPTED
from cope.errors import Interrupted
from cope.signals import handled_by

# Elsewhere a fork can break the system's own libraries, so that each process imports for itself.
CONTEXT = multiprocessing.get_context("forkserver") if sys.platform == "linux" else multiprocessing.get_context("spawn")

NEW_LINE = "\n"  # after the ^C of a terminal, and the line that tells how far the jobs are
SAVING = "Stopping: the runs that go on save their state. Ctrl-C once more ends them without."
STOPPING = (signal.SIGINT, signal.SIGTERM)  # what jobs are stopped by; the process that they are forked from is not

# A process's exit status can be read once, and starting one reads the status of all that have ended: one thread at a time.
_one_thread = threading.Lock()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes that are started inside begin with both signals blocked: one that comes then waits until they are ready."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # where this is the first to need it, it unblocks both for those after it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Lost(RuntimeError):
    """A job's process ended without an answer; what it had written is there."""


@dataclass(frozen=True)
class Work:
    """One job.

    Args:
        function: what is called in its process.
        environment: all variables of it.
        of: whatever the caller knows it by.
    """

    function: Callable[[], Any]
    environment: Mapping[str, str]
    of: Any
    began: float = field(default_factory=time.monotonic)


class Processes:
    """The processes of jobs that go on, started and waited for by several threads.

    Args:
        preload: modules that jobs need beside those of a run, imported once.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._preload = ["cope.sweep.preload", *preload]
        self._running: list[BaseProcess] = []
        self._stopping = False

    def is_stopping(self) -> bool:
        """Whether :meth:`stop` was called; it may be at any time, by a signal."""
        return self._stopping

    def stopped_by_signals(self) -> AbstractContextManager[None]:
        """Inside, Ctrl-C and SIGTERM are told to :meth:`stop`, and the first of them is answered: to save takes a while."""

        def stop(number: int, frame: object) -> None:
            if not self._stopping:
                with suppress(OSError):  # nobody to be told; os.write, since a print may be what was interrupted
                    os.write(2, f"{NEW_LINE if os.isatty(2) else ''}{SAVING}\n".encode())
            self.stop()

        return handled_by(stop, *STOPPING)

    def as_they_end(
        self, at_once: int, next_work: Callable[[], Work | None], limit_s: float | None = None
    ) -> Generator[tuple[Work, Future[Any]]]:
        """Each job as it ends, with its answer; those that go on when it is closed are stopped, and waited for.

        Args:
            at_once: so many jobs go on side by side.
            next_work: is asked whenever there is room for one; None where there is none now.
            limit_s: after which all are stopped.
        """
        running: dict[Future[Any], Work] = {}
        ends = math.inf if limit_s is None else time.monotonic() + limit_s
        with ThreadPoolExecutor(at_once) as pool:
            try:
                while True:
                    if time.monotonic() >= ends and not self.is_stopping():
                        self.stop()
                    while len(running) < at_once and not self.is_stopping() and (work := next_work()) is not None:
                        running[pool.submit(self.call, work.function, work.environment)] = work
                    if not running:
                        return
                    left = None if ends == math.inf or self.is_stopping() else max(0.0, ends - time.monotonic())
                    for future in wait_for(running, left, FIRST_COMPLETED).done:
                        yield running.pop(future), future
            except BaseException:
                if not self.is_stopping():  # nothing goes on behind an error, but what is saving its state may end
                    self.stop()
                raise

    def call(self, function: Callable[[], Any], environment: Mapping[str, str]) -> Any:
        """What ``function()`` returns, called in a process of its own.

        Args:
            environment: all of its variables.

        Raises:
            Interrupted: it was stopped, or was not begun since no more are.
            Lost: it ended without an answer.
            RuntimeError: its process cannot be started.
        """
        receiver, sender = CONTEXT.Pipe(duplex=False)
        with _one_thread:
            if self.is_stopping():
                raise Interrupted("It was not begun.")
            if CONTEXT.get_start_method() == "forkserver":
                CONTEXT.set_forkserver_preload(self._preload)
            process = CONTEXT.Process(target=_answer, args=(cloudpickle.dumps(function), sender, dict(environment)))
            try:
                with _signals_blocked():
                    process.start()
            except (OSError, EOFError) as error:
                raise RuntimeError(f"its process could not be started: {error}") from error
            sender.close()
            self._running.append(process)
            if self.is_stopping():  # asked for while it started, and so not told
                process.terminate()
        wait([receiver, process.sentinel])
        try:
            answer = receiver.recv_bytes() if receiver.poll() else None
        except EOFError:
            answer = None
        wait([process.sentinel])
        with _one_thread:
            process.join()
            self._running.remove(process)
            status = process.exitcode
            process.close()  # it holds two files open
        receiver.close()
        if answer is not None:
            return cloudpickle.loads(answer)
        if status == INTERRUPTED or self.is_stopping():
            raise Interrupted("It was stopped.")
        raise Lost(f"its process ended with exit status {status}")

    def stop(self) -> None:
        """Start no more, and ask those that go on to save their state and end; the second time they end at once."""
        end = "kill" if self._stopping else "terminate"
        self._stopping = True
        for process in list(self._running):
            with suppress(ValueError):  # it has ended in the meantime
                getattr(process, end)()


def output_to(log: Path) -> None:
    """Let what this process prints from now on go to the end of ``log``.

    Raises:
        OSError: it cannot be written.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _answer(pickled: bytes, sender: Connection, environment: Mapping[str, str]) -> None:
    """What the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it as well, but it is the launcher that asks it to stop
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    if hasattr(select, "poll"):  # not on Windows
        threading.Thread(target=_stop_without_reader, args=(sender.fileno(),), daemon=True).start()
    try:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        sender.send_bytes(cloudpickle.dumps(cloudpickle.loads(pickled)()))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        if "wandb" in sys.modules:  # whose own hook at the exit of Python is not called in such a process
            sys.modules["wandb"].teardown()


def _stop_without_reader(pipe: int) -> None:
    """Ask this process to save its state and end once nobody is left to read its answer: the sweep was killed."""
    waiting = select.poll()
    waiting.register(pipe, 0)  # errors alone, of which a lost reader is one
    waiting.poll()
    os.kill(os.getpid(), signal.SIGTERM)
