"""What tests of attention draw, run and compare, whatever the backend."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from cope import cope_attention
from cope.kernels.native.build import CannotBuild, find_compiler

NAMES = ("q", "k", "v", "table", "gate_keys", "relative", "bias")
# Of the largest number of a tensor. Backends in single precision are judged against the reference in double.
DTYPES = {"reference": torch.float64, "blockwise": torch.float64, "native": torch.float32, "triton": torch.float32}
EXACT = [name for name, dtype in DTYPES.items() if dtype == torch.float64]


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
BLOCK = 64  # queries or keys that every backend takes at once


def draw(
    num_queries: int,
    num_keys: int,
    num_positions: int,
    *,
    batch: int = 2,
    num_heads: int = 2,
    head_dim: int = 3,
    value_dim: int = 2,
    seed: int = 0,
    gates: str = "keys",
    shift: float = 0.0,
    spread: float = 1.0,
    relative: int | None = None,
    bias: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor | None]:
    """Random arguments; ``relative`` has that many distances, ``bias`` is (heads, distances).

    ``shift`` moves every gate's logit and ``spread`` scales it, so that gates can be closed or open.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, gate_keys = (normal(batch, num_heads, time, head_dim) for time in (num_queries, num_keys, num_keys))
    v = normal(batch, num_heads, num_keys, value_dim)
    # Queries alike in their first dimension: moving the gate keys there opens or closes the gates of all pairs together.
    q[..., 0] = 1.0 + 0.1 * q[..., 0]
    for keys in (gate_keys, k) if gates == "keys" else (gate_keys,):
        keys *= spread
        keys[..., 0] += shift * math.sqrt(head_dim)
    values: dict[str, Tensor | None] = {
        "q": q,
        "k": k,
        "v": v,
        "table": normal(num_positions, head_dim),
        "gate_keys": gate_keys if gates == "separate" else None,
        "relative": None if relative is None else normal(relative, head_dim),
        "bias": None if bias is None else normal(*bias),
    }
    return {name: None if x is None else x.to(dtype).requires_grad_() for name, x in values.items()}


def run(values: dict[str, Tensor | None], backend: str, **settings: Any) -> Tensor:
    positional = [values[name] for name in NAMES[:4]]
    others = {name: values[name] for name in NAMES[4:]}
    return cope_attention(*positional, **others, backend=backend, **settings)


def gradients(values: dict[str, Tensor | None], output: Tensor) -> dict[str, Tensor]:
    """Of a fixed random combination of the output's entries: a plain sum would hide gradients that cancel."""
    wanted = {name: x for name, x in values.items() if x is not None}
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(output.dtype)
    # Zeros for what is not used: with a single position the gates have no say.
    found = torch.autograd.grad((output * weights).sum(), list(wanted.values()), materialize_grads=True)
    return dict(zip(wanted, found, strict=True))


def compare_with_reference(
    drawn: dict[str, Any], backend: str, scale: str, tolerance: float, dtype: torch.dtype | None = None
) -> None:
    """Values and all gradients; ``tolerance`` is of the largest number that could stand in a tensor."""
    exact = draw(**drawn)
    dtype = dtype or DTYPES[backend]
    values = {name: None if x is None else x.detach().to(dtype).requires_grad_() for name, x in exact.items()}
    # What was rounded is what both are given.
    exact = {name: None if x is None else x.detach().double().requires_grad_() for name, x in values.items()}
    expected, found = run(exact, "reference", scale=scale), run(values, backend, scale=scale)
    pairs = {"output": (expected, found)}
    expected_gradients, found_gradients = gradients(exact, expected), gradients(values, found)
    pairs |= {f"gradient of {name}": (expected_gradients[name], found_gradients[name]) for name in expected_gradients}
    # Large keys make large logits, which single precision holds less finely.
    tolerance *= max(1.0, exact["k"].abs().max().item() / 10)
    for name, (wanted, got) in pairs.items():
        # Gradients of single tokens may cancel to 0: an error is small beside what was added up, which is of size 1 here.
        largest = max(1.0, wanted.abs().max().item())
        error = (got.double() - wanted).abs().max().item()
        assert error <= tolerance * largest, f"{name}: error {error:.2e}, largest {largest:.2e}"


HALVES = dict(num_queries=9, num_keys=9, num_positions=4, gates="separate", spread=0.0)  # gates of exactly 1/2
OPEN = dict(num_queries=80, num_keys=90, num_positions=64, gates="separate", shift=1000.0, spread=0.0)  # of exactly 1
LARGE = dict(num_queries=70, num_keys=75, num_positions=2000, batch=1, head_dim=256, value_dim=256, shift=2.0)
