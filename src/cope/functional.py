"""Attention with counted positions for anybody's model, in the manner of PyTorch's ``scaled_dot_product_attention``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from cope.errors import UserError, check_at_least, check_between, check_choice
from cope.kernels import blockwise, native, reference, triton

BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": reference.attention,
    "blockwise": blockwise.attention,
    "native": native.attention,
    "triton": triton.attention,
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TAKE_HALF_PRECISION = ("triton",)  # the others are given float32 for it
SCALES = ("released", "paper")

log = logging.getLogger(__name__)


def cope_attention(
    q: Float[Tensor, "batch heads query head_dim"],
    k: Float[Tensor, "batch key_heads key head_dim"],
    v: Float[Tensor, "batch key_heads key value_dim"],
    table: Float[Tensor, "num_positions head_dim"],
    *,
    gate_keys: Float[Tensor, "batch key_heads key head_dim"] | None = None,
    gate_bias: Float[Tensor, " heads"] | None = None,
    relative: Float[Tensor, "num_distances head_dim"] | None = None,
    bias: Float[Tensor, "#heads num_distances"] | None = None,
    key_mask: Bool[Tensor, "batch key"] | None = None,
    scale: str = "released",
    dropout: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "batch heads query value_dim"]:
    """Causal attention whose positions are counted by gates (arXiv 2405.18719, Equations 3 to 6).

    Each query i opens a gate ``sigmoid(q_i . k_j / sqrt(head_dim))`` for every key j up to itself; the position of key j is the
    sum of the gates from j to i; the position's vector, read from ``table`` by interpolation, is multiplied with the query and
    added to the attention logit.

    **Types and devices.** Anything else is refused by a :class:`~cope.errors.UserError`; nothing is rounded without being said.

    =======================  ==========================================================================================
    of q                     what becomes of it
    =======================  ==========================================================================================
    float32                  computed in float32 by every backend
    float16, bfloat16        computed in float32, and the output rounded once; ``triton`` multiplies them as they are, where q,
                             k, v and gate_keys are of one type
    float64                  computed in float64 by ``reference`` and ``blockwise``, which ``auto`` takes; others refuse it
    other types              refused: integers, bool, complex numbers, float8
    =======================  ==========================================================================================

    The other tensors may be of any of these four types, but float64 only if q is. All are on one device, in the usual dense
    layout: a CPU (every backend but ``triton``), an NVIDIA GPU (every one but ``native``), ``meta`` (``reference`` and
    ``blockwise``: shapes without numbers), others with plain PyTorch. Batch, heads, queries and keys may be 0; head_dim,
    value_dim, positions, distances may not.

    **Grouped heads.** k, v and gate_keys may have fewer heads than q: neighbouring heads of q then share one, as in
    grouped-query attention. No backend but ``reference`` copies keys or values for it; ``triton`` has gradients of k and v for
    each head of q before it adds them up.

    **Derivatives.** Every backend has gradients, under ``torch.compile(fullgraph=True)``, ``torch.utils.checkpoint`` and
    ``torch.func`` (``grad``, ``vjp``, ``vmap``, ``jacrev``, ``functional_call``) too. Second derivatives, forward mode
    (``jvp``, ``jacfwd``, ``hessian``) and ``torch.func`` inside of a compiled function are ``reference``'s alone; the others
    raise ``RuntimeError`` and say so.

    Args:
        q: queries. With fewer queries than keys the last query stands at the last key, as in decoding with a cache.
        k: keys, of as many heads as q or of a number that divides q's.
        v: values, of as many heads as k.
        table: position vectors e[0], ..., e[num_positions - 1]; positions beyond the last are clamped to it.
        gate_keys: keys for the gates alone ("sep-keys"); pass ``v`` for gates from the values ("val-gates").
        gate_bias: a number for each head, added to what opens its gates; below 0 they open for fewer keys (ours, not the
            paper's). It costs every backend one more dimension of the heads.
        relative: vectors r[0], r[1], ... of a further, token-based term: ``q_i . r[i - j] / sqrt(head_dim)`` is added to the
            logit (Shaw et al. 2018, arXiv 1803.02155). Pairs further apart than the last vector use the last.
        bias: a further number for each head and distance, added to the logit as it is (ALiBi; T5 without buckets). Pairs
            further apart than the last number use the last.
        key_mask: False for keys that are not there, such as padding on either side: no query attends to them or counts them.
            A query that sees no key gives 0. Distances (``relative``, ``bias``) go on counting them.
        scale: ``released`` adds q.e / sqrt(head_dim), as the authors' code does by default; ``paper`` adds q.e undivided,
            as in the paper's listing. q.k is divided in both.
        dropout: probability of dropping an attention weight. Pass 0 when not training.
        backend: ``reference`` (the equations line by line), ``blockwise`` (plain PyTorch), ``native`` (C++, for CPUs),
            ``triton`` (for NVIDIA GPUs) or ``auto``, the fastest that can be had; which one and why is logged once.

    Returns:
        The attended values, of q's type. A NaN in the input reaches the outputs of the queries that see it (and may reach
        earlier ones, since 0 x NaN is NaN); with ``native`` and ``triton`` one in ``gate_keys`` may stay out of queries for
        which the positions end before it, since no gate is looked at there.

    Raises:
        UserError: an unknown scale or backend, a backend that cannot be had, an empty table, more queries than keys, types or
            devices that are not in the table above, or shapes that do not fit together.
    """
    check_choice("scale", scale, SCALES)
    _check_tensor("table", table)
    check_at_least("num_positions", table.shape[0] if table.dim() > 0 else 0, 1)
    return _attend(q, k, v, table, gate_keys, gate_bias, relative, bias, key_mask, scale, dropout, backend)


def relative_attention(
    q: Float[Tensor, "batch heads query head_dim"],
    k: Float[Tensor, "batch key_heads key head_dim"],
    v: Float[Tensor, "batch key_heads key value_dim"],
    relative: Float[Tensor, "num_distances head_dim"],
    *,
    bias: Float[Tensor, "#heads num_distances"] | None = None,
    key_mask: Bool[Tensor, "batch key"] | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "batch heads query value_dim"]:
    """Causal attention with relative positions (Shaw et al. 2018, arXiv 1803.02155, the key term of Equation 4).

    The same kernels as :func:`cope_attention`, without its contextual term; arguments, result and errors as there.
    """
    _check_tensor("relative", relative)
    return _attend(q, k, v, None, None, None, relative, bias, key_mask, "released", dropout, backend)


def distance_attention(
    q: Float[Tensor, "batch heads query head_dim"],
    k: Float[Tensor, "batch heads key head_dim"],
    v: Float[Tensor, "batch heads key value_dim"],
    bias: Float[Tensor, "#heads num_distances"],
    *,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "batch heads query value_dim"]:
    """Causal attention with a number for each head and distance added to the logits (ALiBi, T5, KERPLE).

    The same kernels as :func:`cope_attention`, without its contextual term; arguments, result and errors as there.
    """
    _check_tensor("bias", bias)
    return _attend(q, k, v, None, None, None, None, bias, None, "released", dropout, backend)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    gate_keys: Tensor | None,
    gate_bias: Tensor | None,
    relative: Tensor | None,
    bias: Tensor | None,
    key_mask: Tensor | None,
    scale: str,
    dropout: float,
    backend: str,
) -> Tensor:
    check_choice("backend", backend, ["auto", *BACKENDS])
    check_between("dropout", dropout, 0.0, 0.99)
    _check_tensors(q, k, v, table=table, gate_keys=gate_keys, gate_bias=gate_bias, relative=relative, bias=bias)
    _check_key_mask(key_mask, k)
    if gate_bias is not None and table is not None:
        gate_keys = k if gate_keys is None else gate_keys
        q, k, table, gate_keys, relative = _biased(q, k, table, gate_keys, gate_bias, relative, scale)
    computed = torch.promote_types(q.dtype, torch.float32)
    chosen = chosen_backend(backend, q.device.type, q.dtype)
    alike = all(tensor.dtype == q.dtype for tensor in (k, v, gate_keys) if tensor is not None)
    takes_half = chosen in TAKE_HALF_PRECISION and alike
    dtype = q.dtype if takes_half else computed

    def convert(tensor: Tensor | None, dtype: torch.dtype = dtype) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    # Positions are sums of many gates: half precision would lose whole positions, under autocast too.
    has_autocast = torch.amp.is_autocast_available(q.device.type)
    with torch.autocast(q.device.type, enabled=False) if has_autocast else nullcontext():
        output = BACKENDS[chosen](
            convert(q),
            convert(k),
            convert(v),
            convert(table),
            gate_keys=convert(gate_keys),
            relative=convert(relative),
            bias=convert(bias, computed),
            key_mask=key_mask,
            scale=scale,
            dropout=dropout,
        )
    return output.to(q.dtype)


def _biased(
    q: Tensor, k: Tensor, table: Tensor, gate_keys: Tensor, gate_bias: Tensor, relative: Tensor | None, scale: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The tensors of a call without a bias of the gates that has the same result.

    The heads get one more dimension, the bias for every query and 1 for every gate key, which several heads may share. Kernels
    divide by the square root of the new size, for which queries make up, and the table where it is not divided.
    """
    head_dim = q.shape[-1]
    larger = (head_dim + 1) / head_dim
    column = (gate_bias * math.sqrt(head_dim + 1)).to(q.dtype)[:, None, None].expand(*q.shape[:-1], 1)
    return (
        torch.cat([q * math.sqrt(larger), column], dim=-1),
        F.pad(k, (0, 1)),
        F.pad(table if scale == "released" else table / math.sqrt(larger), (0, 1)),
        F.pad(gate_keys, (0, 1), value=1.0),
        None if relative is None else F.pad(relative, (0, 1)),
    )


