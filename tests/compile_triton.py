"""Compiles every Triton kernel for a GPU that need not be here: ``python tests/compile_triton.py 90 bfloat16``.

Prints, for each, its name and the shared memory of a block in bytes. Registers and spills are ptxas's to tell:
``python tests/compile_triton.py 90 bfloat16 ptxas``. With padding and grouped heads: ``... masked``. The sizes are those of the
launcher, for the shape of GPT-2's heads. ``... options``: with all options that may be tried, too, without dropout.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.jit import MockTensor

from cope.kernels.operator import Arguments
from cope.kernels.triton import launch
from cope.kernels.triton.attend import forward_kernel, z_kernel
from cope.kernels.triton.compiler_options import Options, in_words
from cope.kernels.triton.distance_gradients import distance_gradients_kernel
from cope.kernels.triton.key_gradients import key_gradients_kernel
from cope.kernels.triton.parts import count_part_kernel, join_parts_kernel
from cope.kernels.triton.query_gradients import query_gradients_kernel
from cope.kernels.triton.tiles import Inputs, View

HEAD_DIM, NUM_POSITIONS, LENGTH = 64, 64, 1024


class NoDevice:
    """What Triton asks of a driver when it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(dtype: torch.dtype, masked: bool, every_option: bool) -> Iterator[tuple[Any, Options]]:
    """Every kernel, for such tensors; ``masked``: with padding, and three heads of queries to one of keys."""

    def view(group_size: int = 1) -> View:
        return View(MockTensor(dtype), (LENGTH * 768, HEAD_DIM, 768), group_size)

    sizes_of = launch.Launch.__new__(launch.Launch)  # its sizes alone are asked for: no kernel is launched
    tensor = torch.empty(1, 12, LENGTH, HEAD_DIM, dtype=dtype, device="meta")
    sizes_of.given = Arguments(tensor, tensor, tensor, None, None, None, None, 1.0, 0.0, None, None)
    sizes_of.half = dtype != torch.float32
    own, f32, i32, i64 = (MockTensor(of) for of in (dtype, torch.float32, torch.int32, torch.int64))
    keys_and_values = view(3 if masked else 1)
    inputs = Inputs(
        q=view(), k=keys_and_values, v=keys_and_values, gate_keys=None, z=i64, relative=None, bias=None,
        seed=None if every_option else i64, key_mask=MockTensor(torch.int8) if masked else None, first_head=3, num_heads=12,
        head_dim=HEAD_DIM, value_dim=HEAD_DIM, num_positions=NUM_POSITIONS, num_distances=0, num_biases=0, bias_stride=0,
        scale=0.125, dropout=0.1,
    )  # fmt: skip
    lengths, rows = (LENGTH, LENGTH), LENGTH

    def each(name: str, kernel: Any, *arguments: Any) -> Iterator[tuple[Any, Options]]:
        sizes = sizes_of.sizes(name)
        candidates = sizes_of.options(name, sizes)
        default = kernel.warmup(*arguments, grid=(1,), **sizes)
        yield default, candidates[0]
        for options in candidates[1:] if every_option else ():
            found = kernel.warmup(*arguments, grid=(1,), **sizes | options)
            if options.get("QUERIES") == sizes.get("QUERIES"):
                assert order_of_sums(found) == order_of_sums(default), (name, options)
            yield found, options

    forward = sizes_of.sizes("forward")
    padded = {"HEAD_DIM": HEAD_DIM, "PRECISION": forward["PRECISION"]}
    z = z_kernel.warmup(
        view(), own, i64, 0.1, 12, *lengths, NUM_POSITIONS, HEAD_DIM, grid=(1,), ROWS=64, POSITIONS=64, **padded
    )
    yield z, {}
    yield count_part_kernel.warmup(inputs, i64, *lengths, 2, grid=(1,), **forward), {}
    for meetings in ((i32, i64), (None, None)):  # with a table, and without
        joined = (f32, f32, *meetings, own, f32, i32, i64)
        yield join_parts_kernel.warmup(*joined, 12, 1, 2, NUM_POSITIONS, HEAD_DIM, grid=(1,), PARTS=16, VALUE_DIM=HEAD_DIM), {}
    yield from each("forward", forward_kernel, inputs, own, f32, i32, i64, None, None, *lengths, 1)
    yield from each(
        "queries", query_gradients_kernel, inputs, own, 0.125, view(), view(), f32, i32, i64, f32, i32, i64, f32, i32, i64,
        own, own, None, *lengths, rows,
    )  # fmt: skip
    yield from each("keys", key_gradients_kernel, inputs, view(), f32, i32, i64, f32, i32, own, own, None, None, *lengths, rows)
    by_distance = inputs._replace(z=None, relative=own)
    sizes_of.given = sizes_of.given._replace(relative=tensor[0, 0])
    yield from each(
        "distances", distance_gradients_kernel, by_distance, view(), f32, None, None, f32, None, f32, -3, 16, *lengths, rows, 12
    )


def order_of_sums(kernel: Any) -> set[str]:
    """Which numbers of a tile are added up, and how they lie among threads, which says in what order."""
    code = kernel.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", code, re.MULTILINE))
    reduced = re.findall(r'"tt\.(?:reduce|scan)"\(.*?axis = (\d)[\s\S]*?\}\) : \((tensor<[^)]*)\)', code)
    found = {f"sum along {axis} of {tensor}" for axis, tensor in reduced}
    for types in re.findall(r"(?:warp_group_dot|tt\.dot) .* : (.*)$", code, re.MULTILINE):
        factors, result = types.split(" loc(")[0].split(" -> ")
        found.add(f"product {re.findall('<((?:[0-9]+x)+[a-z0-9]+)', factors)} -> {result}")
    return {re.sub(r"#\w+\b", lambda name: layouts.get(name[0], name[0]), one) for one in found}


def check_products(kernel: Any) -> None:
    """No tensor core's product starts from a constant but 0: see :func:`cope.kernels.triton.tiles.settled`."""
    constants = dict(re.findall(r"(%\w+) = arith\.constant dense<([^>]+)>", kernel.asm["ttgir"]))
    for start in re.findall(r"warp_group_dot %[\w#]+, %[\w#]+, (%\w+)", kernel.asm["ttgir"]):
        assert float(constants.get(start, 0)) == 0, f"{kernel.metadata.name}: a product starts from {constants[start]}"


def registers(kernel: Any, capability: int) -> str:
    """Registers and spills, as ptxas reports them."""
    suffix = "a" if capability >= 90 else ""
    assembler = get_ptxas(capability).path
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel.asm["ptx"])
        file.flush()
        said = subprocess.run(
            [assembler, "-v", f"-arch=sm_{capability}{suffix}", file.name, "-o", os.devnull], capture_output=True, text=True
        ).stderr
    found = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    return f"{found[0][1]} registers, {found[1][1]} + {found[1][2]} bytes spilled" if all(found) else said


if __name__ == "__main__":
    target = int(sys.argv[1])
    triton.runtime.driver.set_active(NoDevice(target))
    for kernel, options in compiled(getattr(torch, sys.argv[2]), "masked" in sys.argv, "options" in sys.argv):
        check_products(kernel)
        told = [kernel.metadata.name, kernel.metadata.shared]
        told += [in_words(options)] if "options" in sys.argv else []
        told += [registers(kernel, target)] if "ptxas" in sys.argv else []
        print(*told, flush=True)
