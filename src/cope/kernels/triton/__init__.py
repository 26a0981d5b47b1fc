"""CoPE attention for NVIDIA GPUs, in Triton: this file launches the kernels.

Tiles in ``tiles.py``, ``counting.py`` and ``logits.py``; the forward pass in ``attend.py``, of few queries in ``parts.py``; the
gradients in ``gradients.py``.

float32, bfloat16 and float16 are multiplied as they are, with sums in float32. float32 is multiplied as three TF32 products,
which together are about as exact as float32. ``torch.set_float32_matmul_precision("high")`` (``trainer.precision=tf32``) takes
one, with 10 bits: a gate is then off by up to 1e-3, and a position by the sum of that.

With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, the kernels run on CPU tensors in Triton's
interpreter: the way to test them without a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cope.kernels.operator import Arguments, empty_heads, make_operator
from cope.kernels.triton.launch import FEW_QUERIES, KEYS_PER_PART, PARTS_AT_A_TIME, ROW_MULTIPLE, Launch, launches, view

if TYPE_CHECKING:
    from cope.kernels.triton.tiles import View

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def missing(device_type: str, dtype: torch.dtype) -> str | None:
    """What the kernels lack to run on such tensors, as a clause; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install triton)"
    if dtype not in DTYPES:
        return f"it computes in float32, bfloat16 and float16, these tensors are {str(dtype).removeprefix('torch.')}"
    if device_type == "cpu" and _interpreted():
        # The interpreter keeps bfloat16 as whole numbers, and multiplies these.
        return "Triton's interpreter cannot multiply bfloat16" if dtype == torch.bfloat16 else None
    if device_type != "cuda":
        return (
            f"it runs on cuda tensors, these are on {device_type}; TRITON_INTERPRET=1 lets it run on the CPU, slowly, for tests"
        )
    if torch.version.hip is not None:
        return "it is written for NVIDIA GPUs, this is an AMD GPU"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"it needs a GPU of compute capability 8.0 (Ampere, 2020) or newer, this one has {major}.{minor}"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def empty_saved(given: Arguments) -> list[Tensor]:
    """What the forward pass leaves for the backward pass: log-sum-exp, where the zones meet, and the count there."""
    rows = given.q.shape[:-1]
    dtypes = (torch.float32, torch.int32, torch.int64)
    return [given.q.new_empty(rows, dtype=dtype) for dtype in dtypes]


def forward(given: Arguments) -> tuple[Tensor, ...]:
    """Output and what is saved; see :mod:`cope.kernels.operator`."""
    output, saved = empty_heads(given.q, given.v.shape[-1]), empty_saved(given)
    if output.shape[:-1].numel() > 0:
        in_parts = given.q.shape[2] <= FEW_QUERIES and given.k.shape[2] > KEYS_PER_PART
        attend = _forward_in_parts if in_parts else _forward
        with torch.cuda.device_of(output):
            for launch, part in launches(given):
                attend(launch, output[part], *(tensor[part] for tensor in saved))
    return output, *saved


