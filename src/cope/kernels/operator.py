"""Makes a PyTorch operator of a kernel that is written in another language.

Registered with ``torch.library``: autograd differentiates it, ``torch.compile`` and fake tensors take it for granted instead
of looking inside. A kernel gives two functions of plain tensors,

    forward(q, k, v, table, gate_keys, relative, bias, table_scale, dropout, seed) -> output, log_sum_exp
    backward(grad_output, output, log_sum_exp, <the ten above>) -> gradients of the tensors that are there, in their order

with shapes as in :func:`cope.functional.cope_attention` and log_sum_exp (batch, heads, query). The output and all gradients of
four dimensions are laid out in memory as (batch, time, heads, size), the order in which a model reads them next; see
:func:`empty_heads`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? table, Tensor? gate_keys, Tensor? relative, Tensor? bias"
_ARGUMENTS = f"{_TENSORS}, float table_scale, float dropout, Tensor? seed"
NUM_TENSORS = 7

Forward = Callable[..., tuple[Tensor, Tensor]]
Backward = Callable[..., list[Tensor]]


def empty_heads(like: Tensor, size: int | None = None) -> Tensor:
    """(batch, heads, time, size), uninitialised, with heads inside time in memory; size is that of ``like`` if not given."""
    batch, num_heads, time, own_size = like.shape
    return like.new_empty(batch, time, num_heads, own_size if size is None else size).transpose(1, 2)


def make_operator(name: str, forward: Forward, backward: Backward) -> Callable[..., Tensor]:
    """``attention(q, k, v, table, *, ...)``, with the arguments of the other backends, from a kernel's two functions."""
    operator = torch.library.custom_op(f"cope::{name}", forward, mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)")
    gradient = torch.library.custom_op(
        f"cope::{name}_backward",
        backward,
        mutates_args=(),
        schema=f"(Tensor grad_output, Tensor output, Tensor log_sum_exp, {_ARGUMENTS}) -> Tensor[]",
    )

    @operator.register_fake
    def _(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        return empty_heads(q, v.shape[-1]), q.new_empty(q.shape[:-1])

    @gradient.register_fake
    def _(grad_output: Tensor, output: Tensor, log_sum_exp: Tensor, *arguments: Any) -> list[Tensor]:
        tensors = [tensor for tensor in arguments[:NUM_TENSORS] if tensor is not None]
        return [empty_heads(tensor) if tensor.dim() == 4 else tensor.new_empty(tensor.shape) for tensor in tensors]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.table_scale, ctx.dropout, seed = inputs
        ctx.save_for_backward(*tensors, seed, *output)
        ctx.mark_non_differentiable(output[1])

    def differentiate(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, seed, output, log_sum_exp = ctx.saved_tensors
        found = iter(gradient(grad_output, output, log_sum_exp, *tensors, ctx.table_scale, ctx.dropout, seed))
        return (*(None if tensor is None else next(found) for tensor in tensors), None, None, None)

    operator.register_autograd(differentiate, setup_context=setup_context)

    def refuse(ctx: Any, *_: Any) -> None:
        raise RuntimeError(f"backend={name} has no second derivatives: take backend=reference, which has.")

    gradient.register_autograd(refuse)

    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        *,
        gate_keys: Tensor | None = None,
        relative: Tensor | None = None,
        bias: Tensor | None = None,
        scale: str = "released",
        dropout: float = 0.0,
    ) -> Tensor:
        # Dropout's mask is drawn again in the backward pass, from this seed, instead of being kept.
        seed = torch.randint(2**31, ()) if dropout > 0 else None
        table_scale = 1.0 / math.sqrt(q.shape[-1]) if scale == "released" else 1.0
        output: Tensor = operator(q, k, v, table, gate_keys, relative, bias, table_scale, dropout, seed)[0]
        return output

    return attention
