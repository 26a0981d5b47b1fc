"""The native kernel: every kind of processor, density of gates and number of threads, and how far positions may be off."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_cases import HALVES, LARGE, OPEN, compare_with_reference, draw, gradients, run
from kernel_marks import NEEDS_COMPILER
from torch import Tensor

from cope import cope_attention
from cope.errors import UserError
from cope.kernels import native
from cope.kernels.native.build import INSTRUCTIONS, library


@NEEDS_COMPILER
@pytest.mark.parametrize("density", [0.002, 0.02, 0.5, 0.98, 0.999])
@pytest.mark.parametrize("num_positions", [16, 64, 500])
def test_native_at_every_density_of_gates(density, num_positions):
    shift = math.log(density / (1 - density))
    drawn = dict(num_queries=300, num_keys=300, num_positions=num_positions, batch=1, head_dim=32, value_dim=32, shift=shift)
    compare_with_reference(drawn, "native", "released", tolerance=5e-5)


def use_kernel_for(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a library for other instructions than this processor's own, if it has them."""
    own = torch.backends.cpu.get_cpu_capability()
    if instructions not in ("portable", own) and not (instructions == "AVX2" and own == "AVX512"):
        pytest.skip(f"this processor has no {instructions}")
    built = native.load(library(instructions))
    monkeypatch.setattr(native, "_loaded", lambda: built)
    assert built.cope_instructions().decode().replace("-", "").lower() == instructions.lower()


def farthest_position(num_keys: int, gate_logit: float, num_positions: int, dtype: torch.dtype, backend: str) -> Tensor:
    """The position of the first key of many, all with the same gate, read off from the attention it gets."""
    q, k, v, gate_keys = torch.zeros(4, 1, 1, num_keys, 16, dtype=dtype)
    q = q[:, :, -1:]
    q[..., :3] = 1.0
    gate_keys[..., 0] = 4 * gate_logit
    # Of all keys two share the attention, by what the first one's position adds to its logit: its distance from `middle`.
    middle = round(num_keys / (1 + math.exp(-gate_logit)))
    k[..., 1:-1, 1] = -400.0
    v[..., 0, 0] = 1.0
    table = torch.zeros(num_positions, 16, dtype=dtype)
    table[2:, 2] = torch.arange(2, num_positions) - middle
    output = cope_attention(q, k, v, table, gate_keys=gate_keys, scale="paper", backend=backend)
    return middle + output[0, 0, 0, 0].double().logit()


@NEEDS_COMPILER
@pytest.mark.parametrize("instructions", [*INSTRUCTIONS, "portable"])
@pytest.mark.parametrize(
    ("num_keys", "gate"),
    [(1000, 3e-3), (1000, 0.03), (1000, 0.9), (16_384, 2e-4), (16_384, 1e-3), (16_384, 0.1), (16_384, 0.9)],
)
def test_equal_gates_are_not_rounded_away(num_keys, gate, instructions, monkeypatch):
    """They are rounded alike, so errors add up: to no more than positions.h says, beside what single precision loses anyway."""
    use_kernel_for(instructions, monkeypatch)
    gate_logit = round(math.log(gate / (1 - gate)) * 64) / 64  # exact in single precision
    last = math.ceil(num_keys * gate)
    units = 32 if num_keys > 1024 else num_keys / 2
    for num_positions in (last + 3, 200_000):
        expected = farthest_position(num_keys, gate_logit, num_positions, torch.float64, "reference")
        found = farthest_position(num_keys, gate_logit, num_positions, torch.float32, "native")
        assert abs(found - expected) <= units * 2**-24 + 3e-7 * max(expected, 1)


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


@NEEDS_COMPILER
@pytest.mark.parametrize("instructions", [*INSTRUCTIONS, "portable"])
def test_native_for_every_kind_of_processor(instructions, monkeypatch):
    use_kernel_for(instructions, monkeypatch)
    for settings_drawn in (HALVES, OPEN, LARGE):
        compare_with_reference(settings_drawn, "native", "released", tolerance=5e-5)
    mixed = dict(
        num_queries=100, num_keys=140, num_positions=30, gates="separate", relative=50, bias=(2, 70), head_dim=24, value_dim=40
    )
    compare_with_reference(mixed, "native", "paper", tolerance=5e-5)
