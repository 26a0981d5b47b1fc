"""How the Triton kernels are launched: a batch's sequences in groups, and the sizes that kernels are compiled for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cope.kernels.operator import Arguments
from cope.kernels.triton.compiler_options import Kind, Options, Trial, card_of, fastest

if TYPE_CHECKING:
    from cope.kernels.triton.tiles import View

HEADS = ("q", "k", "v", "gate_keys")
OPTIONAL = ("gate_keys", "z", "relative", "bias", "seed", "key_mask")  # inputs, by what is compiled differently without them
FEW_QUERIES = 16
KEYS_PER_PART = 512  # with few queries: as many keys as a program walks over
PARTS_AT_A_TIME = 16  # when they are joined
ROW_MULTIPLE = 128  # every block of queries fits into it
# What the kernels keep beside inputs and outputs at a time, about. Small groups cost time: see docs/gpu.md.
WORKSPACE_BYTES = 256 * 2**20
# For each kernel, what may be faster than the default on another card or in another type: loads ahead of their use, and the
# most registers of a thread (None: any), of which 168 let three blocks of 128 threads onto a multiprocessor, 128 let four. The
# kernel of key gradients may take half as many queries at a time, which spills a tenth of the bytes: a tensor core adds sixteen
# queries at a time to the same sums either way.
ALTERNATIVES: dict[str, list[Options]] = {
    "forward": [{"num_stages": 3, "maxnreg": None}, {"num_stages": 2, "maxnreg": 128}],
    "queries": [{"num_stages": 2, "maxnreg": 168}, {"num_stages": 2, "maxnreg": None}, {"num_stages": 3, "maxnreg": None}],
    "keys": [{"num_stages": 2}, {"QUERIES": 32}, {"QUERIES": 32, "num_stages": 2}],
}
HALF_TILES_FROM = (3, 7)  # Triton 3.6 was seen to read outside shared memory with them, which ends the process
ENOUGH_PROGRAMS = 512  # a few for each multiprocessor: below that a GPU waits


def launches(given: Arguments) -> Iterator[tuple[Launch, slice]]:
    """The sequences of a batch in groups, so that what the kernels keep beside inputs and outputs does not grow with the batch.

    A group is as large as WORKSPACE_BYTES allow, but large enough to keep a GPU busy, and at least one sequence.
    """
    heads = {name: tensor for name in HEADS if (tensor := getattr(given, name)) is not None}
    num_heads, num_queries = given.q.shape[1:3]
    bytes_per_query = 20 * num_positions_in_reach(given) + 12 * given.k.shape[2] / 32
    enough = -(-ENOUGH_PROGRAMS // (num_heads * -(-num_queries // 64)))
    most = max(enough, int(WORKSPACE_BYTES / (num_heads * num_queries * bytes_per_query)))
    num_sequences = given.q.shape[0]
    size = -(-num_sequences // -(-num_sequences // most))  # groups alike
    for start in range(0, num_sequences, size):
        part = slice(start, start + size)
        tensors = {name: tensor[part] for name, tensor in heads.items()}
        key_mask = None if given.key_mask is None else given.key_mask[part]
        yield Launch(given._replace(**tensors, key_mask=key_mask), start * num_heads), part


def num_positions_in_reach(given: Arguments) -> int:
    """As many positions as are within reach: the longest count is that of all keys, and a look-up reads one entry further."""
    if given.table is None:
        return 0
    # In whole sixteens, for which Triton compiles once.
    return min(given.table.shape[0], -(-(given.k.shape[2] + 2) // 16) * 16)


class Launch:
    """The tensors of some of a batch's sequences as kernels take them, and the sizes that kernels are compiled for.

    Args:
        first_head: how many heads of the batch come before: dropout's mask depends on it.
    """

    def __init__(self, given: Arguments, first_head: int) -> None:
        from cope.kernels.triton.tiles import Inputs

        q, k, v, table, gate_keys, relative, bias, _, dropout, seed, key_mask = given
        self.given = given
        self.num_heads = q.shape[0] * q.shape[1]  # across the batch
        self.lengths = (q.shape[2], k.shape[2])
        self.half = q.dtype != torch.float32
        self.num_positions = num_positions_in_reach(given)
        self.table = None if table is None else table[: self.num_positions].contiguous()
        self.inputs = Inputs(
            q=view(q),
            k=view(k, given.group_size),
            v=view(v, given.group_size),
            gate_keys=None if table is None or gate_keys is None else view(gate_keys, given.group_size),
            z=self._z(),
            relative=None if relative is None else relative.contiguous(),
            bias=None if bias is None else bias.float().contiguous(),
            seed=seed,
            key_mask=None if key_mask is None else key_mask.to(torch.int8).contiguous(),
            # Never 1 or a multiple of 16, for which Triton would compile once more.
            first_head=32 * first_head + 3,
            num_heads=q.shape[1],
            head_dim=q.shape[3],
            value_dim=v.shape[3],
            num_positions=self.num_positions,
            num_distances=0 if relative is None else relative.shape[0],
            num_biases=0 if bias is None else bias.shape[1],
            bias_stride=0 if bias is None or bias.shape[0] == 1 else bias.shape[1],
            scale=1.0 / math.sqrt(q.shape[3]),
            dropout=dropout,
        )

    def _z(self) -> Tensor | None:
        if self.table is None:
            return None
        from cope.kernels.triton.attend import z_kernel

        q = self.given.q
        z = q.new_empty(*q.shape[:3], self.num_positions, dtype=torch.int64)
        rows, positions = (64, 64) if self.half else (32, 32)
        scale = self.given.table_scale / math.log(2)
        z_kernel[(self.num_heads * -(-q.shape[2] // rows),)](
            view(q), self.table, z, scale, q.shape[1], *self.lengths, self.num_positions, q.shape[3],
            ROWS=rows, POSITIONS=positions, HEAD_DIM=_padded(q.shape[3]), PRECISION=self._precision(), num_warps=4,
        )  # fmt: skip
        return z

    def scratch(self, num_programs: int, sizes: dict[str, Any]) -> Tensor | None:
        """Room for a tile's numbers by distance, for each program."""
        if self.given.relative is None:
            return None
        queries, keys = sizes["QUERIES"], sizes["KEYS"]
        return self.given.q.new_empty(num_programs, queries, queries + keys, dtype=torch.float32)

    def start(self, name: str, kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], written: Sequence[Any]) -> None:
        """Start a kernel; a large launch with the options that are fastest on this card.

        Args:
            written: of the arguments, those that the kernel writes and others read; None is none.
        """
        sizes = self.sizes(name)
        candidates = self.options(name, sizes)
        card = card_of(self.given.q)
        if card is not None and len(candidates) > 1 and math.prod(grid) >= ENOUGH_PROGRAMS:
            kind = Kind(
                kernel=name,
                dtype=str(self.given.q.dtype).removeprefix("torch."),
                inputs=tuple(there for there in OPTIONAL if getattr(self.inputs, there) is not None),
                most_keys=1 << (self.lengths[1] - 1).bit_length(),
                sizes=tuple(sizes.items()),
            )
            written = [tensor for tensor in written if tensor is not None]
            trial = Trial(kernel, grid, arguments, sizes, written)
            sizes |= fastest(card, kind, candidates, trial)
        kernel[grid](*arguments, **sizes)

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
            if kernel == "queries":
                sizes["maxnreg"] = 168  # on an H200 0.82 to 0.95 of the time that all registers take
        if kernel == "forward" and q.shape[2] <= FEW_QUERIES and not relative:
            sizes["QUERIES"] = 16
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

    def options(self, kernel: str, sizes: dict[str, Any]) -> list[Options]:
        """What a kernel may be compiled with, the default first. None of it changes a number: see ``compiler_options.py``."""
        default: Options = {"num_stages": sizes["num_stages"], "maxnreg": sizes.get("maxnreg")}
        # What goes through the scratch allows one stage, and these kernels spill with all registers that there are.
        others = [] if self.given.relative is not None else ALTERNATIVES.get(kernel, [])
        if kernel == "keys":
            default["QUERIES"] = sizes["QUERIES"]
            if not self.half or _triton_version() < HALF_TILES_FROM:  # float32's tiles are small already
                others = [options for options in others if "QUERIES" not in options]
        candidates = [default]
        candidates += [default | options for options in others if default | options not in candidates]
        return candidates


def _triton_version() -> tuple[int, ...]:
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def _padded(size: int) -> int:
    """Tensor cores take powers of two from 16 up."""
    return max(16, 1 << (size - 1).bit_length())


def view(tensor: Tensor, group_size: int = 1) -> View:
    from cope.kernels.triton.tiles import View

    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return View(tensor, (tensor.stride(0), tensor.stride(1), tensor.stride(2)), group_size)
