"""CoPE attention: the reference against the equations in plain loops, and the blockwise kernel against the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cope import cope_attention
from cope.errors import UserError
from cope.functional import BACKENDS, SCALES
from cope.kernels.blockwise import QUERIES_PER_BLOCK

NAMES = ("q", "k", "v", "table", "gate_keys", "bias")


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
    bias: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor | None]:
    """Random arguments; ``shift`` moves every gate's logit and ``spread`` scales it, so that gates can be closed or open."""
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
        "bias": None if bias is None else normal(*bias, num_queries, num_keys + 2),
    }
    return {name: None if x is None else x.to(dtype).requires_grad_() for name, x in values.items()}


def run(values: dict[str, Tensor | None], backend: str, **settings: Any) -> Tensor:
    positional = [values[name] for name in NAMES[:4]]
    return cope_attention(*positional, gate_keys=values["gate_keys"], bias=values["bias"], backend=backend, **settings)


def gradients(values: dict[str, Tensor | None], output: Tensor) -> dict[str, Tensor]:
    """Of a fixed random combination of the output's entries: a plain sum would hide gradients that cancel."""
    wanted = {name: x for name, x in values.items() if x is not None}
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    # Zeros for what is not used: with a single position the gates have no say.
    found = torch.autograd.grad((output * weights).sum(), list(wanted.values()), materialize_grads=True)
    return dict(zip(wanted, found, strict=True))


@st.composite
def settings_of_draw(drawing: st.DrawFn) -> dict[str, Any]:
    num_keys = drawing(st.integers(1, 12) | st.integers(QUERIES_PER_BLOCK - 2, 2 * QUERIES_PER_BLOCK + 10))
    batch, num_heads = drawing(st.integers(1, 2)), drawing(st.integers(1, 3))
    return dict(
        num_queries=drawing(st.just(num_keys) | st.integers(1, num_keys)),
        num_keys=num_keys,
        num_positions=drawing(st.integers(1, 6) | st.integers(1, 300)),
        batch=batch,
        num_heads=num_heads,
        head_dim=drawing(st.integers(1, 4)),
        value_dim=drawing(st.integers(1, 4)),
        seed=drawing(st.integers(0, 2**16)),
        gates=drawing(st.sampled_from(["keys", "separate"])),
        shift=drawing(st.sampled_from([-1000.0, 0.0, 1000.0]) | st.floats(-6, 6)),
        spread=drawing(st.sampled_from([0.0, 0.1, 1.0, 10.0])),
        bias=drawing(st.none() | st.sampled_from([(1, 1), (1, num_heads), (batch, 1), (batch, num_heads)])),
    )


@given(drawn=settings_of_draw(), scale=st.sampled_from(SCALES))
# Gates of exactly 1/2 add up to exactly the last position, where clamping begins.
@example(drawn=dict(num_queries=9, num_keys=9, num_positions=4, gates="separate", spread=0.0), scale="released")
@settings(max_examples=80)
def test_blockwise_equals_reference_in_values_and_gradients(drawn, scale):
    values = draw(**drawn)
    expected, found = run(values, "reference", scale=scale), run(values, "blockwise", scale=scale)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    expected_gradients, found_gradients = gradients(values, expected), gradients(values, found)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(
            found_gradients[name], gradient, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"gradient of {name}: {text}"
        )


