"""Makes a PyTorch operator of a kernel that computes its own gradients.

Registered with ``torch.library``: ``torch.compile``, fake and meta tensors take it for granted instead of looking inside. A
kernel gives two functions of plain tensors,

    forward(arguments) -> output, what is saved ...
    backward(grad_output, arguments, output, what is saved ...) -> gradients of the tensors that are there, in their order

with :class:`Arguments` and shapes as in :func:`cope.functional.cope_attention`. What a kernel saves for its backward pass is
its own affair: ``empty_saved`` gives such tensors, uninitialised. The output and all gradients of four dimensions are laid out
in memory as (batch, time, heads, size), the order in which a model reads them next; see :func:`empty_heads`.

Of derivatives there is the gradient, plain or through ``torch.func`` (``grad``, ``vjp``, ``jacrev``), and all that ``vmap``
makes of it. Second derivatives and forward mode are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? table, Tensor? gate_keys, Tensor? relative, Tensor? bias"
_ARGUMENTS = f"{_TENSORS}, float table_scale, float dropout, Tensor? seed, Tensor? key_mask"


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
    key_mask: Tensor | None  # (batch, key) bool

    @property
    def group_size(self) -> int:
        """How many neighbouring heads of q share one head of k, v and gate_keys."""
        return self.q.shape[1] // self.k.shape[1] if self.q.shape[1] > 0 else 1

    def tensors(self) -> dict[str, Tensor]:
        """Those with a gradient that are there, in their order."""
        return {name: tensor for name, tensor in zip(self._fields, self[:7], strict=False) if tensor is not None}

    def empty_gradients(self) -> list[Tensor]:
        """Uninitialised gradients of the tensors that are there, laid out as a kernel gives them."""
        there = self.tensors().values()
        return [empty_heads(tensor) if tensor.dim() == 4 else tensor.new_empty(tensor.shape) for tensor in there]

    def with_places(self, gradients: list[Tensor]) -> tuple[Tensor, ...]:
        """Gradients in the places of the tensors they belong to, with an empty tensor where there is none."""
        found = iter(gradients)
        return tuple(self.q.new_empty(0) if tensor is None else next(found) for tensor in self[:7])


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
    num_saved = len(empty_saved(Arguments(nothing, nothing, nothing, None, None, None, None, 1.0, 0.0, None, None)))
    operator = torch.library.custom_op(
        f"cope::{name}",
        lambda *arguments: _one_or_all(forward(Arguments(*arguments))),
        mutates_args=(),
        schema=f"({_ARGUMENTS}) -> ({', '.join(['Tensor'] * (1 + num_saved))})",
    )
    saved_arguments = "".join(f", Tensor saved_{index}" for index in range(num_saved))

    def differentiated(grad_output: Tensor, output: Tensor, *others: Any) -> tuple[Tensor, ...]:
        given = Arguments(*others[num_saved:])
        # The forward pass may have left autocast's region, and the backward pass be called within it.
        with torch.autocast(grad_output.device.type, enabled=False):
            return given.with_places(backward(grad_output, given, output, *others[:num_saved]))

    # Seven tensors, not a list: what takes batches of gradients (is_grads_batched) knows no lists.
    gradient = torch.library.custom_op(
        f"cope::{name}_backward",
        differentiated,
        mutates_args=(),
        schema=f"(Tensor grad_output, Tensor output{saved_arguments}, {_ARGUMENTS}) -> ({', '.join(['Tensor'] * 7)})",
    )

    @operator.register_fake
    def _(*arguments: Any) -> Tensor | tuple[Tensor, ...]:
        given = Arguments(*arguments)
        return _one_or_all((empty_heads(given.q, given.v.shape[-1]), *empty_saved(given)))

    @gradient.register_fake
    def _(grad_output: Tensor, output: Tensor, *others: Any) -> tuple[Tensor, ...]:
        given = Arguments(*others[num_saved:])
        return given.with_places(given.empty_gradients())

    def refuse(what: str) -> Callable[..., NoReturn]:
        def raise_error(*_: Any) -> NoReturn:
            raise RuntimeError(f"backend={name} has no {what}: take backend=reference, which has.")

        return raise_error

    class Gradient(torch.autograd.Function):
        """The backward pass, as a function whose own derivatives are refused where they are asked for."""

        forward = staticmethod(gradient)
        setup_context = staticmethod(lambda ctx, inputs, output: None)
        backward = staticmethod(refuse("second derivatives"))
        jvp = staticmethod(refuse("second derivatives"))
        vmap = staticmethod(lambda *arguments: _sample_by_sample(Gradient, *arguments))

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.table_scale, ctx.dropout, seed, key_mask = inputs
        output, *saved = _as_tuple(output)
        ctx.save_for_backward(*tensors, seed, key_mask, output, *saved)
        ctx.mark_non_differentiable(*saved)

    def differentiate(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        saved_tensors = ctx.saved_tensors  # once: activation checkpointing gives them a single time
        (*tensors, seed, key_mask), results = saved_tensors[: -1 - num_saved], saved_tensors[-1 - num_saved :]
        found = Gradient.apply(grad_output, *results, *tensors, ctx.table_scale, ctx.dropout, seed, key_mask)
        there = (None if tensor is None else gradient for tensor, gradient in zip(tensors, found, strict=True))
        return (*there, None, None, None, None)

    class Attention(torch.autograd.Function):
        """The operator with its gradient, for ``torch.func`` too, which does not see what is registered."""

        forward = staticmethod(lambda *arguments: _as_tuple(operator(*arguments)))
        setup_context = staticmethod(keep)
        backward = staticmethod(differentiate)
        jvp = staticmethod(refuse("forward-mode derivatives (jvp, jacfwd, hessian)"))
        vmap = staticmethod(lambda *arguments: _sample_by_sample(Attention, *arguments))

    operator.register_autograd(differentiate, setup_context=keep)

    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        *,
        gate_keys: Tensor | None = None,
        relative: Tensor | None = None,
        bias: Tensor | None = None,
        key_mask: Tensor | None = None,
        scale: str = "released",
        dropout: float = 0.0,
    ) -> Tensor:
        # Dropout's mask is drawn again in the backward pass, from this seed, instead of being kept.
        seed = torch.randint(2**31, (), device=q.device) if dropout > 0 else None
        table_scale = 1.0 / math.sqrt(q.shape[-1]) if scale == "released" else 1.0
        call = Attention.apply
        if torch.compiler.is_compiling():
            # It takes the operator as it is, and would break off at a Function that speaks of forward mode. But of transforms
            # and forward mode the operator knows nothing: without fullgraph=True, this makes torch.compile leave them alone.
            if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
                refuse("torch.func or forward mode inside of torch.compile")()
            call = operator
        arguments = Arguments(q, k, v, table, gate_keys, relative, bias, table_scale, dropout, seed, key_mask)
        output: Tensor = _as_tuple(call(*arguments))[0]
        return output

    return attention


def _one_or_all(results: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """As an operator's schema has it, which knows no tuple of one."""
    return results if len(results) > 1 else results[0]


def _as_tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


@torch.compiler.disable
def _sample_by_sample(
    function: type[torch.autograd.Function], info: Any, dims: tuple[int | None, ...], *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """``vmap``: a call for each sample, since samples may have tables of their own, and always have gradients of their own."""

    if info.batch_size == 0:
        raise RuntimeError("Only backend=reference has vmap over 0 samples: take backend=reference.")

    def sample(index: int) -> tuple[Any, ...]:
        return tuple(x if dim is None else x.select(dim, index) for x, dim in zip(arguments, dims, strict=True))

    results = [function.apply(*sample(index)) for index in range(info.batch_size)]
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)
