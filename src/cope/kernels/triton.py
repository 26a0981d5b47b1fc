"""CoPE attention for NVIDIA GPUs, in Triton: see ``triton_kernels.py`` for what the kernels compute and how.

With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, the kernels run on CPU tensors in Triton's
interpreter: the way to test them without a GPU.
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cope.kernels.operator import Arguments, empty_heads, make_operator

if TYPE_CHECKING:
    from cope.kernels.triton_kernels import Inputs, View


def missing(device_type: str, dtype: torch.dtype) -> str | None:
    """What the kernels lack to run on such tensors, as a clause; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install triton)"
    if dtype != torch.float32:
        return f"it computes in float32, these tensors are {str(dtype).removeprefix('torch.')}"
    if device_type == "cpu" and _interpreted():
        return None
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


def forward(given: Arguments) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; see :mod:`cope.kernels.operator`."""
    q = given.q
    output, log_sum_exp = empty_heads(q, given.v.shape[-1]), q.new_empty(q.shape[:-1])
    if log_sum_exp.numel() > 0:
        from cope.kernels import triton_kernels

        inputs = _inputs(given)
        settings = _settings(inputs)
        grid = (log_sum_exp.shape[:-1].numel() * math.ceil(inputs.num_queries / settings["BLOCK"]),)
        with torch.cuda.device_of(q):
            triton_kernels.forward_kernel[grid](inputs, output, log_sum_exp, **settings)
    return output, log_sum_exp


def backward(
    grad_output: Tensor,
    output: Tensor,
    log_sum_exp: Tensor,
    given: Arguments,
) -> list[Tensor]:
    """The gradients of the tensors that are there; see :mod:`cope.kernels.operator`."""
    if log_sum_exp.numel() == 0:
        return [gradient.zero_() for gradient in given.empty_gradients()]
    q, k, v, table, gate_keys, relative, bias, table_scale, *_ = given
    from cope.kernels import triton_kernels

    inputs = _inputs(given)
    settings = _settings(inputs)
    block = settings["BLOCK"]
    without_values = {name: setting for name, setting in settings.items() if name != "VALUE_DIM"}
    num_heads_in_all = q.shape[0] * q.shape[1]  # across the batch
    num_query_blocks, num_key_blocks = math.ceil(inputs.num_queries / block), math.ceil(inputs.num_keys / block)

    dq, dk, dv = empty_heads(q), empty_heads(k), empty_heads(v)
    counts = dp_before = dz = dtable = dgate_keys = drelative = dbias = None
    delta = (grad_output * output).sum(-1).contiguous()
    incoming = (_view(grad_output), log_sum_exp.contiguous(), delta)
    with torch.cuda.device_of(q):
        by_queries, by_keys = (num_heads_in_all * num_query_blocks,), (num_heads_in_all * num_key_blocks,)
        if table is not None:
            counts = q.new_empty(num_heads_in_all, num_key_blocks, inputs.num_queries, dtype=torch.int32)
            dp_before = q.new_empty(counts.shape)
            dz = torch.zeros_like(inputs.z)
            triton_kernels.count_kernel[by_queries](inputs, counts, **without_values)
        triton_kernels.query_gradients_kernel[by_queries](inputs, *incoming, counts, dp_before, dq, dz, **settings)
        dgate_keys = None if gate_keys is None else empty_heads(gate_keys)
        triton_kernels.key_gradients_kernel[by_keys](inputs, *incoming, counts, dp_before, dk, dv, dgate_keys, **settings)
        if relative is not None or bias is not None:
            # All diagonals of tiles, query block - key block, that have a distance of 0 or more in them.
            first_diagonal = -((inputs.num_keys - inputs.num_queries + block - 1) // block)
            num_diagonals = num_query_blocks - first_diagonal
            sums = (num_heads_in_all, num_diagonals, 2 * block)
            relative_sums = None if relative is None else q.new_empty(*sums, relative.shape[-1])
            bias_sums = None if bias is None else q.new_empty(*sums, 1)
            triton_kernels.distance_gradients_kernel[(num_heads_in_all * num_diagonals,)](
                inputs, *incoming, counts, relative_sums, bias_sums, first_diagonal, num_diagonals, **settings
            )
            first_distance = first_diagonal * block + inputs.num_keys - inputs.num_queries - (block - 1)
            if relative is not None and relative_sums is not None:
                drelative = _by_distance(relative_sums.sum(0, keepdim=True), first_distance, relative.shape[0])[0]
            if bias is not None and bias_sums is not None:
                per_head = bias_sums.unflatten(0, q.shape[:2]).sum(0)
                dbias = _by_distance(per_head, first_distance, bias.shape[-1])[..., 0].sum_to_size(bias.shape)
    if table is not None and dz is not None:
        dq += dz @ table * table_scale
        dtable = dz.flatten(0, -2).transpose(0, 1) @ q.flatten(0, -2) * table_scale
    return [gradient for gradient in (dq, dk, dv, dtable, dgate_keys, drelative, dbias) if gradient is not None]


def _inputs(given: Arguments) -> Inputs:
    from cope.kernels.triton_kernels import Inputs

    q, k, v, table, gate_keys, relative, bias, table_scale, dropout, seed = given
    return Inputs(
        q=_view(q),
        k=_view(k),
        v=_view(v),
        gate_keys=None if table is None or gate_keys is None else _view(gate_keys),
        z=None if table is None else (q @ table.transpose(0, 1) * table_scale).contiguous(),
        relative=None if relative is None else relative.contiguous(),
        bias=None if bias is None else bias.contiguous(),
        # Odd, because Triton compiles a kernel once more for numbers that 16 divides.
        seed=None if seed is None else int(seed) | 1,
        num_heads=q.shape[1],
        num_queries=q.shape[2],
        num_keys=k.shape[2],
        head_dim=q.shape[3],
        value_dim=v.shape[3],
        num_positions=0 if table is None else table.shape[0],
        furthest=0 if table is None else min(table.shape[0] - 1, k.shape[2]),
        num_distances=0 if relative is None else relative.shape[0],
        num_biases=0 if bias is None else bias.shape[1],
        bias_stride=0 if bias is None or bias.shape[0] == 1 else bias.shape[1],
        scale=1.0 / math.sqrt(q.shape[3]),
        dropout=dropout,
    )


def _view(tensor: Tensor) -> View:
    from cope.kernels.triton_kernels import View

    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return View(tensor, (tensor.stride(0), tensor.stride(1), tensor.stride(2)))


def _settings(inputs: Inputs) -> dict[str, Any]:
    """The sizes that kernels are compiled for, the same for all kernels of a call.

    Chosen by what the compiler reports for sm_80 and sm_90, registers above all; not by measurement.
    """

    def padded(size: int) -> int:
        """Tensor cores take powers of two from 16 up."""
        return max(16, 1 << (size - 1).bit_length())

    head_dim, value_dim = padded(inputs.head_dim), padded(inputs.value_dim)
    # Larger tiles do not fit into a GPU's registers: each product as three takes its factors in two parts each.
    large = max(head_dim, value_dim) > 64
    block = 16 if large else 32
    # As many fraction bits for positions as an int32 has room for, when a block's gates are added to the furthest position. A
    # gate has no more than 24 bits itself; from 24 on, the rounding of gate + 1/2 would not be exact.
    bits = min(23, 31 - (inputs.furthest + block).bit_length())
    # As few warps as registers allow. One stage: no loads ahead of their use, which would take more registers and shared
    # memory, and would have to know that dz is both written and read.
    launch = {"num_warps": 8 if large or inputs.relative is not None else 4, "num_stages": 1}
    return {"BITS": bits, "BLOCK": block, "HEAD_DIM": head_dim, "VALUE_DIM": value_dim, **launch}


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


attention = make_operator("triton", forward, backward)
