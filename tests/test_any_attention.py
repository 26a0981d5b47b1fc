"""Whatever ``cope_attention`` is given: the reference's result, or one error that names the argument. Drawn by Hypothesis."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel_inputs import LAYOUTS
from torch import Tensor

from cope import cope_attention
from cope.errors import UserError

TYPES = [torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]
# What else may be wrong with one tensor; each a function of it.
SPOILT: dict[str, Callable[[Tensor], Any]] = {
    "another type": lambda x: x.long(),
    "bool": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "double": lambda x: x.double(),
    "half": lambda x: x.half(),
    "elsewhere": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "a list": lambda x: x.tolist(),
    "a number": lambda x: 1.0,
    "none": lambda x: None,
    "one dimension more": lambda x: x[None],
    "one dimension less": lambda x: x[0] if x.dim() and x.shape[0] else x.flatten(),
    "no dimension": lambda x: torch.zeros((), dtype=x.dtype),
    "one longer": lambda x: torch.cat([x, x[..., :1]], -1) if x.shape[-1] else x[..., None],
    "one row less": lambda x: x[..., 1:, :] if x.dim() > 1 else x[1:],
    "empty": lambda x: x[..., :0],
    "NaN": lambda x: torch.full_like(x, math.nan) if x.is_floating_point() else x,
    "infinite": lambda x: torch.full_like(x, math.inf) if x.is_floating_point() else x,
}
# How an argument may be called in a message, if not by its own name.
ALSO = {"table": "num_positions|head_dim", "q": "head_dim", "dropout": "dropout"}
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@st.composite
def calls(draw: Any) -> tuple[dict[str, Any], set[str]]:
    """Keyword arguments, and which of them were spoilt."""
    size = lambda *choices: draw(st.sampled_from(choices))  # noqa: E731
    batch, heads, keys = size(1, 1, 2, 0), size(1, 2, 4, 0), size(1, 3, 5, 70, 0)
    key_heads = size(heads, heads, 1)
    queries = min(size(keys, keys, 1, 0), keys)
    head_dim, value_dim, positions = size(1, 3, 8, 17), size(1, 4, 16), size(1, 4, 80)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    dtype = size(*TYPES)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    found: dict[str, Any] = {
        "q": normal(batch, heads, queries, head_dim),
        **{name: normal(batch, key_heads, keys, head_dim) for name in ("k", "gate_keys")},
        "v": normal(batch, key_heads, keys, value_dim),
        "table": normal(positions, head_dim),
        "gate_bias": normal(heads),
        "relative": normal(size(1, 3, 90), head_dim),
        "bias": normal(size(1, heads), size(1, 3, 90)),
        "key_mask": torch.rand(batch, keys, generator=generator) < 0.7,
    }
    for name in ("gate_keys", "gate_bias", "relative", "bias", "key_mask"):
        if draw(st.booleans()):
            del found[name]
    for name in draw(st.sets(st.sampled_from(sorted(found)), max_size=3)):  # another layout in memory, of the same numbers
        if found[name].dim() > 1 and found[name].numel() and found[name].is_floating_point():
            layouts = sorted(LAYOUTS if found[name].shape[-1] > 3 else LAYOUTS.keys() - {"overlapping"})
            found[name] = LAYOUTS[draw(st.sampled_from(layouts))](found[name].float()).to(dtype)
    spoilt = draw(st.sets(st.sampled_from(sorted(found)), max_size=2))
    for name in spoilt:
        found[name] = SPOILT[draw(st.sampled_from(sorted(SPOILT)))](found[name])
    others = {
        "scale": ["released", "paper", "papre", None],
        "dropout": [0.0, -1.0, 1.0, math.nan],
        "backend": ["auto", "native", "blockwise", "rust"],
    }
    for name, values in others.items():
        if (value := draw(st.sampled_from([values[0], *values]))) != values[0]:
            found[name] = value
            spoilt |= {name}
    return found, spoilt


def check(arguments: dict[str, Any], spoilt: set[str]) -> None:
    try:
        output = cope_attention(**arguments)
    except UserError as error:
        named = "|".join([*spoilt, *(ALSO[name] for name in spoilt if name in ALSO)])
        assert named and re.search(rf"\b({named})\b", str(error)), f"{spoilt}: {error}"
        assert len(str(error)) < 500
        return
    q, v = arguments["q"], arguments["v"]
    assert (output.shape, output.dtype, output.device) == ((*q.shape[:3], v.shape[-1]), q.dtype, q.device)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    if q.device.type == "meta" or not all(x.isfinite().all() for x in tensors.values() if x.is_floating_point()):
        return  # shapes alone; or numbers of which a NaN makes more, see cope_attention
    plain = {n: x.double().contiguous() if x.is_floating_point() else x for n, x in tensors.items()}
    expected = cope_attention(**{**arguments, **plain, "backend": "reference"})
    tolerance = TOLERANCES[q.dtype]
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


@given(calls())
@settings(max_examples=20)
def test_twenty_calls_give_the_references_result_or_name_the_argument(call: tuple[dict[str, Any], set[str]]) -> None:
    check(*call)


@pytest.mark.slow
@given(calls())
@settings(max_examples=1000)
def test_a_thousand_calls_give_the_references_result_or_name_the_argument(call: tuple[dict[str, Any], set[str]]) -> None:
    check(*call)