def brute_force(values: dict[str, Tensor | None], scale: str) -> Tensor:
    """Equations 3 to 6 and a bias per distance, a number at a time."""
    q, k, v, table, gate_keys, bias = (None if values[name] is None else values[name].detach() for name in NAMES)
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
            if bias is not None:
                logit = logit + bias[b % bias.shape[0], h % bias.shape[1], row, i - j]
            logits.append(logit)
        output[b, h, row] = torch.stack(logits).softmax(0) @ v[b, h, : i + 1]
    return output


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("gates", "bias"), [("keys", None), ("separate", (1, 2)), ("keys", (2, 1))])
def test_equations_in_plain_loops(backend, scale, gates, bias):
    values = draw(5, 7, 4, gates=gates, bias=bias, shift=1.0)
    torch.testing.assert_close(run(values, backend, scale=scale), brute_force(values, scale), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("num_positions", [1, 2, 5])
def test_gradcheck(backend, scale, num_positions):
    values = draw(4, 6, num_positions, batch=1, gates="separate", bias=(1, 1))
    assert torch.autograd.gradcheck(
        lambda *x: run(dict(zip(NAMES, x, strict=True)), backend, scale=scale), [values[name] for name in NAMES]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_clamped_positions_give_gates_no_gradient(backend):
    # One query and gates of about 0.95: counted back from the query, 0.95, 1.9, then clamped at 2 for every earlier key.
    values = draw(1, 8, 3, gates="separate", shift=3.0, spread=0.01)
    found = gradients(values, run(values, backend))["gate_keys"]
    assert (found[..., :-2, :] == 0).all()
    assert (found[..., -2:, :].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_queries", [10, QUERIES_PER_BLOCK + 10])
def test_the_future_never_changes_the_past(backend, num_queries):
    num_keys, changed = num_queries + 3, num_queries - 4
    values = draw(num_queries, num_keys, 6, gates="separate")
    before = run(values, backend)
    past = changed - (num_keys - num_queries)  # queries before the first changed key
    grads = torch.autograd.grad(before[..., :past, :].sum(), [values[name] for name in ("k", "v", "gate_keys")])
    assert all((gradient[..., changed:, :] == 0).all() for gradient in grads)
    with torch.no_grad():
        for name in ("k", "v", "gate_keys"):
            values[name][..., changed:, :] += 5.0
    after = run(values, backend)
    torch.testing.assert_close(after[..., :past, :], before[..., :past, :], rtol=1e-12, atol=1e-12)
    assert not torch.isclose(after[..., past:, :], before[..., past:, :]).all(-1).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_drops_weights_and_scales_the_rest(backend):
    num_keys, dropout = QUERIES_PER_BLOCK * 2 + 5, 0.3
    values = draw(num_keys, num_keys, 6, batch=4, shift=-2.0)
    values["v"] = torch.eye(num_keys, dtype=torch.float64).expand(4, 2, -1, -1)  # the output is the attention itself
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
    first, second = (dropped[..., start : start + QUERIES_PER_BLOCK, 0] > 0 for start in (0, QUERIES_PER_BLOCK))
    assert 0.4 < (first == second).double().mean() < 0.75  # 0.58 if they are independent


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_queries", [5, QUERIES_PER_BLOCK + 3])
def test_gradient_of_dropout_is_that_of_the_mask_drawn_forward(backend, num_queries):
    values = draw(num_queries, num_queries, 4, batch=1, num_heads=1, head_dim=2, gates="separate", bias=(1, 1))

    def seeded(*x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return run(dict(zip(NAMES, x, strict=True)), backend, dropout=0.4)

    assert torch.autograd.gradcheck(seeded, [values[name] for name in NAMES], fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend, dtype):
    # About 200 open gates: in bfloat16 every position beyond 256 / 2 would be rounded to a whole number.
    values = draw(200, 200, 300, batch=1, shift=4.0, bias=(1, 1), dtype=dtype)
    exact = run({name: None if x is None else x.detach().double() for name, x in values.items()}, "reference")
    found = run(values, backend)
    assert found.dtype == dtype
    error = (found.double() - exact).abs() / (exact.abs() + 1e-3)
    assert error.max() < torch.finfo(dtype).eps  # the last rounding alone
    assert all(gradient.dtype == dtype for gradient in gradients(values, found).values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(values, backend), found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs(backend):
    values = draw(70, 70, 5, gates="separate", bias=(2, 2))
    # As attention makes them: (batch, time, heads, head_dim), transposed.
    strided = {
        name: x if x.dim() < 4 else x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        for name, x in values.items()
    }
    strided["table"] = values["table"].detach().t().contiguous().t().requires_grad_()
    assert not strided["q"].is_contiguous() and not strided["table"].is_contiguous()
    expected, found = run(values, backend), run(strided, backend)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(strided, found), gradients(values, expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_and_single_token(backend):
    empty = draw(3, 3, 4, batch=0)
    output = run(empty, backend)
    assert output.shape == (0, 2, 3, 2)
    assert (gradients(empty, output)["table"] == 0).all()
    single = draw(1, 1, 4)
    torch.testing.assert_close(run(single, backend), single["v"])  # one key has all the attention


def test_unknown_settings_name_what_is_allowed():
    values = draw(2, 2, 3)
    with pytest.raises(UserError, match=r"backend=blockwize .*auto, reference, blockwise.*Did you mean 'blockwise'"):
        run(values, "blockwize")
    with pytest.raises(UserError, match=r"scale=published .*released, paper"):
        run(values, "auto", scale="published")
    with pytest.raises(UserError, match="num_positions=0"):
        run({**values, "table": torch.zeros(0, 3, dtype=torch.float64)}, "auto")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dropout": 1.0}, "dropout=1.0 is out of range"),
        ({"bias": torch.zeros(1, 1, 4, 3)}, "bias has 3 distances for 4 keys"),
    ],
)
def test_what_would_give_nonsense_is_refused(arguments, said):
    q, k, v = (torch.zeros(1, 1, 4, 2) for _ in range(3))
    with pytest.raises(UserError, match=said):
        cope_attention(q, k, v, torch.zeros(3, 2), **arguments)


def test_more_queries_than_keys_are_refused():
    with pytest.raises(UserError, match="5 queries for 4 keys"):
        cope_attention(torch.zeros(1, 1, 5, 2), *(torch.zeros(1, 1, 4, 2) for _ in range(2)), torch.zeros(3, 2))