# torch.compile asks once, while it compiles, instead of looking inside; it would look inside a cached function itself.
@torch.compiler.assume_constant_result
def chosen_backend(backend: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend that runs where ``backend`` is asked for, on such tensors; UserError where it cannot be had."""
    return _choose_once(backend, device_type, dtype)


@cache
def _choose_once(backend: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend that runs; what ``auto`` comes to is logged, once a process for each kind of tensor."""
    if backend == "native" or (backend == "auto" and device_type == "cpu"):
        wanted, missing = "native", native.missing(device_type, torch.promote_types(dtype, torch.float32))
    elif backend == "triton" or (backend == "auto" and device_type == "cuda"):
        wanted, missing = "triton", triton.missing(device_type, dtype)
    elif backend == "auto" and device_type == "meta":
        return "blockwise"  # shapes alone
    elif backend == "auto":
        wanted, missing = "a kernel of its own", f"there is none for {device_type} devices"
    else:
        return backend
    if missing is None:
        if backend == "auto":
            log.info("cope attention: backend=auto takes %s, the fastest on %s devices", wanted, device_type)
        return wanted
    if backend != "auto":
        raise UserError(f"backend={backend} cannot be had: {missing}. Take backend=auto, or put that right.")
    log.warning("cope attention: backend=auto takes blockwise (plain PyTorch, slower), not %s: %s", wanted, missing)
    return "blockwise"


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, **others: Tensor | None) -> None:
    there = {"q": q, "k": k, "v": v, **{name: tensor for name, tensor in others.items() if tensor is not None}}
    for name, tensor in there.items():
        _check_tensor(name, tensor)
        if tensor.dtype == torch.float64 != q.dtype:
            raise UserError(
                f"{name} is {_name(tensor.dtype)} and q {_name(q.dtype)}, in which it would be rounded; allowed: {name} of a "
                "smaller type, or q of float64."
            )
        if tensor.device != q.device:
            raise UserError(f"{name} is on {tensor.device} and q on {q.device}; allowed: one device for all.")
    for name in "qkv":
        if there[name].dim() != 4:
            raise UserError(f"{name} has shape {tuple(there[name].shape)}; allowed: (batch, heads, time, size).")
    batch, num_heads, num_queries, head_dim = q.shape
    num_keys = k.shape[-2]
    if num_queries > num_keys:
        raise UserError(
            f"q has {num_queries} queries for {num_keys} keys: the first would see no key; allowed: at most {num_keys}."
        )
    check_at_least("head_dim", head_dim, 1)
    num_key_heads = k.shape[1]
    if num_heads != num_key_heads and (num_key_heads == 0 or num_heads % num_key_heads != 0):
        raise UserError(
            f"k has {num_key_heads} heads for q's {num_heads}: they cannot be shared out evenly; allowed: as many as q, or a "
            "number that divides q's."
        )
    keys = (batch, num_key_heads, num_keys, head_dim)
    one_for_all_heads = "bias" in there and there["bias"].shape[:1] == (1,)
    # -1 stands for any size from 1 up.
    expected: dict[str, tuple[int, ...]] = dict(
        q=q.shape,
        k=keys,
        v=(*keys[:3], -1),
        table=(-1, head_dim),
        gate_keys=keys,
        gate_bias=(num_heads,),
        relative=(-1, head_dim),
        bias=(1 if one_for_all_heads else num_heads, -1),
    )
    for name, tensor in there.items():
        shape = expected[name]
        fits = tensor.dim() == len(shape) and all(
            size > 0 if wanted == -1 else size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            allowed = ", ".join("any from 1" if wanted == -1 else str(wanted) for wanted in shape)
            raise UserError(f"{name} has shape {tuple(tensor.shape)}, with q of {tuple(q.shape)}; allowed: ({allowed}).")


def _check_key_mask(key_mask: Tensor | None, k: Tensor) -> None:
    if key_mask is None:
        return
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool or key_mask.layout != torch.strided:
        found = _name(key_mask.dtype) if isinstance(key_mask, Tensor) else f"a {type(key_mask).__name__}"
        raise UserError(f"key_mask is {found}; allowed: a dense tensor of bool, True for keys that are there.")
    if key_mask.device != k.device:
        raise UserError(f"key_mask is on {key_mask.device} and k on {k.device}; allowed: one device for all.")
    if key_mask.shape != (expected := (k.shape[0], k.shape[2])):
        raise UserError(f"key_mask has shape {tuple(key_mask.shape)}, with k of {tuple(k.shape)}; allowed: {expected}.")


def _check_tensor(name: str, tensor: object) -> None:
    """Raise UserError for what no backend takes: not a tensor, another type, sparse or nested."""
    if not isinstance(tensor, Tensor):
        raise UserError(f"{name} is {'None' if tensor is None else f'a {type(tensor).__name__}'}; allowed: a tensor.")
    if tensor.dtype not in DTYPES:
        allowed = ", ".join(_name(dtype) for dtype in DTYPES)
        raise UserError(f"{name} is {_name(tensor.dtype)}; allowed: {allowed}.")
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise UserError(f"{name} is {kind}; allowed: dense tensors.")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
