"""The Triton kernels: in Triton's interpreter, on the CPU, against the reference; and compiled for GPUs that are not here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import HALVES, OPEN, compare_with_reference, draw, gradients, padding, run

from cope import relative_attention
from cope.errors import UserError

pytest.importorskip("triton", reason="triton is not installed: pip install triton")
from cope.kernels import triton
from cope.kernels.triton import launch
from cope.kernels.triton.launch import Launch

# Its interpreter takes seconds for each of these: the first two run by default.
CASES = {
    "every argument": dict(
        num_queries=20, num_keys=33, num_positions=7, head_dim=8, value_dim=20, gates="separate", relative=50, bias=(2, 9)
    ),
    "a few queries, two zones and distances": dict(
        num_queries=4, num_keys=80, num_positions=16, batch=1, head_dim=8, relative=20, shift=1.0
    ),
    "gates of one half": HALVES,
    "open gates": OPEN,
    "several blocks by distance": dict(num_queries=150, num_keys=170, num_positions=30, batch=1, relative=40, bias=(1, 70)),
    "two zones": dict(num_queries=150, num_keys=200, num_positions=7, batch=1, head_dim=16, value_dim=16, shift=1.0),
    "sparse gates": dict(num_queries=70, num_keys=70, num_positions=64, batch=1, head_dim=32, value_dim=32, shift=-3.0),
    "more positions than keys": dict(num_queries=70, num_keys=75, num_positions=300, batch=1, shift=2.0),
    "one position": dict(num_queries=50, num_keys=70, num_positions=1),
    "one query": dict(num_queries=1, num_keys=40, num_positions=300, relative=5),
}


@pytest.mark.parametrize(
    "drawn",
    [
        pytest.param(drawn, id=name, marks=() if number < 2 else pytest.mark.slow)
        for number, (name, drawn) in enumerate(CASES.items())
    ],
)
def test_triton_equals_reference_in_values_and_gradients(drawn):
    compare_with_reference(drawn, "triton", "released", tolerance=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("drawn", CASES.values(), ids=CASES)
def test_half_precision_to_the_error_of_ordinary_attention(drawn):
    """float16 products with float32 sums: 2e-3 of the largest number is what rounding inputs, weights and ds to it costs."""
    compare_with_reference(drawn, "triton", "released", tolerance=2e-3, dtype=torch.float16)


@pytest.mark.slow
def test_half_as_many_queries_at_a_time_give_the_same_gradients(monkeypatch):
    """An option of the kernel of key gradients. Here to rounding; on a GPU it is taken only if it gives the same bits."""
    drawn = CASES["two zones"] | {"dtype": torch.float16}
    expected = gradients(values := draw(**drawn), run(values, "triton"))
    of_default = Launch.sizes
    smaller: list[int] = []

    def sizes(launch: Launch, kernel: str) -> dict[str, Any]:
        options = launch.options(kernel, of_default(launch, kernel))[-1] if kernel == "keys" else {}
        smaller.append(options.get("QUERIES", 0))
        return of_default(launch, kernel) | options

    monkeypatch.setattr(Launch, "sizes", sizes)
    found = gradients(values, run(values, "triton"))
    assert 32 in smaller
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3 * expected[name].abs().max().item())


def test_bfloat16_is_refused_where_the_interpreter_would_multiply_its_bits():
    values = draw(4, 4, 3, dtype=torch.bfloat16)
    with pytest.raises(UserError, match="backend=triton cannot be had: Triton's interpreter cannot multiply bfloat16"):
        run(values, "triton")


@pytest.mark.slow
@pytest.mark.parametrize("num_keys", [513, 1200])
@pytest.mark.parametrize("num_queries", [1, 5])
@pytest.mark.parametrize("num_positions", [9, 400])
def test_a_few_queries_share_the_keys_among_programs(num_queries, num_keys, num_positions):
    assert num_queries <= launch.FEW_QUERIES and num_keys > launch.KEYS_PER_PART
    drawn = dict(num_queries=num_queries, num_keys=num_keys, num_positions=num_positions, batch=1, shift=-1.0)
    compare_with_reference(drawn, "triton", "paper", tolerance=5e-5)


@pytest.mark.slow
def test_parts_are_joined_a_few_at_a_time(monkeypatch):
    """Of grouped heads too, and where parts or whole rows are padding."""
    monkeypatch.setattr(triton, "KEYS_PER_PART", 64)
    monkeypatch.setattr(triton, "PARTS_AT_A_TIME", 2)
    drawn = dict(num_queries=3, num_keys=330, num_positions=9, num_heads=4, num_key_heads=2, value_dim=5, shift=-1.0)
    key_mask = padding(330, [330, 100], "left")
    compare_with_reference(drawn, "triton", "paper", tolerance=5e-5, key_mask=key_mask)


@pytest.mark.slow
def test_parts_are_joined_without_positions_too(monkeypatch):
    monkeypatch.setattr(triton, "KEYS_PER_PART", 64)
    monkeypatch.setattr(triton, "PARTS_AT_A_TIME", 2)
    values = draw(3, 330, None, relative=200, bias=(2, 50), dtype=torch.float32)
    q, k, v, relative, bias = (values[name] for name in ("q", "k", "v", "relative", "bias"))
    found, expected = (relative_attention(q, k, v, relative, bias=bias, backend=name) for name in ("triton", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_batch_in_groups_gives_what_it_gives_at_once(monkeypatch, dropout):
    values = draw(70, 80, 9, batch=3, gates="separate", relative=30, bias=(2, 20), dtype=torch.float32)
    results = []
    monkeypatch.setattr(launch, "ENOUGH_PROGRAMS", 1)
    for workspace in (launch.WORKSPACE_BYTES, 1):
        monkeypatch.setattr(launch, "WORKSPACE_BYTES", workspace)
        torch.manual_seed(0)
        output = run(values, "triton", dropout=dropout)
        results.append({"output": output, **gradients(values, output)})
    at_once, in_groups = results
    for name in at_once:
        if at_once[name].dim() == 4:  # a sequence's own
            assert torch.equal(in_groups[name], at_once[name]), name
        else:  # added up over the batch
            torch.testing.assert_close(in_groups[name], at_once[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradients_are_the_same_to_the_bit_from_run_to_run():
    values = draw(90, 90, 20, gates="separate", relative=40, bias=(2, 9), dtype=torch.float32)
    first, second = (gradients(values, run(values, "triton")) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_positions_do_not_depend_on_how_keys_are_cut_into_tiles(monkeypatch):
    values = draw(100, 100, 30, batch=1, head_dim=16, value_dim=16, dtype=torch.float32)
    ordinary = run(values, "triton")
    sizes = Launch.sizes
    monkeypatch.setattr(Launch, "sizes", lambda own, kernel: sizes(own, kernel) | {"KEYS": 16})
    torch.testing.assert_close(run(values, "triton"), ordinary, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_uneven_sizes_of_the_two_zones(monkeypatch):
    """Blocks of other kernels, and of plain tiles, are whole blocks of those that count."""
    chosen: dict[str, dict[str, Any]] = {
        "forward": {"QUERIES": 64, "KEYS": 32, "PLAIN_KEYS": 64},
        "queries": {"QUERIES": 64, "KEYS": 16, "PLAIN_KEYS": 64, "EDGE_KEYS": 32},
        "keys": {"QUERIES": 32, "PLAIN_QUERIES": 64, "KEYS": 32},
    }
    sizes = Launch.sizes
    monkeypatch.setattr(Launch, "sizes", lambda own, kernel: sizes(own, kernel) | chosen[kernel])
    for num_positions, shift in ((8, 0.0), (40, -2.0)):
        drawn = dict(
            num_queries=150, num_keys=200, num_positions=num_positions, batch=1, head_dim=16, value_dim=16, shift=shift
        )
        compare_with_reference(drawn, "triton", "released", tolerance=5e-5)


@pytest.mark.slow
def test_more_positions_than_any_query_reaches_leave_their_gradients_zero():
    values = draw(20, 20, 500, dtype=torch.float32)
    found = gradients(values, run(values, "triton"))["table"]
    assert (found[22:] == 0).all() and (found[:3].abs().sum(-1) > 0).all()


def test_kernels_return_no_none():
    """Triton 3.6, which PyTorch 2.11 brings, cannot compile one; later versions and the interpreter can."""
    for path in Path(triton.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and "triton.jit" in map(ast.unparse, function.decorator_list):
                returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
                assert "None" not in [ast.unparse(value) for value in returned if value is not None], function.name


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("tensors", [["bfloat16"], ["bfloat16", "masked"], ["float32"]], ids=" ".join)
def test_kernels_compile_for_gpus(capability, tensors):
    """In a process of its own, without the interpreter."""
    script = Path(__file__).with_name("compile_triton.py")
    finished = subprocess.run([sys.executable, script, str(capability), *tensors], capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]
    lines = finished.stdout.splitlines()
    assert len(lines) == 8, finished.stdout
    limit = {80: 163, 90: 227}[capability]  # KiB of shared memory a block
    for line in lines:
        name, shared = line.split()
        assert int(shared) <= limit * 1024, name


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_options_that_may_be_tried_compile_and_leave_the_order_of_sums(capability):
    """The script compares each with the default, by Triton's own listing."""
    script = Path(__file__).with_name("compile_triton.py")
    command = [sys.executable, script, str(capability), "bfloat16", "options", "ptxas"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert finished.returncode == 0, finished.stderr[-3000:]
    found = re.findall(r"^(\w+) (\d+) (num_stages=.*) (\d+) registers, (\d+) ", finished.stdout, re.MULTILINE)
    numbers = Counter(name for name, *_ in found)
    assert numbers == {f"{name}_kernel": 3 for name in ("forward", "query_gradients")} | {
        "key_gradients_kernel": 4, "distance_gradients_kernel": 1
    }, finished.stdout  # fmt: skip
    for name, shared, options, registers, _spilled in found:
        assert int(shared) <= {80: 163, 90: 227}[capability] * 1024, (name, options)
        limit = re.search(r"maxnreg=(\w+)", options)[1]
        assert limit == "any" or int(registers) <= int(limit), (name, options)


@pytest.mark.slow
def test_a_count_that_the_backward_pass_sums_a_unit_higher_changes_nothing(monkeypatch):
    """On a GPU the two passes may sum a product in another order; what is left at the end may be less than nothing."""
    values = draw(40, 60, 9, batch=1, gates="separate", dtype=torch.float32)
    with torch.no_grad():
        values["gate_keys"][..., -20:, 0] = -1000.0  # the last gates are closed: positions of exactly 0
    expected = gradients(values, run(values, "triton"))
    attend = triton._forward

    def a_unit_less(launch: Launch, output: torch.Tensor, *saved: torch.Tensor) -> None:
        attend(launch, output, *saved)
        saved[2].sub_(1)

    monkeypatch.setattr(triton, "_forward", a_unit_less)
    found = gradients(values, run(values, "triton"))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
