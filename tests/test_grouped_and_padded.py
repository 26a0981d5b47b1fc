"""Attention with grouped heads and with keys that are masked: the reference against plain attention, others against it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import BLOCK, DTYPES, compare_with_reference, draw, gradients, padding, run
from kernel_marks import ALL, NEEDS_COMPILER, NEEDS_TRITON
from torch import Tensor

from cope import cope_attention
from cope.errors import UserError


@pytest.mark.parametrize("backend", ALL)
def test_grouped_heads_are_heads_with_the_same_keys(backend):
    values = draw(9, 11, 4, num_heads=6, num_key_heads=2, gates="separate", relative=4, bias=(6, 5), dtype=DTYPES[backend])
    copied = {
        name: x.detach().repeat_interleave(3, 1).requires_grad_() if name in ("k", "v", "gate_keys") else x
        for name, x in values.items()
    }
    expected, found = run(copied, "reference"), run(values, backend)
    torch.testing.assert_close(found, expected)
    wanted = gradients(copied, expected)
    for name, gradient in gradients(values, found).items():
        added_up = wanted[name].unflatten(1, (2, 3)).sum(2) if name in ("k", "v", "gate_keys") else wanted[name]
        torch.testing.assert_close(gradient, added_up, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_sequence_gives_what_it_gives_alone(backend, side):
    """Values and gradients of its own tokens; what stands where nothing is does not matter, NaN included."""
    num_tokens, lengths = BLOCK + 20, [BLOCK + 20, 30, BLOCK + 1]
    values = draw(num_tokens, num_tokens, 9, batch=3, gates="separate", relative=7, bias=(2, 12), dtype=DTYPES[backend])
    key_mask = padding(num_tokens, lengths, side)
    output = run(values, backend, key_mask=key_mask)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(output)
    own = key_mask[:, None, :, None]
    found = torch.autograd.grad((output * weights * own).sum(), list(values.values()))
    shared = {name: torch.zeros_like(values[name]) for name in ("table", "relative", "bias")}
    for row, length in enumerate(lengths):
        kept = slice(num_tokens - length, None) if side == "left" else slice(0, length)
        alone = {
            name: (x[row : row + 1, :, kept] if x.dim() == 4 else x).detach().requires_grad_() for name, x in values.items()
        }
        expected = run(alone, "reference")
        torch.testing.assert_close(output[row : row + 1, :, kept], expected, rtol=1e-4, atol=1e-5)
        wanted = torch.autograd.grad((expected * weights[row : row + 1, :, kept]).sum(), list(alone.values()))
        for name, gradient, whole in zip(values, wanted, found, strict=True):
            if name in shared:
                shared[name] += gradient
            else:
                torch.testing.assert_close(whole[row : row + 1, :, kept], gradient, rtol=1e-4, atol=1e-4)
                others = whole[row][:, ~key_mask[row]]
                torch.testing.assert_close(others, torch.zeros_like(others))
    for name, whole in zip(values, found, strict=True):
        if name in shared:
            torch.testing.assert_close(whole, shared[name], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for name in ("k", "gate_keys"):
            values[name].masked_fill_(~own, float("nan"))
        values["v"].masked_fill_(~own, 1e4)
    assert torch.equal(run(values, backend, key_mask=key_mask)[own.expand_as(output)], output[own.expand_as(output)])


@pytest.mark.parametrize("backend", ALL)
def test_a_query_that_sees_no_key_gives_0_and_takes_no_part(backend):
    values = draw(4, 6, 3, relative=2, dtype=DTYPES[backend])
    key_mask = padding(6, [1, 6], "left")  # the first sequence's last query alone sees a key, its own
    output = run(values, backend, key_mask=key_mask)
    assert (output[0, :, :3] == 0).all() and (output[1] != 0).all()
    found = gradients(values, output)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert (found["q"][0, :, :3] == 0).all()


@st.composite
def grouped_and_padded(drawing: st.DrawFn) -> tuple[dict[str, Any], Tensor]:
    num_keys = drawing(st.integers(1, 12) | st.integers(BLOCK - 2, 2 * BLOCK + 10))
    num_key_heads, batch = drawing(st.integers(1, 2)), drawing(st.integers(1, 2))
    num_heads = num_key_heads * drawing(st.integers(1, 3))
    drawn = dict(
        num_queries=drawing(st.just(num_keys) | st.integers(1, num_keys)),
        num_keys=num_keys,
        num_positions=drawing(st.integers(1, 6) | st.integers(1, 300)),
        batch=batch,
        num_heads=num_heads,
        num_key_heads=num_key_heads,
        head_dim=drawing(st.integers(1, 4) | st.just(16)),
        seed=drawing(st.integers(0, 2**16)),
        gates=drawing(st.sampled_from(["keys", "separate"])),
        shift=drawing(st.floats(-4, 4)),
        relative=drawing(st.none() | st.integers(1, 2 * BLOCK)),
        bias=drawing(st.none() | st.tuples(st.sampled_from([1, num_heads]), st.integers(1, 2 * BLOCK))),
    )
    # Padding on either side, and holes, as between a padded prompt and what was generated after it.
    seed, share = drawing(st.integers(0, 2**16)), drawing(st.sampled_from([0.0, 0.1, 0.9]))
    holes = torch.rand(batch, num_keys, generator=torch.Generator().manual_seed(seed)) < share
    lengths = drawing(st.lists(st.integers(0, num_keys), min_size=batch, max_size=batch))
    return drawn, padding(num_keys, lengths, drawing(st.sampled_from(["left", "right"]))) & ~holes


@given(drawn=grouped_and_padded(), scale=st.sampled_from(["released", "paper"]))
@settings(max_examples=60)
def test_blockwise_equals_reference(drawn, scale):
    compare_with_reference(drawn[0], "blockwise", scale, tolerance=1e-11, key_mask=drawn[1])


@NEEDS_COMPILER
@given(drawn=grouped_and_padded(), scale=st.sampled_from(["released", "paper"]))
@settings(max_examples=100)
def test_native_equals_reference(drawn, scale):
    compare_with_reference(drawn[0], "native", scale, tolerance=5e-5, key_mask=drawn[1])


@pytest.mark.slow
@NEEDS_TRITON
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "sizes",
    [
        dict(num_queries=150, num_keys=200, num_positions=7, shift=1.0),
        dict(num_queries=70, num_keys=70, num_positions=64, relative=20, bias=(4, 9)),
        dict(num_queries=3, num_keys=700, num_positions=30, shift=-1.0),
        dict(num_queries=40, num_keys=50, num_positions=9, gates="separate"),
    ],
)
def test_triton_equals_reference(sizes, side):
    key_mask = padding(sizes["num_keys"], [sizes["num_keys"] * 2 // 3, 2], side)
    drawn = dict(num_heads=4, num_key_heads=2, head_dim=16, value_dim=16) | sizes
    compare_with_reference(drawn, "triton", "released", tolerance=5e-5, key_mask=key_mask)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k": torch.zeros(2, 3, 5, 2)}, "k has 3 heads for q's 4: .*allowed: as many as q, or a number that divides q's"),
        ({"v": torch.zeros(2, 4, 5, 2)}, r"v has shape \(2, 4, 5, 2\).*allowed: \(2, 2, 5, any from 1\)"),
        ({"key_mask": torch.ones(2, 5)}, "key_mask is float32; allowed: a dense tensor of bool"),
        ({"key_mask": [[True] * 5] * 2}, "key_mask is a list; allowed: a dense tensor of bool"),
        ({"key_mask": torch.ones(2, 4, dtype=torch.bool)}, r"key_mask has shape \(2, 4\).*allowed: \(2, 5\)"),
        ({"key_mask": torch.ones(2, 5, dtype=torch.bool, device="meta")}, "key_mask is on meta and k on cpu"),
    ],
)
def test_what_does_not_fit_is_refused(changes, said):
    given = dict(q=torch.zeros(2, 4, 5, 2), k=torch.zeros(2, 2, 5, 2), v=torch.zeros(2, 2, 5, 2), table=torch.zeros(3, 2))
    with pytest.raises(UserError, match=said):
        cope_attention(**given | changes)
