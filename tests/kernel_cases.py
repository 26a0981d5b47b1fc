"""What tests of attention draw, run and compare, whatever the backend; `make gpu-check` does so too, without pytest."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cope import cope_attention
from cope.kernels.reference import contextual_positions

NAMES = ("q", "k", "v", "table", "gate_keys", "relative", "bias")
# Of the largest number of a tensor. Backends in single precision are judged against the reference in double.
DTYPES = {"reference": torch.float64, "blockwise": torch.float64, "native": torch.float32, "triton": torch.float32}
EXACT = [name for name, dtype in DTYPES.items() if dtype == torch.float64]
CORNER = 1e-4  # how near a whole number rounding may take a position for one on its other side
Values = dict[str, Tensor | None]
BLOCK = 64  # queries or keys that every backend takes at once


def draw(
    num_queries: int,
    num_keys: int,
    num_positions: int | None,
    *,
    batch: int = 2,
    num_heads: int = 2,
    num_key_heads: int | None = None,
    head_dim: int = 3,
    value_dim: int = 2,
    seed: int = 0,
    gates: str = "keys",
    shift: float = 0.0,
    spread: float = 1.0,
    relative: int | None = None,
    bias: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Values:
    """Random arguments; ``relative`` has that many distances, ``bias`` is (heads, distances).

    No positions stand for attention by distance alone.

    ``shift`` moves every gate's logit and ``spread`` scales it, so that gates can be closed or open.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keys = (batch, num_key_heads or num_heads, num_keys)
    q, k, gate_keys = (normal(*rows, head_dim) for rows in ((batch, num_heads, num_queries), keys, keys))
    v = normal(*keys, value_dim)
    # Queries alike in their first dimension: moving the gate keys there opens or closes the gates of all pairs together.
    q[..., 0] = 1.0 + 0.1 * q[..., 0]
    for keys in (gate_keys, k) if gates == "keys" else (gate_keys,):
        keys *= spread
        keys[..., 0] += shift * math.sqrt(head_dim)
    values: Values = {
        "q": q,
        "k": k,
        "v": v,
        "table": None if num_positions is None else normal(num_positions, head_dim),
        "gate_keys": gate_keys if gates == "separate" else None,
        "relative": None if relative is None else normal(relative, head_dim),
        "bias": None if bias is None else normal(*bias),
    }
    return {name: None if x is None else x.to(dtype).requires_grad_() for name, x in values.items()}


def padding(num_keys: int, lengths: list[int], side: str) -> Tensor:
    """(batch, key), False for what fills up sequences of such lengths on the ``left`` or ``right``."""
    place = torch.arange(num_keys).flip(0) if side == "left" else torch.arange(num_keys)
    return place < torch.tensor(lengths)[:, None]


def run(values: Values, backend: str, **settings: Any) -> Tensor:
    q, k, v, table = (values[name] for name in NAMES[:4])
    others = {name: values[name] for name in NAMES[4:]}
    return cope_attention(q, k, v, table, **others, backend=backend, **settings)


def gradients(values: Values, output: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Of a fixed random combination of the output's entries: a plain sum would hide gradients that cancel."""
    wanted = {name: x for name, x in values.items() if x is not None}
    weights = rounded_weights(values) if weights is None else weights
    # Zeros for what is not used: with a single position the gates have no say.
    found = torch.autograd.grad((output * weights.to(output)).sum(), list(wanted.values()), materialize_grads=True)
    return dict(zip(wanted, found, strict=True))


def rounded_weights(values: Values) -> Tensor:
    """Random ones for the entries of an output, which values of another type can be given too."""
    q, v = values["q"], values["v"]
    weights = torch.randn(*q.shape[:-1], v.shape[-1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return weights.to(q)


def converted(values: Values, dtype: torch.dtype, device: str | torch.device | None = None) -> Values:
    return {name: None if x is None else x.detach().to(device, dtype).requires_grad_() for name, x in values.items()}


def queries_at_corners(values: Values) -> Tensor:
    """(batch, heads, query), True where a position is all but a whole number.

    The logit has a corner there: which of its two slopes a gradient takes is rounding's to say, of every backend.
    """
    q, k, gate_keys, table = (values[name] for name in ("q", "k", "gate_keys", "table"))
    if table is None:
        return torch.zeros(q.shape[:-1], dtype=torch.bool, device=q.device)
    gate_logits = q @ (k if gate_keys is None else gate_keys).transpose(-1, -2) / math.sqrt(q.shape[-1])
    _, positions = contextual_positions(gate_logits.detach(), num_positions=None)
    distance = (positions - positions.round()).abs()
    # Whole numbers themselves, as of open gates, are whole for every backend; below 0 and beyond the last there is nothing.
    within = (positions > 0.5) & (positions < table.shape[0] - 1 + CORNER)
    return ((distance > 0) & (distance < CORNER) & within).any(-1)


def output_and_gradients(
    values: Values, attend: Callable[[Values], Tensor], weights: Tensor | None = None
) -> dict[str, Tensor]:
    output = attend(values)
    found = gradients(values, output, weights)
    return {"output": output.detach()} | {f"gradient of {name}": gradient for name, gradient in found.items()}


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """The largest of each tensor, of its largest number.

    Gradients of single tokens may cancel to 0: an error is small beside what was added up, which is of size 1 here.
    """
    return {
        name: (found[name].double() - wanted).abs().max().item() / max(1.0, wanted.abs().max().item())
        for name, wanted in expected.items()
    }


def compare_with_reference(
    drawn: dict[str, Any],
    backend: str,
    scale: str,
    tolerance: float,
    dtype: torch.dtype | None = None,
    key_mask: Tensor | None = None,
) -> None:
    """Values and all gradients; ``tolerance`` is of the largest number that could stand in a tensor."""
    values = converted(draw(**drawn), dtype or DTYPES[backend])
    exact = converted(values, torch.float64)  # what was rounded is what both are given
    weights = rounded_weights(values)
    expected, found = (
        output_and_gradients(given, partial(run, backend=name, scale=scale, key_mask=key_mask), weights)
        for given, name in ((exact, "reference"), (values, backend))
    )
    # Large keys make large logits, which single precision holds less finely.
    tolerance *= max(1.0, exact["k"].abs().max().item() / 10)
    for name, error in errors(found, expected).items():
        assert error <= tolerance, f"{name}: error {error:.2e}"


HALVES = dict(num_queries=9, num_keys=9, num_positions=4, gates="separate", spread=0.0)  # gates of exactly 1/2
OPEN = dict(num_queries=80, num_keys=90, num_positions=64, gates="separate", shift=1000.0, spread=0.0)  # of exactly 1
LARGE = dict(num_queries=70, num_keys=75, num_positions=2000, batch=1, head_dim=256, value_dim=256, shift=2.0)
