"""How much memory there is."""

from __future__ import annotations

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
