"""CoPE attention: the reference against the equations in plain loops, and every other backend against the reference.

The Triton kernels, whose interpreter is slow, have further tests of their own: test_triton.py.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_cases import DTYPES, EXACT, HALVES, LARGE, NAMES, OPEN, compare_with_reference, draw, gradients, run
from torch import Tensor

from cope import cope_attention, relative_attention
from cope.errors import UserError
from cope.functional import SCALES
from cope.kernels import native
from cope.kernels.native.build import INSTRUCTIONS, CannotBuild, find_compiler, library


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


@st.composite
def settings_of_draw(drawing: st.DrawFn, longest: int = 2 * BLOCK + 10, largest: int = 70) -> dict[str, Any]:
    num_keys = drawing(st.integers(1, 12) | st.integers(min(BLOCK - 2, longest), longest))
    num_heads = drawing(st.integers(1, 3))
    gates = drawing(st.sampled_from(["keys", "separate"]))
    # Where the gates share the keys, keys of 1000 would make logits of 1000, whose exponentials single precision does not hold.
    saturated = 1000.0 if gates == "separate" else 20.0
    return dict(
        num_queries=drawing(st.just(num_keys) | st.integers(1, num_keys)),
        num_keys=num_keys,
        num_positions=drawing(st.integers(1, 6) | st.integers(1, 300)),
        batch=drawing(st.integers(1, 2)),
        num_heads=num_heads,
        head_dim=drawing(st.integers(1, 4) | st.sampled_from([8, 16, largest])),
        value_dim=drawing(st.integers(1, 4) | st.sampled_from([8, 16, largest])),
        seed=drawing(st.integers(0, 2**16)),
        gates=gates,
        shift=drawing(st.sampled_from([-saturated, 0.0, saturated]) | st.floats(-6, 6)),
        spread=drawing(st.sampled_from([0.0, 0.1, 1.0])),
        relative=drawing(st.none() | st.integers(1, 2 * BLOCK)),
        bias=drawing(st.none() | st.tuples(st.sampled_from([1, num_heads]), st.integers(1, 2 * BLOCK))),
    )


@given(drawn=settings_of_draw(), scale=st.sampled_from(SCALES))
@example(drawn=HALVES, scale="released")
@settings(max_examples=80)
def test_blockwise_equals_reference_in_values_and_gradients(drawn, scale):
    compare_with_reference(drawn, "blockwise", scale, tolerance=1e-11)


@NEEDS_COMPILER
@given(drawn=settings_of_draw(), scale=st.sampled_from(SCALES))
@example(drawn=HALVES, scale="released")
@example(drawn=OPEN, scale="released")
@example(drawn=LARGE, scale="paper")
@settings(max_examples=150)
def test_native_equals_reference_in_values_and_gradients(drawn, scale):
    compare_with_reference(drawn, "native", scale, tolerance=5e-5)


@NEEDS_COMPILER
@pytest.mark.parametrize("density", [0.002, 0.02, 0.5, 0.98, 0.999])
@pytest.mark.parametrize("num_positions", [16, 64, 500])
def test_native_at_every_density_of_gates(density, num_positions):
    shift = math.log(density / (1 - density))
    drawn = dict(num_queries=300, num_keys=300, num_positions=num_positions, batch=1, head_dim=32, value_dim=32, shift=shift)
    compare_with_reference(drawn, "native", "released", tolerance=5e-5)


def brute_force(values: dict[str, Tensor | None], scale: str) -> Tensor:
    """Equations 3 to 6 and a bias per distance, a number at a time."""
    q, k, v, table, gate_keys, relative, bias = (None if values[name] is None else values[name].detach() for name in NAMES)
    gate_keys = k if gate_keys is None else gate_keys
    output = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    root = math.sqrt(q.shape[-1])
    for b, h, row in torch.cartesian_prod(*(torch.arange(size) for size in q.shape[:3])).tolist():
        query, i = q[b, h, row], k.shape[-2] - q.shape[-2] + row
        logits = []
        for j in range(i + 1):
            gates = [1 / (1 + math.exp(-float(query @ gate_keys[b, h, t]) / root)) for t in range(j, i + 1)]
            position = min(sum(gates), len(table) - 1)
            low, high = math.floor(position), math.ceil(position)
            vector = table[low] * (1 - (position - low)) + table[high] * (position - low)
            logit = query @ k[b, h, j] / root + query @ vector / (root if scale == "released" else 1)
            if relative is not None:
                logit = logit + query @ relative[min(i - j, len(relative) - 1)] / root
            if bias is not None:
                logit = logit + bias[h % bias.shape[0], min(i - j, bias.shape[1] - 1)]
            logits.append(logit)
        output[b, h, row] = torch.stack(logits).softmax(0) @ v[b, h, : i + 1]
    return output


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("gates", "relative", "bias"), [("keys", None, None), ("separate", 9, (2, 9)), ("keys", 3, None), ("keys", None, (1, 4))]
)
def test_reference_is_the_equations_in_plain_loops(scale, gates, relative, bias):
    values = draw(5, 7, 4, gates=gates, relative=relative, bias=bias, shift=1.0)
    torch.testing.assert_close(run(values, "reference", scale=scale), brute_force(values, scale), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ALL)
def test_relative_attention_is_attention_without_the_contextual_term(backend):
    values = draw(20, 23, 3, relative=6, bias=(1, 9), head_dim=8, dtype=DTYPES[backend])
    values["table"] = torch.zeros_like(values["table"])
    q, k, v = (values[name] for name in "qkv")
    found = relative_attention(q, k, v, values["relative"], bias=values["bias"], backend=backend)
    torch.testing.assert_close(found, run(values, "reference"))
    found_gradients = torch.autograd.grad(found.sum(), [q, k, values["relative"], values["bias"]])
    expected = torch.autograd.grad(run(values, "reference").sum(), [q, k, values["relative"], values["bias"]])
    torch.testing.assert_close(found_gradients, expected)


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("num_positions", [1, 2, 5])
def test_gradcheck(backend, scale, num_positions):
    values = draw(4, 6, num_positions, batch=1, gates="separate", relative=3, bias=(1, 6))
    assert torch.autograd.gradcheck(
        lambda *x: run(dict(zip(NAMES, x, strict=True)), backend, scale=scale), [values[name] for name in NAMES]
    )


@pytest.mark.parametrize("backend", ALL)
def test_clamped_positions_give_gates_no_gradient(backend):
    # One query and gates of about 0.95: counted back from the query, 0.95, 1.9, then clamped at 2 for every earlier key.
    values = draw(1, 8, 3, gates="separate", shift=3.0, spread=0.01, dtype=DTYPES[backend])
    found = gradients(values, run(values, backend))["gate_keys"]
    assert (found[..., :-2, :] == 0).all()
    assert (found[..., -2:, :].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("num_queries", [10, BLOCK + 10])
def test_the_future_never_changes_the_past(backend, num_queries):
    num_keys, changed = num_queries + 3, num_queries - 4
    values = draw(num_queries, num_keys, 6, gates="separate", dtype=DTYPES[backend])
    before = run(values, backend)
    past = changed - (num_keys - num_queries)  # queries before the first changed key
    grads = torch.autograd.grad(before[..., :past, :].sum(), [values[name] for name in ("k", "v", "gate_keys")])
    assert all((gradient[..., changed:, :] == 0).all() for gradient in grads)
    with torch.no_grad():
        for name in ("k", "v", "gate_keys"):
            values[name][..., changed:, :] += 5.0
    after = run(values, backend)
    torch.testing.assert_close(after[..., :past, :], before[..., :past, :])
    assert not torch.isclose(after[..., past:, :], before[..., past:, :]).all(-1).any()


@pytest.mark.parametrize("backend", ALL)
def test_dropout_drops_weights_and_scales_the_rest(backend):
    num_keys, dropout = BLOCK * 2 + 5, 0.3
    values = draw(num_keys, num_keys, 6, batch=4, shift=-2.0, dtype=DTYPES[backend])
    values["v"] = torch.eye(num_keys, dtype=DTYPES[backend]).expand(4, 2, -1, -1)  # the output is the attention itself
    attention = run(values, backend)
    torch.manual_seed(3)
    dropped = run(values, backend, dropout=dropout)
    visible = attention > 0
    kept = (dropped > 0)[visible]
    torch.testing.assert_close(dropped[visible][kept], attention[visible][kept] / (1 - dropout))
    assert abs(kept.double().mean() - (1 - dropout)) < 0.005  # 70,000 weights: 3 standard deviations
    torch.manual_seed(3)
    assert torch.equal(run(values, backend, dropout=dropout), dropped)
    assert not torch.equal(run(values, backend, dropout=dropout), dropped)
    # Blocks draw apart: the second block's queries do not repeat the first's mask.
    first, second = (dropped[..., start : start + BLOCK, 0] > 0 for start in (0, BLOCK))
    assert 0.4 < (first == second).double().mean() < 0.75  # 0.58 if they are independent


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("num_queries", [5, BLOCK + 3])
def test_gradient_of_dropout_is_that_of_the_mask_drawn_forward(backend, num_queries):
    values = draw(num_queries, num_queries, 4, batch=1, num_heads=1, head_dim=2, gates="separate", bias=(1, 5))

    def seeded(*x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return run(dict(zip(NAMES, x, strict=True)), backend, dropout=0.4)

    assert torch.autograd.gradcheck(seeded, [values[name] for name in NAMES], fast_mode=True)


@pytest.mark.parametrize("backend", ALL[:-1])  # triton multiplies half precision as it is
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend, dtype):
    # About 200 open gates: in bfloat16 every position beyond 256 / 2 would be rounded to a whole number.
    values = draw(200, 200, 300, batch=1, shift=4.0, bias=(1, 200), dtype=dtype)
    exact = run({name: None if x is None else x.detach().double() for name, x in values.items()}, "reference")
    found = run(values, backend)
    assert found.dtype == dtype
    error = (found.double() - exact).abs() / (exact.abs() + 1e-3)
    assert error.max() < torch.finfo(dtype).eps  # the last rounding alone
    assert all(gradient.dtype == dtype for gradient in gradients(values, found).values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(values, backend), found)


@pytest.mark.parametrize("backend", ALL)
def test_strided_inputs(backend):
    values = draw(70, 70, 5, gates="separate", head_dim=16, bias=(2, 9), dtype=DTYPES[backend])
    # As attention makes them: (batch, time, heads, head_dim), transposed.
    strided = {
        name: x if x is None or x.dim() < 4 else x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        for name, x in values.items()
    }
    strided["table"] = values["table"].detach().t().contiguous().t().requires_grad_()
    assert not strided["q"].is_contiguous() and not strided["table"].is_contiguous()
    expected, found = run(values, backend), run(strided, backend)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(strided, found), gradients(values, expected))


@pytest.mark.parametrize("backend", ALL)
def test_empty_batch_and_single_token(backend):
    empty = draw(3, 3, 4, batch=0, dtype=DTYPES[backend])
    output = run(empty, backend)
    assert output.shape == (0, 2, 3, 2)
    assert (gradients(empty, output)["table"] == 0).all()
    single = draw(1, 1, 4, dtype=DTYPES[backend])
    torch.testing.assert_close(run(single, backend), single["v"])  # one key has all the attention


def test_unknown_settings_name_what_is_allowed():
    values = draw(2, 2, 3)
    with pytest.raises(
        UserError, match=r"backend=blockwize .*auto, reference, blockwise, native, triton.*Did you mean 'blockwise'"
    ):
        run(values, "blockwize")
    with pytest.raises(UserError, match=r"scale=published .*released, paper"):
        run(values, "auto", scale="published")
    with pytest.raises(UserError, match="num_positions=0"):
        run({**values, "table": torch.zeros(0, 3, dtype=torch.float64)}, "auto")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dropout": 1.0}, "dropout=1.0 is out of range"),
        ({"bias": torch.zeros(2, 4)}, r"bias has shape \(2, 4\).*allowed: \(1, any from 1\)"),
        ({"relative": torch.zeros(0, 2)}, r"relative has shape \(0, 2\).*allowed: \(any from 1, 2\)"),
        ({"gate_keys": torch.zeros(1, 1, 3, 2)}, r"gate_keys has shape \(1, 1, 3, 2\).*allowed: \(1, 1, 4, 2\)"),
    ],
)
def test_what_would_give_nonsense_is_refused(arguments, said):
    q, k, v = (torch.zeros(1, 1, 4, 2) for _ in range(3))
    with pytest.raises(UserError, match=said):
        cope_attention(q, k, v, torch.zeros(3, 2), **arguments)


def test_more_queries_than_keys_are_refused():
    with pytest.raises(UserError, match="5 queries for 4 keys"):
        cope_attention(torch.zeros(1, 1, 5, 2), *(torch.zeros(1, 1, 4, 2) for _ in range(2)), torch.zeros(3, 2))


@pytest.mark.parametrize("backend", [pytest.param("native", marks=NEEDS_COMPILER), IN_INTERPRETER])
def test_gradient_of_dropout_in_single_precision(backend):
    # The mask that the forward pass drew, read off with the identity as values, gives the gradient by the reference's algebra.
    num_keys, dropout = 40, 0.4
    values = draw(num_keys, num_keys, 6, batch=1, gates="separate", relative=9, dtype=torch.float32)
    values["v"] = torch.eye(num_keys).expand(1, 2, -1, -1).clone().requires_grad_()
    torch.manual_seed(3)
    dropped = run(values, backend, dropout=dropout)
    mask = (dropped.detach() > 0) / (1 - dropout)
    found = gradients(values, dropped)
    exact = {name: None if x is None else x.detach().double().requires_grad_() for name, x in values.items()}
    weights = run({**exact, "v": torch.eye(num_keys, dtype=torch.float64).expand(1, 2, -1, -1)}, "reference")
    expected = gradients(exact, (weights * mask) @ exact["v"])
    for name in expected:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("gates", ["keys", "separate"])
def test_a_nan_reaches_every_query_that_sees_it(backend, gates):
    num_keys, wrong = BLOCK + 20, 30
    # Of separate gates native looks at none beyond the last position, so there must be positions enough to reach the wrong key.
    num_positions = 5 if gates == "keys" else num_keys + 1
    values = draw(num_keys, num_keys, num_positions, gates=gates, dtype=DTYPES[backend])
    with torch.no_grad():
        values["gate_keys" if gates == "separate" else "k"][:, :, wrong] = math.nan
    output = run(values, backend)
    assert output[..., wrong:, :].isnan().all()
    # Keys after a query have no part in it; within a block of keys 0 x NaN may spread, as in ordinary attention.
    output.sum().backward()  # and no index leaves the table
    assert values["q"].grad[..., wrong:, :].isnan().any()


@NEEDS_COMPILER
def test_native_is_deterministic_whatever_the_number_of_threads():
    values = draw(
        150, 150, 20, batch=3, head_dim=16, value_dim=16, gates="separate", relative=40, bias=(2, 9), dtype=torch.float32
    )
    values = {name: x.detach().requires_grad_() for name, x in values.items()}
    results = []
    for threads in (1, 2, 2, 16):
        torch.set_num_threads(threads)
        try:
            output = run(values, "native")
            results.append([output, *gradients(values, output).values()])
        finally:
            torch.set_num_threads(1)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@NEEDS_COMPILER
def test_native_refuses_what_it_cannot_do():
    values = draw(4, 4, 3)
    with pytest.raises(UserError, match="backend=native cannot be had: it computes in float32, these tensors are float64"):
        run(values, "native")
    values = draw(4, 4, 3, dtype=torch.float32)
    (gradient,) = torch.autograd.grad(run(values, "native").sum(), values["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        gradient.sum().backward()


@NEEDS_COMPILER
@pytest.mark.parametrize("head_dim", [16, 6])
def test_native_operator_keeps_pytorchs_contract(head_dim):
    """Schema, autograd registration and fake tensors, as ``torch.compile`` relies on them."""
    values = draw(9, 11, 5, head_dim=head_dim, gates="separate", relative=4, bias=(2, 3), dtype=torch.float32)
    arguments = (*(values[name] for name in NAMES), 0.5, 0.0, None)
    torch.library.opcheck(torch.ops.cope.native.default, arguments)


@NEEDS_COMPILER
def test_torch_compile_takes_native_without_a_break():
    values = draw(9, 11, 5, head_dim=16, gates="separate", relative=4, dtype=torch.float32)

    def model(*tensors: Tensor) -> Tensor:
        return run(dict(zip(NAMES, (*tensors, None), strict=True)), "auto") * 2.0

    tensors = [values[name] for name in NAMES[:-1]]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(*tensors)
    expected = model(*tensors)
    assert torch.equal(compiled, expected)
    assert all(
        torch.equal(*pair) for pair in zip(*(torch.autograd.grad(y.sum(), tensors) for y in (compiled, expected)), strict=True)
    )


@NEEDS_COMPILER
@pytest.mark.parametrize("instructions", [*INSTRUCTIONS, "portable"])
def test_native_for_every_kind_of_processor(instructions, monkeypatch):
    """A library for other instructions than this processor's own, if it has them."""
    own = torch.backends.cpu.get_cpu_capability()
    if instructions not in ("portable", own) and not (instructions == "AVX2" and own == "AVX512"):
        pytest.skip(f"this processor has no {instructions}")
    built = native.load(library(instructions))
    monkeypatch.setattr(native, "_loaded", lambda: built)
    assert built.cope_instructions().decode().replace("-", "").lower() == instructions.lower()
    for settings_drawn in (HALVES, OPEN, LARGE):
        compare_with_reference(settings_drawn, "native", "released", tolerance=5e-5)
    mixed = dict(
        num_queries=100, num_keys=140, num_positions=30, gates="separate", relative=50, bias=(2, 70), head_dim=24, value_dim=40
    )
    compare_with_reference(mixed, "native", "paper", tolerance=5e-5)
