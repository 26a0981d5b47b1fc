"""How many CPU threads a run takes.

A second thread makes a small model 5 to 20% faster on an idle machine, and 3 to 40 times slower as soon as anything else runs:
threads that wait for one another spin. So small recipes say ``trainer.threads: 1``, and cores are used by runs side by side.
"""

from __future__ import annotations

import os


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads(asked: int | None, devices: int) -> int:
    """``trainer.threads``, or what OMP_NUM_THREADS says, or an equal share of the cores for each device."""
    if asked is not None:
        return asked
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else max(1, num_cores() // devices)
