"""Backends as parameters of tests, each with what it needs."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from cope.kernels.native.build import CannotBuild, find_compiler


def has_compiler() -> bool:
    try:
        return bool(find_compiler())
    except CannotBuild:
        return False


# Only where there is none: a compiler that fails is an error.
NEEDS_COMPILER = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler: see `make native`")
# Slow: its interpreter takes seconds where the others take milliseconds.
NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: pip install triton")
IN_INTERPRETER = pytest.param("triton", marks=[pytest.mark.slow, NEEDS_TRITON])
ALL = ["reference", "blockwise", pytest.param("native", marks=NEEDS_COMPILER), IN_INTERPRETER]
