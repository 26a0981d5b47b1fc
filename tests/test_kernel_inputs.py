"""What attention accepts (layouts, types, devices, empty dimensions, numbers not finite), and how it refuses the rest."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from kernel_cases import BLOCK, DTYPES, EXACT, NAMES, draw, gradients, run
from kernel_marks import ALL
from torch import Tensor

from cope import cope_attention, relative_attention
from cope.errors import UserError


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


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "dimensions in reverse": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))),
    "every second number": lambda x: torch.cat([x, x], -1)[..., ::2],
    "every second row": lambda x: torch.cat([x, x], -2)[..., ::2, :],
    "from an odd place in memory": lambda x: torch.cat([x, x], -1)[..., 1 : 1 + x.shape[-1]],
    "one number in all places": lambda x: x.flatten()[0].expand_as(x),
    "one number a row": lambda x: x[..., :1].expand_as(x),
    "the same for all": lambda x: x[:1].expand_as(x),
    "overlapping": lambda x: torch.cat([x.flatten(), x.flatten()]).as_strided(x.shape, [3] * (x.dim() - 1) + [1]),
    "negated lazily": lambda x: torch.complex(x, -x).conj().imag,
    "real part of complex numbers": lambda x: torch.complex(x, -x).real,
}


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_in_memory_do_not_matter(backend, layout):
    values = draw(5, 7, 4, gates="separate", head_dim=16, value_dim=16, relative=3, bias=(2, 3), dtype=DTYPES[backend])
    with torch.no_grad():
        laid_out = {name: LAYOUTS[layout](x) for name, x in values.items()}
    plain = {name: x.clone(memory_format=torch.contiguous_format) for name, x in laid_out.items()}
    expected = run({name: x.requires_grad_() for name, x in plain.items()}, backend)
    found = run({name: x.detach().requires_grad_() for name, x in laid_out.items()}, backend)
    torch.testing.assert_close(found, expected)
    leaves = {name: x.detach().requires_grad_() for name, x in laid_out.items()}
    torch.testing.assert_close(gradients(leaves, run(leaves, backend)), gradients(plain, expected))


OTHERS = [dict(), dict(gates="separate"), dict(relative=3), dict(bias=(1, 3)), dict(gates="separate", relative=3, bias=(1, 9))]


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize(
    "empty",
    [
        dict(batch=0),
        dict(num_heads=0),
        dict(num_queries=0),
        dict(num_queries=0, num_keys=0),
        dict(batch=0, num_heads=0, num_queries=0, num_keys=0),
    ],
)
def test_no_batch_heads_queries_or_keys_give_no_output_and_gradients_of_0(backend, others, empty, monkeypatch):
    sizes = dict(num_queries=3, num_keys=4, num_heads=2, head_dim=16, value_dim=5) | empty
    values = draw(**sizes, num_positions=4, dtype=DTYPES[backend], **others)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # with NaN: by chance it often is 0
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        output = run(values, backend)
        found = gradients(values, output)
    finally:
        torch.use_deterministic_algorithms(False)
    assert output.shape == (*values["q"].shape[:3], 5)
    assert all((gradient == 0).all() for gradient in found.values())


@pytest.mark.parametrize("backend", ALL)
def test_a_single_token_has_all_the_attention(backend):
    single = draw(1, 1, 4, dtype=DTYPES[backend])
    torch.testing.assert_close(run(single, backend), single["v"])


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (dict(value_dim=0), r"v has shape \(2, 2, 3, 0\).*allowed: \(2, 2, 3, any from 1\)"),
        (dict(num_positions=0), "num_positions=0 is too small"),
        (dict(relative=0), r"relative has shape \(0, 3\).*allowed: \(any from 1, 3\)"),
        (dict(bias=(2, 0)), r"bias has shape \(2, 0\).*allowed: \(2, any from 1\)"),
    ],
)
def test_dimensions_that_cannot_be_0_are_refused(sizes, said):
    values = draw(**dict(num_queries=3, num_keys=3, num_positions=4) | sizes)
    for backend in ("auto", "reference", "blockwise"):
        with pytest.raises(UserError, match=said):
            run(values, backend)


def test_a_head_dim_of_0_is_refused():
    q = k = v = torch.zeros(1, 1, 2, 0)
    with pytest.raises(UserError, match="head_dim=0 is too small; allowed: 1 or more"):
        cope_attention(q, k, v, torch.zeros(3, 0))


def make(dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    values = draw(5, 7, 4, gates="separate", relative=3, bias=(2, 3))
    return {name: x.detach().to(device=device, dtype=dtype) for name, x in values.items()}


TYPES = [getattr(torch, name) for name in vars(torch) if isinstance(getattr(torch, name), torch.dtype)]
TAKEN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [*dict.fromkeys(dtype for dtype in TYPES if dtype not in TAKEN)], ids=str)
def test_other_types_are_refused_by_name(name, dtype):
    values = make(torch.float32)
    try:
        values[name] = torch.empty(values[name].shape, dtype=dtype)
    except RuntimeError as error:
        pytest.skip(f"PyTorch makes no such tensors: {error}")
    for backend in ("auto", "reference", "blockwise"):
        with pytest.raises(UserError, match=rf"{name} is {str(dtype).removeprefix('torch.')}; allowed: float32, float16, "):
            run(values, backend)


@pytest.mark.parametrize("backend", ["auto", *ALL])
@pytest.mark.parametrize("name", NAMES)
def test_types_are_mixed_without_rounding_or_refused(backend, name):
    # Triton's interpreter cannot multiply bfloat16.
    for dtype in (torch.float16,) if backend == "triton" else (torch.float16, torch.bfloat16):
        values = make(torch.float32)
        values[name] = values[name].to(dtype)
        found = run(values, backend)
        assert found.dtype == values["q"].dtype
        exact = run({name: x.double() for name, x in values.items()}, "reference")
        tolerance = torch.finfo(dtype).eps if name == "q" else 1e-5
        torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
    if name != "q":
        with pytest.raises(UserError, match=f"{name} is float64 and q float32, in which it would be rounded"):
            run(make(torch.float32) | {name: make(torch.float64)[name]}, backend)


@pytest.mark.parametrize("backend", ["auto", *EXACT])
def test_double_precision_takes_smaller_types_exactly(backend):
    values = make(torch.float32) | {"q": make(torch.float64)["q"]}
    found = run(values, backend)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, run({name: x.double() for name, x in values.items()}, "reference"))


@pytest.mark.parametrize("backend", ["auto", *EXACT])
@pytest.mark.parametrize("dtype", TAKEN, ids=str)
def test_meta_tensors_give_shapes(backend, dtype):
    values = {name: x.requires_grad_() for name, x in make(dtype, "meta").items()}
    output = run(values, backend)
    assert (output.shape, output.dtype, output.device.type) == ((2, 2, 5, 2), dtype, "meta")
    output.sum().backward()
    assert all(x.grad.shape == x.shape and x.grad.dtype == dtype for x in values.values())


def test_devices_and_layouts_that_do_not_fit_are_refused():
    values = make(torch.float32)
    for name in NAMES[1:]:
        with pytest.raises(UserError, match=f"{name} is on meta and q on cpu; allowed: one device for all"):
            run(values | {name: values[name].to("meta")}, "auto")
    with pytest.raises(UserError, match="backend=native cannot be had: it runs on CPU tensors, these are on meta"):
        run(make(torch.float32, "meta"), "native")
    for name in NAMES:
        with pytest.raises(UserError, match=f"{name} is sparse_coo; allowed: dense tensors"):
            run(values | {name: values[name].to_sparse()}, "auto")
        with pytest.raises(UserError, match=f"{name} is a list; allowed: a tensor"):
            run(values | {name: values[name].tolist()}, "auto")
        if name in NAMES[:4]:
            with pytest.raises(UserError, match=f"{name} is None; allowed: a tensor"):
                run(values | {name: None}, "auto")
        for shape in ((), (1,), (1, 2, 3, 4, 5)):
            with pytest.raises(UserError, match=f"{name} has shape|num_positions=0"):
                run(values | {name: torch.zeros(shape)}, "auto")
    with pytest.raises(UserError, match="relative is None; allowed: a tensor"):
        relative_attention(values["q"], values["k"], values["v"], None)


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
