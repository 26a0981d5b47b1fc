"""The attention functions that are timed: ordinary attention, this project's backends, and public code that can be had."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from cope import cope_attention
from cope.errors import UserError
from cope.kernels import native, triton
from cope.positions.base import ModelShape, PositionEncoding
from cope.positions.contextual import Contextual

NUM_POSITIONS = 64
TOLERANCE = 1e-3  # between the authors' code and ours, both in float32
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of q, k, v and the table of positions


def draw(
    heads: int,
    time_steps: int,
    head_dim: int,
    density: float,
    device: str,
    batch: int = 1,
    num_positions: int = NUM_POSITIONS,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """q, k, v and a table, so that gates are ``density`` open on average."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, heads, time_steps, head_dim, device=device) for _ in range(3))
    q[..., 0] = 1.0
    k[..., 0] = math.log(density / (1 - density)) * math.sqrt(head_dim)
    table = 0.1 * torch.randn(num_positions, head_dim, device=device)
    return [tensor.to(dtype).requires_grad_() for tensor in (q, k, v, table)]


def cope_encoding(shape: ModelShape, gates: str = "keys", backend: str = "auto") -> PositionEncoding:
    """CoPE with a table of NUM_POSITIONS random vectors a layer."""
    return Contextual(
        shape, num_positions=NUM_POSITIONS, scale="released", share_layers=False, init_std=1.0, gates=gates, backend=backend
    )


def candidates(device: str, released: str = "") -> dict[str, Attention]:
    """SDPA first, then every backend and public implementation that can be had; what is left out is said."""
    found: dict[str, Attention] = {"sdpa": lambda q, k, v, table: F.scaled_dot_product_attention(q, k, v, is_causal=True)}
    for backend, module in (("native", native), ("triton", triton), ("blockwise", None), ("reference", None)):
        lacking = None if module is None else module.missing(device, torch.float32)
        if lacking is not None:
            print(f"left out: {backend} ({lacking})")
            continue
        found[backend] = lambda q, k, v, table, backend=backend: cope_attention(q, k, v, table, backend=backend)
    if find_spec("x_transformers") is not None:
        found["x-transformers"] = x_transformers()
    else:
        print("left out: x-transformers (not installed: pip install x-transformers)")
    if released:
        found["released"] = released_code(released)
        check_released(found["released"], released, device)
    else:
        print("left out: the authors' code (point to a copy of their context_position.py: released=PATH)")
    return found


def x_transformers() -> Attention:
    """Its module makes the contextual term of the logits, from a table of its own; softmax follows."""
    from x_transformers.x_transformers import CoPE

    def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(hidden, -torch.finfo(logits.dtype).max)
        position_term = CoPE(q.shape[-1], q.shape[1], max_pos=NUM_POSITIONS).to(q.device)(q, logits)
        return (logits + position_term).masked_fill(hidden, -math.inf).softmax(-1) @ v

    return attend


def released_code(path: str) -> Attention:
    """The layer that CoPE's authors released, from a copy of their file, with the table that is given as its own.

    The file is github.com/facebookresearch/RAM, projects/cope/src/cope/context_position.py; it is not part of this project.

    Raises:
        UserError: there is no such file, or it is another.
    """
    wanted = "allowed: a copy of the authors' context_position.py, which defines class ContextPosSelfAttn"
    try:
        layer_class = runpy.run_path(path).get("ContextPosSelfAttn")
    except Exception as error:  # somebody else's file: anything can be in it
        raise UserError(f"released={path} cannot be run ({error}); {wanted}.") from error
    if layer_class is None:
        raise UserError(f"released={path} does not define it; {wanted}.")

    @cache
    def layer(head_dim: int, num_positions: int) -> torch.nn.Module:
        settings = SimpleNamespace(
            drop=0.0, cope_layers=1, pos_emb="cope", cope_npos=num_positions, head_dim=head_dim,
            cope_val_gates=False, cope_sep_key=False, cope_nodiv=False,
        )  # fmt: skip
        made: torch.nn.Module = layer_class(settings, 0)
        return made

    @cache
    def causal(time_steps: int, device: torch.device) -> Tensor:
        return torch.ones(time_steps, time_steps, device=device).tril()

    def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        # The layer takes heads and batch as one dimension, and a table of (1, head_dim, positions).
        batched_q, batched_k, batched_v = (tensor.flatten(0, 1) for tensor in (q, k, v))
        parameters = {"pos_emb": table.t().unsqueeze(0)}
        inputs = (batched_q, batched_k, batched_k, batched_v, causal(q.shape[-2], q.device))
        output: Tensor = functional_call(layer(q.shape[-1], table.shape[0]), parameters, inputs)
        return output.unflatten(0, q.shape[:2])

    return attend


def check_released(attend: Attention, path: str, device: str) -> None:
    """Say that the authors' code computes what is timed beside it.

    Raises:
        UserError: it does not.
    """
    tensors = draw(8, 128, 32, 0.5, device)
    with torch.no_grad():
        expected = cope_attention(*tensors, scale="released", backend="reference")
        difference = float((attend(*tensors) - expected).abs().max())
    if not difference <= TOLERANCE:  # NaN too
        raise UserError(
            f"released={path} computes something else: outputs differ from backend=reference, scale=released by "
            f"{difference:.2g}; allowed: at most {TOLERANCE}."
        )
    print(f"released: {path} gives the outputs of backend=reference, scale=released (largest difference {difference:.1e})")
