"""Processes in which cells of a table are found, one after another or several at once, whatever goes wrong in one."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import torch

from cope.errors import UserError

WARM = "warm"  # what a process says that is ready to be measured beside others
# Processes where kernels are compiled, which takes most of the time and one core each.
COMPILING_AT_ONCE = max(1, min(8, (os.cpu_count() or 1) - 1))

Found = dict[str, Any]  # of a cell; {"error": ...} where it failed


class Cell(Protocol):
    """One figure of a table, or a few that are found together."""

    @property
    def processes(self) -> int:
        """How many find it at once."""

    @property
    def seconds(self) -> float:
        """With less time left it is not begun."""

    @property
    def longest(self) -> float:
        """Seconds before it is given up."""

    def find(self, all_are_warm: Callable[[], None]) -> Found:
        """In a process of its own; one of several calls ``all_are_warm`` to wait for the others."""

    def together(self, found: list[Found]) -> Found:
        """What several processes found, as one; of a cell for one process it is not asked."""


def find_all(cells: Sequence[Cell], limit: float, at_once: int = 1) -> Iterator[Found]:
    """Each cell's, in order, within ``limit`` seconds of all: what failed, or was not begun, says why."""
    end = time.monotonic() + limit
    workers, threads = Workers(), ThreadPoolExecutor(at_once)

    def find(cell: Cell) -> Found:
        left = end - time.monotonic()
        if left < cell.seconds:
            return {"error": f"not measured: the {limit:.0f} s were over", "out_of_time": True}
        return workers.measure(cell, min(cell.longest, left))

    try:
        yield from threads.map(find, cells)
    finally:
        threads.shutdown(cancel_futures=True)
        workers.end()


class Workers:
    """As many processes as cells ask for, kept as long as nothing fails in them."""

    def __init__(self) -> None:
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        self._starting = threading.Lock()

    def measure(self, cell: Cell, longest: float) -> Found:
        """What the cell's processes find within ``longest`` seconds."""
        workers = [self._one() for _ in range(cell.processes)]
        for worker in workers:
            worker.connection.send(cell)
        waiting = {worker.connection: worker for worker in workers}
        found: list[Found] = []
        num_warm = 0
        end = time.monotonic() + longest
        while waiting and time.monotonic() < end and not any(one.get("fatal") for one in found):
            for connection in wait(list(waiting), timeout=max(0.0, end - time.monotonic())):
                assert isinstance(connection, Connection)
                try:
                    told = connection.recv()
                except EOFError:
                    told = {"error": "its process ended", "fatal": True}
                if told == WARM:
                    num_warm += 1
                    for worker in workers if num_warm == cell.processes else ():
                        worker.connection.send("go")
                else:
                    found.append(told)
                    del waiting[connection]
        fatal = any(one.get("fatal") for one in found)
        for worker in workers:
            if waiting or fatal:
                worker.end(kill=True)
            else:
                self._free.put(worker)
        errors = [one for one in found if "error" in one]
        if errors or waiting:
            return errors[0] if errors else {"error": f"given up after {longest:.0f} s"}
        return found[0] if cell.processes == 1 else cell.together(found)

    def _one(self) -> _Worker:
        try:
            return self._free.get_nowait()
        except Empty:
            with self._starting:
                return _Worker()

    def end(self) -> None:
        """End those that are free."""
        while not self._free.empty():
            self._free.get_nowait().end(kill=False)


class _Worker:
    """A process that finds one cell after another."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def end(self, kill: bool) -> None:
        """Let it end, or make it."""
        self.connection.close()
        if kill:
            self.process.kill()
        self.process.join()


def _work(connection: Connection) -> None:
    """Answer each cell that comes with what was found."""

    def all_are_warm() -> None:
        connection.send(WARM)
        connection.recv()

    while True:
        try:
            cell: Cell = connection.recv()
        except EOFError:  # there are no more
            return
        found: Found
        try:
            found = cell.find(all_are_warm)
        except Exception as error:
            # After an error of CUDA nothing works any more in this process; settings that are refused leave it whole.
            found = {"error": f"{type(error).__name__}: {error}", "fatal": not isinstance(error, UserError)}
        connection.send(found)
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available() and not found.get("fatal"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
