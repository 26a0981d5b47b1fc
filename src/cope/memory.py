"""How much memory there is, and whether it was too little."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def machine_bytes() -> int | None:
    """Memory of the machine, or of the container if it has less; None where the system does not say."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(found, int(text)) if text.isdecimal() else found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory could not be had: Python's, PyTorch's for a GPU or for a CPU, or the system's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return "can't allocate memory" in str(error) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
