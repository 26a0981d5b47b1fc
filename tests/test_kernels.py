"""CoPE attention: the reference against the equations in plain loops, and every other backend against the reference.

The Triton kernels, whose interpreter is slow, have further tests of their own: test_triton.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_cases import BLOCK, DTYPES, EXACT, HALVES, LARGE, NAMES, OPEN, compare_with_reference, draw, gradients, run
from kernel_marks import ALL, IN_INTERPRETER, NEEDS_COMPILER
from torch import Tensor

from cope import relative_attention
from cope.functional import SCALES


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
