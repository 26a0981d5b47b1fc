"""How a command ends: its exit statuses, and what it says when it was stopped before it had begun."""

from __future__ import annotations

import os

LEFT_OVER = 3  # of a sweep, some of whose runs failed or were stopped; 1 is of a command that was refused
BUSY = 75  # of one whose run another process has (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # the shell's exit status of a program stopped by Ctrl-C
NO_READER = 141  # that of a program whose output nobody reads any more, as before "| head"
STOPPED = "Stopped; the same command goes on from there."


def end_at_once(number: int, frame: object) -> None:
    """The handler of a command that has begun nothing yet: modules that are half imported cannot clean up."""
    try:
        os.write(2, f"{STOPPED}\n".encode())
    finally:
        os._exit(INTERRUPTED)
