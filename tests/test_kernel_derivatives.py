"""Derivatives of every kind through every backend: equal to the reference's, or refused in a sentence that names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from itertools import product

import pytest
import torch
from _pytest.mark import ParameterSet
from kernel_marks import NEEDS_COMPILER
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

from cope import cope_attention, relative_attention

BACKENDS = ["blockwise", pytest.param("native", marks=NEEDS_COMPILER), "auto"]
# Every backend; auto, which takes one of the others, and relative attention, whose operators are the same, need no more.
KINDS = [
    ("contextual", "blockwise"),
    pytest.param("contextual", "native", marks=NEEDS_COMPILER),
    ("relative", "auto"),
]
# A backend's attention as a function of its queries and its table of positions or distances alone.
Attend = Callable[[Tensor, Tensor], Tensor]
SHAPE, NUM_VECTORS = (2, 2, 6, 4), 5


def attend_with(kind: str, backend: str) -> Attend:
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    function = cope_attention if kind == "contextual" else relative_attention
    return lambda q, table: function(q, k, v, table, backend=backend)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SHAPE, generator=generator), torch.randn(NUM_VECTORS, SHAPE[-1], generator=generator)


def loss(attend: Attend, q: Tensor, table: Tensor) -> Tensor:
    return attend(q, table).square().sum()


def gradient_through(attend: Attend) -> Tensor:
    q, table = inputs()
    loss(attend, q.requires_grad_(), table).backward()
    return q.grad


def compiled(attend: Attend) -> Tensor:
    torch.compiler.reset()
    return gradient_through(torch.compile(attend, fullgraph=True, backend="aot_eager"))


def penalty(attend: Attend) -> Tensor:
    """The gradient of a loss with a gradient's size in it."""
    q, table = inputs()
    q.requires_grad_()
    (first,) = torch.autograd.grad(attend(q, table).sum(), q, create_graph=True)
    return torch.autograd.grad(loss(attend, q, table) + first.square().sum(), q)[0]


def dual(attend: Attend) -> Tensor:
    q, table = inputs()
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(attend(forward_ad.make_dual(q, torch.ones_like(q)), table)).tangent


def without_graph(attend: Attend, mode: Callable[[], torch.no_grad | torch.inference_mode]) -> Tensor:
    q, table = inputs()
    with mode():
        return attend(q.requires_grad_(), table).clone()


