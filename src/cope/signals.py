"""Who is told of signals: Ctrl-C, SIGTERM, what a cluster sends; and how a command ends that one has stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # the shell's exit status of a program stopped by Ctrl-C
NO_READER = 141  # that of a program whose output nobody reads any more, as before "| head"
STOPPED = "Stopped; the same command goes on from there."

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def handled_by(handler: Handler, *numbers: int) -> Iterator[None]:
    """Inside, ``handler`` is told of these signals; in another thread than the main one they are somebody else's."""
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end_at_once(number: int, frame: object) -> None:
    """The handler of a command that has begun nothing yet: modules that are half imported cannot clean up."""
    try:
        os.write(2, f"{STOPPED}\n".encode())
    finally:
        os._exit(INTERRUPTED)
