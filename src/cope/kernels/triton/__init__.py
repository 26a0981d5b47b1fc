"""CoPE attention for NVIDIA GPUs, in Triton: ``tiles.py`` says how positions are counted, ``forward_kernels.py`` and ``backward_kernels.py`` how
the kernels walk; this file launches them.

float32, bfloat16 and float16 are multiplied as they are, with sums in float32. What is float32 is multiplied as three TF32
products, which together are about as exact as float32; ``torch.set_float32_matmul_precision("high")`` (``trainer.precision=tf32``)
takes one, with 10 bits: a gate is then off by up to 1e-3, and a position by the sum of that.

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
    from cope.kernels.triton.tiles import Inputs, View

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KEYS_PER_PART = 512  # when decoding: as many keys as a program walks over
FEW_QUERIES = 16
ROW_MULTIPLE = 128  # every block of queries fits into it
# What the backward pass keeps for itself at a time: beyond that it goes through the heads in groups.
WORKSPACE_BYTES = 64 * 2**20


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
    q, k, v = given.q, given.k, given.v
    output, saved = empty_heads(q, v.shape[-1]), empty_saved(given)
    if output.shape[:-1].numel() == 0:
        return output, *saved
    from cope.kernels.triton import forward_kernels as kernels

    launch = _Launch(given)
    num_parts = -(-k.shape[2] // KEYS_PER_PART) if q.shape[2] <= FEW_QUERIES else 1
    sizes = launch.sizes("forward")
    blocks = launch.num_heads * -(-q.shape[2] // sizes["QUERIES"])
    lengths = (q.shape[2], k.shape[2], num_parts)
    with torch.cuda.device_of(q):
        inputs = launch.inputs()
        if num_parts == 1:
            kernels.forward_kernel[(blocks, 1)](inputs, output, *saved, None, launch.scratch(blocks, sizes), *lengths, **sizes)
            return output, *saved
        counts = None
        if given.table is not None:
            counts = q.new_empty(launch.num_heads, num_parts, q.shape[2], dtype=torch.int64)
            kernels.count_part_kernel[(blocks, num_parts)](inputs, counts, *lengths, **sizes)
        batch, num_heads, num_queries = q.shape[:3]
        outputs = q.new_empty(num_parts, batch, num_queries, num_heads, v.shape[-1], dtype=torch.float32)
        sums = q.new_empty(num_parts, batch, num_heads, num_queries, dtype=torch.float32)
        meetings, meeting_counts = (q.new_empty(sums.shape, dtype=tensor.dtype) for tensor in saved[1:])
        scratch = launch.scratch(blocks * num_parts, sizes)
        kernels.forward_kernel[(blocks, num_parts)](
            inputs, outputs, sums, meetings, meeting_counts, counts, scratch, *lengths, **sizes
        )
        shares = (sums * math.log(2)).softmax(0).transpose(2, 3).unsqueeze(-1)
        output.copy_((outputs * shares).sum(0).transpose(1, 2))
        saved[0].copy_(torch.logsumexp(sums * math.log(2), 0) / math.log(2))
        # A query's zones meet in the first part that has gates of its own, or at the last key.
        _join(saved, meetings, meeting_counts, given)
    return output, *saved


def _join(saved: list[Tensor], meetings: Tensor, meeting_counts: Tensor, given: Arguments) -> None:
    """Where the zones of a query meet, from where they meet in each part: where its count first reaches the last position."""
    if given.table is None:
        return
    reached = meeting_counts >> 22 >= given.table.shape[0] - 1
    num_parts = len(meetings)
    # The rightmost part at whose end the count has reached the last position; the leftmost if none has.
    part = torch.where(reached, torch.arange(num_parts, device=reached.device).view(-1, 1, 1, 1), 0).amax(0, keepdim=True)
    # A query's block meets as one: the smallest of its queries' meetings, each with the count there, is safe for all.
    saved[1].copy_(meetings.gather(0, part)[0])
    saved[2].copy_(meeting_counts.gather(0, part)[0])


def backward(grad_output: Tensor, given: Arguments, output: Tensor, *saved: Tensor) -> list[Tensor]:
    """The gradients of the tensors that are there; see :mod:`cope.kernels.operator`."""
    if output.shape[:-1].numel() == 0:
        return [gradient.zero_() for gradient in given.empty_gradients()]
    gradients = given.empty_gradients()
    q, k, _, table, _gate_keys, relative, bias, *_ = given
    names = [name for name in ("q", "k", "v", "table", "gate_keys", "relative", "bias") if getattr(given, name) is not None]
    found = dict(zip(names, gradients, strict=True))
    from cope.kernels.triton import backward_kernels as kernels

    launch = _Launch(given)
    by_queries, by_keys = launch.sizes("queries"), launch.sizes("keys")
    lengths = (q.shape[2], k.shape[2])
    num_query_blocks = launch.num_heads * -(-lengths[0] // by_queries["QUERIES"])
    num_key_blocks = -(-lengths[1] // by_keys["KEYS"])
    num_rows = -(-lengths[0] // ROW_MULTIPLE) * ROW_MULTIPLE
    statistics = q.new_empty(3, launch.num_heads, num_rows, dtype=torch.float32)
    counted_from = edge_counts = edge_sums = last_counted = crossings = dz = None
    log_sum_exp, meeting, meeting_count = saved
    with torch.cuda.device_of(q):
        inputs = launch.inputs()
        if table is not None:
            edges = (launch.num_heads, num_key_blocks, num_rows)
            counted_from = q.new_empty(launch.num_heads, num_rows, dtype=torch.int32)
            edge_counts, edge_sums = q.new_empty(edges, dtype=torch.int64), q.new_empty(edges, dtype=torch.float32)
            last_counted = q.new_zeros(edges[:2], dtype=torch.int32)
            crossings = q.new_empty(*q.shape[:3], table.shape[0], dtype=torch.int64)
            dz = torch.empty_like(crossings, dtype=q.dtype)
        grad = _view(grad_output)
        kernels.query_gradients_kernel[(num_query_blocks,)](
            inputs, launch.table, given.table_scale, _view(output), grad, log_sum_exp, meeting, meeting_count,
            statistics, counted_from, edge_counts, edge_sums, last_counted, crossings, dz, found["q"],
            launch.scratch(num_query_blocks, by_queries), *lengths, num_rows, **by_queries,
        )  # fmt: skip
        kernels.key_gradients_kernel[(launch.num_heads * num_key_blocks,)](
            inputs, grad, statistics, counted_from, edge_counts, edge_sums, last_counted, found["k"], found["v"],
            found.get("gate_keys"), launch.scratch(launch.num_heads * num_key_blocks, by_keys), *lengths, num_rows, **by_keys,
        )  # fmt: skip
        if table is not None and dz is not None:
            found["table"].copy_((dz.flatten(0, -2).transpose(0, 1) @ q.flatten(0, -2)) * given.table_scale)
        if relative is not None or bias is not None:
            sizes = launch.sizes("distances")
            block = sizes["BLOCK"]
            # All diagonals of tiles, query block - key block, that have a distance of 0 or more in them.
            first_diagonal = -((lengths[1] - lengths[0] + block - 1) // block)
            num_diagonals = -(-lengths[0] // block) - first_diagonal
            sums = (launch.num_heads, num_diagonals, 2 * block)
            relative_sums = None if relative is None else q.new_empty(*sums, relative.shape[-1], dtype=torch.float32)
            bias_sums = None if bias is None else q.new_empty(*sums, 1, dtype=torch.float32)
            programs = launch.num_heads * num_diagonals
            scratch = q.new_empty(programs, block, 2 * block, dtype=torch.float32)
            kernels.distance_gradients_kernel[(programs,)](
                inputs, grad, statistics, counted_from, edge_counts, relative_sums, bias_sums, scratch,
                first_diagonal, num_diagonals, *lengths, num_rows, launch.num_heads, **sizes,
            )  # fmt: skip
            first_distance = first_diagonal * block + lengths[1] - lengths[0] - (block - 1)
            if relative is not None and relative_sums is not None:
                found["relative"].copy_(_by_distance(relative_sums.sum(0, keepdim=True), first_distance, relative.shape[0])[0])
            if bias is not None and bias_sums is not None:
                per_head = bias_sums.unflatten(0, q.shape[:2]).sum(0)
                found["bias"].copy_(_by_distance(per_head, first_distance, bias.shape[-1])[..., 0].sum_to_size(bias.shape))
    return gradients


class _Launch:
    """The tensors of one call as kernels take them, and the sizes that kernels are compiled for."""

    def __init__(self, given: Arguments) -> None:
        self.given = given
        self.num_heads = given.q.shape[0] * given.q.shape[1]  # across the batch
        self.half = given.q.dtype != torch.float32
        self.table = None if given.table is None else given.table.contiguous()

    def inputs(self) -> Inputs:
        """What all kernels read, z among it."""
        from cope.kernels.triton.tiles import Inputs

        q, k, v, table, gate_keys, relative, bias, _, dropout, seed = self.given
        return Inputs(
            q=_view(q),
            k=_view(k),
            v=_view(v),
            gate_keys=None if table is None or gate_keys is None else _view(gate_keys),
            z=self._z(),
            relative=None if relative is None else relative.contiguous(),
            bias=None if bias is None else bias.float().contiguous(),
            seed=seed,
            num_heads=q.shape[1],
            head_dim=q.shape[3],
            value_dim=v.shape[3],
            num_positions=0 if table is None else table.shape[0],
            num_distances=0 if relative is None else relative.shape[0],
            num_biases=0 if bias is None else bias.shape[1],
            bias_stride=0 if bias is None or bias.shape[0] == 1 else bias.shape[1],
            scale=1.0 / math.sqrt(q.shape[3]),
            dropout=dropout,
        )

    def _z(self) -> Tensor | None:
        if self.table is None:
            return None
        from cope.kernels.triton.forward_kernels import z_kernel

        q, num_positions = self.given.q, self.table.shape[0]
        z = q.new_empty(*q.shape[:3], num_positions, dtype=torch.int64)
        rows, positions = (64, 64) if self.half else (32, 32)
        scale = self.given.table_scale / math.log(2)
        z_kernel[(self.num_heads * -(-q.shape[2] // rows),)](
            _view(q), self.table, z, scale, q.shape[1], q.shape[2], num_positions, q.shape[3],
            ROWS=rows, POSITIONS=positions, HEAD_DIM=_padded(q.shape[3]), PRECISION=self._precision(), num_warps=4,
        )  # fmt: skip
        return z

    def scratch(self, num_programs: int, sizes: dict[str, Any]) -> Tensor | None:
        """Room for a tile's numbers by distance, for each program."""
        if self.given.relative is None:
            return None
        queries, keys = sizes["QUERIES"], sizes["KEYS"]
        return self.given.q.new_empty(num_programs, queries, queries + keys, dtype=torch.float32)

    def _precision(self) -> str:
        return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"

    def sizes(self, kernel: str) -> dict[str, Any]:
        """The sizes that a kernel is compiled for.

        PLAIN_* are those of tiles beyond the last position, which need fewer registers. A block of keys of the forward pass is
        made of whole blocks of the backward pass, PLAIN_KEYS of whole blocks of the key gradients (EDGE_KEYS), and a block of
        the query gradients of whole blocks of all that read what it leaves.
        """
        q, v = self.given.q, self.given.v
        head_dim, value_dim = _padded(q.shape[3]), _padded(v.shape[3])
        large = max(head_dim, value_dim) > 64
        relative = self.given.relative is not None
        if not self.half:
            # As few warps as registers allow; no loads ahead of their use, which would take more of them.
            block = 16 if large else 32
            sizes = {"QUERIES": block, "KEYS": block, "PLAIN_KEYS": block, "num_warps": 8 if large else 4, "num_stages": 1}
        elif relative:
            # One size, since a tile's numbers by distance must be a power of two. One stage, since Triton would load ahead of
            # its being written what goes through the scratch.
            block = 64
            sizes = {"QUERIES": block, "KEYS": block, "PLAIN_KEYS": block, "num_warps": 4, "num_stages": 1}
        else:
            # Measured on an H100, of some forty choices: narrow tiles where gates are counted leave registers for more warps.
            block = 64
            sizes = {"QUERIES": block, "KEYS": 16, "PLAIN_KEYS": block, "num_warps": 4, "num_stages": 2}
            if kernel == "forward":
                sizes |= {"KEYS": 32, "num_stages": 3, "maxnreg": 168}
        if kernel == "forward" and q.shape[2] <= FEW_QUERIES:
            sizes["QUERIES"] = 16
            if relative:
                sizes["KEYS"] = sizes["PLAIN_KEYS"] = 16
        if kernel == "queries":
            sizes |= {"EDGE_KEYS": block, "POSITIONS": 16}
        if kernel == "keys":
            del sizes["PLAIN_KEYS"]
            sizes |= {"PLAIN_QUERIES": block, "KEYS": block, "num_stages": 1}
        if kernel == "distances":
            sizes = {"BLOCK": block, "num_warps": sizes["num_warps"], "num_stages": 1}
        return sizes | {
            "HEAD_DIM": head_dim,
            "VALUE_DIM": value_dim,
            "WHOLE": head_dim == q.shape[3] and value_dim == v.shape[3],
            "PRECISION": self._precision(),
        }


def _padded(size: int) -> int:
    """Tensor cores take powers of two from 16 up."""
    return max(16, 1 << (size - 1).bit_length())


def _view(tensor: Tensor) -> View:
    from cope.kernels.triton.tiles import View

    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return View(tensor, (tensor.stride(0), tensor.stride(1), tensor.stride(2)))


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
