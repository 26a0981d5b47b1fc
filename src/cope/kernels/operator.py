"""Makes a PyTorch operator of a kernel that is written in another language.

Registered with ``torch.library``: autograd differentiates it, ``torch.compile`` and fake tensors take it for granted instead
of looking inside. A kernel gives two functions of plain tensors,

    forward(arguments) -> output, what is saved ...
    backward(grad_output, arguments, output, what is saved ...) -> gradients of the tensors that are there, in their order

with :class:`Arguments` and shapes as in :func:`cope.functional.cope_attention`. What a kernel saves for its backward pass is
its own affair: ``empty_saved`` gives such tensors, uninitialised. The output and all gradients of four dimensions are laid out
in memory as (batch, time, heads, size), the order in which a model reads them next; see :func:`empty_heads`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? table, Tensor? gate_keys, Tensor? relative, Tensor? bias"
_ARGUMENTS = f"{_TENSORS}, float table_scale, float dropout, Tensor? seed"


class Arguments(NamedTuple):
    """What a kernel's functions take, in the order of the operator's own arguments."""

    q: Tensor
    k: Tensor
    v: Tensor
    table: Tensor | None
    gate_keys: Tensor | None
    relative: Tensor | None
    bias: Tensor | None
    table_scale: float  # what multiplies q.e
    dropout: float
    seed: Tensor | None  # of dropout's mask; None without dropout

    def empty_gradients(self) -> list[Tensor]:
        """Uninitialised gradients of the tensors that are there, laid out as a kernel gives them."""
        tensors = (self.q, self.k, self.v, self.table, self.gate_keys, self.relative, self.bias)
        there = [tensor for tensor in tensors if tensor is not None]
        return [empty_heads(tensor) if tensor.dim() == 4 else tensor.new_empty(tensor.shape) for tensor in there]


Forward = Callable[[Arguments], tuple[Tensor, ...]]
Backward = Callable[..., list[Tensor]]
EmptySaved = Callable[[Arguments], list[Tensor]]


def empty_heads(like: Tensor, size: int | None = None) -> Tensor:
    """(batch, heads, time, size), uninitialised, with heads inside time in memory; size is that of ``like`` if not given."""
    batch, num_heads, time, own_size = like.shape
    return like.new_empty(batch, time, num_heads, own_size if size is None else size).transpose(1, 2)


def make_operator(name: str, forward: Forward, backward: Backward, empty_saved: EmptySaved) -> Callable[..., Tensor]:
    """``attention(q, k, v, table, *, ...)``, with the arguments of the other backends, from a kernel's functions."""
    nothing = torch.empty(0, 0, 0, 0)
    num_saved = len(empty_saved(Arguments(nothing, nothing, nothing, None, None, None, None, 1.0, 0.0, None)))
    operator = torch.library.custom_op(
        f"cope::{name}",
        lambda *arguments: forward(Arguments(*arguments)),
        mutates_args=(),
        schema=f"({_ARGUMENTS}) -> ({', '.join(['Tensor'] * (1 + num_saved))})",
    )
    saved_arguments = "".join(f", Tensor saved_{index}" for index in range(num_saved))

    def differentiated(grad_output: Tensor, output: Tensor, *others: Any) -> list[Tensor]:
        return backward(grad_output, Arguments(*others[num_saved:]), output, *others[:num_saved])

    gradient = torch.library.custom_op(
        f"cope::{name}_backward",
        differentiated,
        mutates_args=(),
        schema=f"(Tensor grad_output, Tensor output{saved_arguments}, {_ARGUMENTS}) -> Tensor[]",
    )

    @operator.register_fake
    def _(*arguments: Any) -> tuple[Tensor, ...]:
        given = Arguments(*arguments)
        return empty_heads(given.q, given.v.shape[-1]), *empty_saved(given)

    @gradient.register_fake
    def _(grad_output: Tensor, output: Tensor, *others: Any) -> list[Tensor]:
        return Arguments(*others[num_saved:]).empty_gradients()

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.table_scale, ctx.dropout, seed = inputs
        ctx.save_for_backward(*tensors, seed, *output)
        ctx.mark_non_differentiable(*output[1:])

    def differentiate(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (*tensors, seed), results = ctx.saved_tensors[: -1 - num_saved], ctx.saved_tensors[-1 - num_saved :]
        found = iter(gradient(grad_output, *results, *tensors, ctx.table_scale, ctx.dropout, seed))
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
        seed = torch.randint(2**31, (), device=q.device) if dropout > 0 else None
        table_scale = 1.0 / math.sqrt(q.shape[-1]) if scale == "released" else 1.0
        output: Tensor = operator(q, k, v, table, gate_keys, relative, bias, table_scale, dropout, seed)[0]
        return output

    return attention
