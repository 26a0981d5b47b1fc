"""``python -m cope.kernels.native``: compile the C++ kernel now, instead of when it is first used."""

from __future__ import annotations

import sys
import time

from cope.kernels.native import load
from cope.kernels.native.build import CannotBuild, library


def main() -> None:
    """Build and say what was built."""
    start = time.perf_counter()
    try:
        path = library()
        built = load(path)
    except (CannotBuild, OSError) as error:
        sys.exit(f"error: the native kernel cannot be had: {error}")
    threads = "with threads" if built.cope_has_threads() else "on one thread (the compiler has no OpenMP)"
    print(f"{built.cope_instructions().decode()} kernel, {threads}: {path} ({time.perf_counter() - start:.1f} s)")


if __name__ == "__main__":
    main()