def _forward(launch: Launch, output: Tensor, *saved: Tensor) -> None:
    from cope.kernels.triton.attend import forward_kernel

    sizes = launch.sizes("forward")
    blocks = launch.num_heads * -(-launch.lengths[0] // sizes["QUERIES"])
    scratch = launch.scratch(blocks, sizes)
    arguments = (launch.inputs, output, *saved, None, scratch, *launch.lengths, 1)
    launch.start("forward", forward_kernel, (blocks, 1), arguments, written=(output, *saved))


def _forward_in_parts(launch: Launch, output: Tensor, *saved: Tensor) -> None:
    """A few queries against many keys, as in decoding: the keys in parts, each with a program of its own."""
    from cope.kernels.triton.attend import forward_kernel
    from cope.kernels.triton.parts import count_part_kernel, join_parts_kernel

    given, sizes = launch.given, launch.sizes("forward")
    batch, num_heads, num_queries = given.q.shape[:3]
    num_parts = -(-launch.lengths[1] // KEYS_PER_PART)
    grid = (launch.num_heads * -(-num_queries // sizes["QUERIES"]), num_parts)
    counts = meetings = meeting_counts = None
    if given.table is not None:
        counts = output.new_empty(launch.num_heads, num_parts, num_queries, dtype=torch.int64)
        count_part_kernel[grid](launch.inputs, counts, *launch.lengths, num_parts, **sizes)
        meetings, meeting_counts = (tensor.new_empty(num_parts, *tensor.shape) for tensor in saved[1:])
    outputs = output.new_empty(num_parts, batch, num_queries, num_heads, output.shape[-1], dtype=torch.float32)
    sums = saved[0].new_empty(num_parts, *saved[0].shape)
    scratch = launch.scratch(grid[0] * num_parts, sizes)
    forward_kernel[grid](
        launch.inputs, outputs, sums, meetings, meeting_counts, counts, scratch, *launch.lengths, num_parts, **sizes
    )
    join_parts_kernel[(launch.num_heads * num_queries,)](
        outputs, sums, meetings, meeting_counts, output, *saved, num_heads, num_queries, num_parts, launch.num_positions,
        output.shape[-1], PARTS=PARTS_AT_A_TIME, VALUE_DIM=sizes["VALUE_DIM"],
    )  # fmt: skip


def backward(grad_output: Tensor, given: Arguments, output: Tensor, *saved: Tensor) -> list[Tensor]:
    """The gradients of the tensors that are there; see :mod:`cope.kernels.operator`."""
    gradients = given.empty_gradients()
    if output.shape[:-1].numel() == 0:
        return [gradient.zero_() for gradient in gradients]
    names = [name for name, tensor in zip(given._fields[:7], given[:7], strict=True) if tensor is not None]
    found = dict(zip(names, gradients, strict=True))
    shared = {name: torch.zeros_like(found[name], dtype=torch.float32) for name in names if found[name].dim() == 2}
    with torch.cuda.device_of(output):
        for launch, part in launches(given):
            own = {name: gradient[part] for name, gradient in found.items() if gradient.dim() == 4}
            by_head = {name: _by_head(gradient, launch) for name, gradient in own.items()}
            _gradients(launch, by_head, shared, grad_output[part], output[part], *(tensor[part] for tensor in saved))
            for name, gradient in own.items():
                if gradient is not by_head[name]:
                    gradient.copy_(by_head[name].unflatten(1, (-1, given.group_size)).sum(2))
    for name, total in shared.items():
        found[name].copy_(total)
    return gradients


def _by_head(gradient: Tensor, launch: Launch) -> Tensor:
    """Room for a gradient of keys or values that is written head by head of the queries, since programs share nothing."""
    batch, num_heads, time, size = gradient.shape
    if num_heads == launch.given.q.shape[1]:
        return gradient
    return gradient.new_empty(batch, time, num_heads * launch.given.group_size, size).transpose(1, 2)


def _gradients(
    launch: Launch,
    own: dict[str, Tensor],
    shared: dict[str, Tensor],
    grad_output: Tensor,
    output: Tensor,
    *saved: Tensor,
) -> None:
    """Writes the gradients that belong to these sequences alone, and adds to those that all share."""
    from cope.kernels.triton.key_gradients import key_gradients_kernel
    from cope.kernels.triton.query_gradients import query_gradients_kernel

    given, q, lengths, table = launch.given, launch.given.q, launch.lengths, launch.table
    by_queries, by_keys = launch.sizes("queries"), launch.sizes("keys")
    num_query_blocks = launch.num_heads * -(-lengths[0] // by_queries["QUERIES"])
    num_edges = -(-lengths[1] // by_keys["KEYS"])
    num_key_blocks = launch.num_heads * num_edges
    num_rows = -(-lengths[0] // ROW_MULTIPLE) * ROW_MULTIPLE
    statistics = q.new_empty(3, launch.num_heads, num_rows, dtype=torch.float32)
    counted_from = edge_counts = edge_sums = last_counted = crossings = dz = None
    if table is not None:
        edges = (launch.num_heads, num_edges, num_rows)
        counted_from = q.new_empty(launch.num_heads, num_rows, dtype=torch.int32)
        edge_counts, edge_sums = q.new_empty(edges, dtype=torch.int64), q.new_empty(edges, dtype=torch.float32)
        last_counted = q.new_zeros(edges[:2], dtype=torch.int32)
        crossings = q.new_empty(*q.shape[:3], launch.num_positions, dtype=torch.int64)
        dz = torch.empty_like(crossings, dtype=q.dtype)
    grad = view(grad_output)
    left = (statistics, counted_from, edge_counts, edge_sums, last_counted)  # by the first kernel for the others
    written = (*left, crossings, dz, own["q"])
    scratch = launch.scratch(num_query_blocks, by_queries)
    arguments = (
        launch.inputs, table, given.table_scale, view(output), grad, *saved, *written, scratch, *lengths, num_rows
    )  # fmt: skip
    launch.start("queries", query_gradients_kernel, (num_query_blocks,), arguments, written)
    own_gradients = (own["k"], own["v"], own.get("gate_keys"))
    scratch = launch.scratch(num_key_blocks, by_keys)
    arguments = (launch.inputs, grad, *left, *own_gradients, scratch, *lengths, num_rows)
    launch.start("keys", key_gradients_kernel, (num_key_blocks,), arguments, own_gradients)
    if dz is not None:
        product = dz.flatten(0, -2).transpose(0, 1) @ q.flatten(0, -2)
        shared["table"][: launch.num_positions] += product.float() * given.table_scale
    if given.relative is not None or given.bias is not None:
        _gradients_by_distance(launch, shared, grad, statistics, counted_from, edge_counts, num_rows)


def _gradients_by_distance(
    launch: Launch,
    shared: dict[str, Tensor],
    grad_output: View,
    statistics: Tensor,
    counted_from: Tensor | None,
    edge_counts: Tensor | None,
    num_rows: int,
) -> None:
    """Adds to the gradients of ``relative`` and ``bias``."""
    from cope.kernels.triton.distance_gradients import distance_gradients_kernel

    given, (num_queries, num_keys), sizes = launch.given, launch.lengths, launch.sizes("distances")
    block = sizes["BLOCK"]
    # All diagonals of tiles, query block - key block, that have a distance of 0 or more in them.
    first_diagonal = -((num_keys - num_queries + block - 1) // block)
    num_diagonals = -(-num_queries // block) - first_diagonal
    programs = launch.num_heads * num_diagonals
    sums = (launch.num_heads, num_diagonals, 2 * block)
    relative_sums = None if given.relative is None else statistics.new_empty(*sums, given.relative.shape[-1])
    bias_sums = None if given.bias is None else statistics.new_empty(*sums, 1)
    scratch = statistics.new_empty(programs, block, 2 * block)
    arguments = (
        launch.inputs, grad_output, statistics, counted_from, edge_counts, relative_sums, bias_sums, scratch,
        first_diagonal, num_diagonals, num_queries, num_keys, num_rows, launch.num_heads,
    )  # fmt: skip
    launch.start("distances", distance_gradients_kernel, (programs,), arguments, written=(relative_sums, bias_sums))
    first_distance = first_diagonal * block + num_keys - num_queries - (block - 1)
    if relative_sums is not None:
        shared["relative"] += _by_distance(relative_sums.sum(0, keepdim=True), first_distance, len(shared["relative"]))[0]
    if bias_sums is not None:
        per_head = bias_sums.unflatten(0, given.q.shape[:2]).sum(0)
        by_distance = _by_distance(per_head, first_distance, shared["bias"].shape[-1])[..., 0]
        shared["bias"] += by_distance.sum_to_size(shared["bias"].shape)


def _by_distance(sums: Tensor, first_distance: int, num_distances: int) -> Tensor:
    """(heads, diagonal, 2 block, n), from tiles along the diagonals -> (heads, distance, n).

    The sums of a diagonal are those of 2 block distances; the next diagonal's begin half of them later. The first of all is
    for first_distance, which may be negative: nothing is there.
    """
    heads, diagonals, twice, n = sums.shape
    block = twice // 2
    by_distance = sums.new_zeros(heads, (diagonals + 1) * block, n)
    by_distance[:, : diagonals * block] += sums[:, :, :block].flatten(1, 2)
    by_distance[:, block:] += sums[:, :, block:].flatten(1, 2)
    by_distance = by_distance[:, -first_distance:]
    result = sums.new_zeros(heads, num_distances, n)
    own = by_distance[:, : num_distances - 1]
    result[:, : own.shape[1]] = own
    # The last entry serves all further distances too.
    result[:, -1] = by_distance[:, num_distances - 1 :].sum(1)
    return result


attention = make_operator("triton", forward, backward, empty_saved)
