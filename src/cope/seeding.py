"""One named random stream per purpose, so that no purpose can move another's.

A stream is a function of ``(seed, purpose, *counters)``: nothing has to be saved to continue it, and adding an evaluation,
a layer or a log line never changes the data a run sees.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def stream_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for ``purpose`` (``train``, ``order``, ``initialisation``, ``dropout``, ...) at the given counters."""
    key = ":".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1


def numpy_stream(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator for ``purpose``."""
    return np.random.default_rng(stream_seed(seed, purpose, *counters))


def seed_torch(seed: int, purpose: str, *counters: int) -> None:
    """Set PyTorch's own generators (CPU and every GPU) for ``purpose``: used for initialisation and dropout."""
    torch.manual_seed(stream_seed(seed, purpose, *counters))