class Module(torch.nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend, self.table = attend, torch.nn.Parameter(inputs()[1])

    def forward(self, q: Tensor) -> Tensor:
        return self.attend(q, self.table)


def batch_of_gradients(attend: Attend) -> Tensor:
    q, table = inputs()
    output = attend(q.requires_grad_(), table)
    wanted = torch.stack([torch.ones_like(output), output.detach()])
    return torch.autograd.grad(output, q, wanted, is_grads_batched=True)[0]


def jacobian(attend: Attend, **settings: object) -> Tensor:
    q, table = inputs()
    return torch.autograd.functional.jacobian(lambda table: attend(q, table), table, **settings)


Q, TABLE = inputs()
TABLES = torch.stack([TABLE, 2 * TABLE, -TABLE])
EQUAL: dict[str, Callable[[Attend], Tensor]] = {
    "backward": gradient_through,
    "compiled": compiled,
    "checkpoint": lambda attend: gradient_through(lambda q, table: checkpoint(attend, q, table, use_reentrant=False)),
    "checkpoint, reentrant": lambda attend: gradient_through(lambda q, table: checkpoint(attend, q, table, use_reentrant=True)),
    "no_grad": lambda attend: without_graph(attend, torch.no_grad),
    "inference_mode": lambda attend: without_graph(attend, torch.inference_mode),
    "grad": lambda attend: grad(lambda q: loss(attend, q, TABLE))(Q),
    "vjp": lambda attend: vjp(lambda q: attend(q, TABLE), Q)[1](torch.ones_like(Q))[0],
    "jacrev": lambda attend: jacrev(lambda table: attend(Q, table))(TABLE),
    "vmap": lambda attend: vmap(lambda q: attend(q, TABLE))(torch.stack([Q, 2 * Q])),
    "vmap over tables": lambda attend: vmap(lambda table: attend(Q, table))(TABLES),
    "vmap over vmap": lambda attend: vmap(lambda q: vmap(lambda table: attend(q, table))(TABLES))(torch.stack([Q, 2 * Q])),
    "vmap over the last dimension": lambda attend: vmap(lambda q: attend(q, TABLE), in_dims=-1)(torch.stack([Q, 2 * Q], -1)),
    "gradient for each sample": lambda attend: vmap(grad(lambda table: loss(attend, Q, table)))(TABLES),
    "functional_call": lambda attend: functional_call(Module(attend), {"table": 2 * TABLE}, (Q,)),
    "gradient of functional_call": lambda attend: grad(
        lambda parameters: functional_call(Module(attend), parameters, (Q,)).square().sum()
    )({"table": TABLE})["table"],
    "is_grads_batched": batch_of_gradients,
    "jacobian": jacobian,
    "jacobian, vectorized": lambda attend: jacobian(attend, vectorize=True),
    "grad within torch.compile": lambda attend: torch.compile(grad(lambda q: loss(attend, q, TABLE)), backend="aot_eager")(Q),
    "vmap within torch.compile": lambda attend: torch.compile(vmap(lambda table: attend(Q, table)), backend="aot_eager")(
        TABLES
    ),
}
REFERENCE_ALONE: dict[str, Callable[[Attend], Tensor]] = {
    "gradient penalty": penalty,
    "grad of grad": lambda attend: grad(lambda q: grad(lambda q: loss(attend, q, TABLE))(q).square().sum())(Q),
    "jvp": lambda attend: jvp(lambda q: attend(q, TABLE), (Q,), (torch.ones_like(Q),))[1],
    "jvp of the table": lambda attend: jvp(lambda table: attend(Q, table), (TABLE,), (TABLE.cos(),))[1],
    "dual numbers": dual,
    "jacfwd": lambda attend: jacfwd(lambda table: attend(Q, table))(TABLE),
    "hessian": lambda attend: hessian(lambda table: loss(attend, Q, table))(TABLE),
    "jvp of vmap": lambda attend: jvp(vmap(lambda table: attend(Q, table)), (TABLES,), (TABLES.cos(),))[1],
    "jacobian, forward mode": lambda attend: jacobian(attend, vectorize=True, strategy="forward-mode"),
    "hessian of torch.autograd": lambda attend: torch.autograd.functional.hessian(lambda table: loss(attend, Q, table), TABLE),
    "jvp within torch.compile": lambda attend: torch.compile(
        lambda q: jvp(lambda q: attend(q, TABLE), (q,), (torch.ones_like(q),))[1], backend="aot_eager"
    )(Q),
    "jvp within torch.compile, whole": lambda attend: torch.compile(
        lambda q: jvp(lambda q: attend(q, TABLE), (q,), (torch.ones_like(q),))[1], backend="aot_eager", fullgraph=True
    )(Q),
    "dual numbers, compiled": lambda attend: dual(torch.compile(attend, backend="aot_eager", fullgraph=True)),
}


def cases(derivations: Iterable[str]) -> list[ParameterSet]:
    """Each of them with each backend; what is compiled takes a second: by default one of them, with one of ours."""
    found = []
    for derive, kind in product(derivations, KINDS):
        kind, backend, marks = (*kind.values, kind.marks) if isinstance(kind, ParameterSet) else (*kind, ())
        slow = [pytest.mark.slow] if "compile" in derive and (derive, backend) != ("compiled", "native") else []
        found.append(pytest.param(derive, kind, backend, marks=[*marks, *slow]))
    return found


@cache
def from_the_reference(derive: str, kind: str) -> Tensor:
    torch.compiler.reset()
    return (EQUAL | REFERENCE_ALONE)[derive](attend_with(kind, "reference"))


@pytest.mark.parametrize(("derive", "kind", "backend"), cases(EQUAL))
def test_derivatives_equal_the_references(derive, kind, backend):
    expected = from_the_reference(derive, kind)
    torch.compiler.reset()
    torch.testing.assert_close(EQUAL[derive](attend_with(kind, backend)), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("derive", "kind", "backend"), cases(REFERENCE_ALONE))
def test_derivatives_that_the_reference_alone_has_are_refused(derive, kind, backend):
    assert from_the_reference(derive, kind).abs().max() > 0.01
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match=r"backend=\w+ has no [^:]+: take backend=reference, which has\."):
        REFERENCE_ALONE[derive](attend_with(kind, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_over_nothing_is_refused(backend):
    attend = attend_with("contextual", backend)
    with pytest.raises(RuntimeError, match="vmap over 0 samples: take backend=reference"):
        vmap(lambda q: attend(q, TABLE))(torch.empty(0, *SHAPE))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_dropout_of_samples_is_as_vmap_is_told(backend, randomness):
    k = v = Q
    first, second = vmap(lambda q: cope_attention(q, k, v, TABLE, dropout=0.5, backend=backend), randomness=randomness)(
        torch.stack([Q, Q])
    )
    assert torch.equal(first, second) == (randomness == "same")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backward_pass_under_autocast_keeps_single_precision(backend):
    attend = attend_with("contextual", backend)
    q = Q.clone().requires_grad_()
    value = loss(attend, q, TABLE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(value, q)
    torch.testing.assert_close(found, gradient_through(attend_with("contextual", "reference")), rtol=1e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "blockwise"])
def test_one_graph_serves_every_length(backend):
    torch.compiler.reset()
    attend = torch.compile(
        lambda q, kv: cope_attention(q, kv, kv, TABLE, backend=backend), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for length in (2, 4, 6):
        q = kv = Q[:, :, :length]
        torch.testing.assert_close(attend(q, kv), cope_attention(q, kv, kv, TABLE, backend="reference"), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "auto"])
@pytest.mark.parametrize("head_dim", [16, 6])
def test_operators_keep_pytorchs_contract(backend, head_dim):
    """Schema, autograd registration and fake tensors, as ``torch.compile`` relies on them."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 9, head_dim), *[(2, 2, 11, head_dim)] * 2, (5, head_dim), (2, 2, 11, head_dim), (4, head_dim), (4, 3)]
    tensors = [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]
    torch.library.opcheck(
        getattr(torch.ops.cope, backend).default, (*tensors, 0.5, 0.0, None, torch.arange(11).expand(2, -1) > 3)
    )
