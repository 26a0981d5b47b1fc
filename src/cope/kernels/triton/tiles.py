"""What every Triton kernel of CoPE attention does with a tile of queries x keys: rows in and out, products, dropout.

Letters are the paper's: gates g, positions p, z_ip = q_i . e[p] for the table's vector e[p], attention logits s, weights a.
A tile lies either way round: KEY_AXIS is 1 for (query, key), in kernels that own queries, and 0 for (key, query), in those that
own keys, so that what a kernel multiplies next is in registers already. Logits are in base 2 (times log2 e): a GPU's own
exponential is that of 2.
"""

# Kernels are compiled by Triton, which has no types to write down for their parameters.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import os
from typing import Any, NamedTuple

import triton
import triton.language as tl

# Triton's interpreter knows no assembly: there the same is written in Triton.
ASSEMBLY = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


class View(NamedTuple):
    """A (batch, heads, time, size) tensor, contiguous in its last dimension."""

    data: Any
    strides: tuple[int, int, int]
    group_size: int = 1  # heads of the queries to each of its own


class Inputs(NamedTuple):
    """What all kernels read. What is None is left out when they are compiled, and so is what depends on it.

    The number of queries and of keys come apart, as arguments that Triton does not specialise on: one compilation for all.
    """

    q: View
    k: View
    v: View
    gate_keys: View | None
    z: Any  # (batch, heads, query, num_positions) int64: two float32, z[p] and z[p + 1] - z[p], in base 2; None without a table
    relative: Any  # (num_distances, head_dim)
    bias: Any  # (heads, num_biases) float32, or one row for all heads: bias_stride is 0 then
    seed: Any  # one int64, of dropout's mask
    key_mask: Any  # (batch, num_keys) int8: 0 for a key that no query sees; None where all are seen
    first_head: int  # 32 times the number of heads before these, and 3
    num_heads: int
    head_dim: int
    value_dim: int
    num_positions: int
    num_distances: int
    num_biases: int
    bias_stride: int
    scale: float  # of q.k
    dropout: float


@triton.jit
def across(of_queries, KEY_AXIS: tl.constexpr):
    """A number for each query, for all keys of a tile."""
    return tl.expand_dims(of_queries, KEY_AXIS)


@triton.jit
def along(of_keys, KEY_AXIS: tl.constexpr):
    """A number for each key, for all queries of a tile."""
    return tl.expand_dims(of_keys, 1 - KEY_AXIS)


@triton.jit
def load_rows(view, head, num_heads, first, num_rows, size, ROWS: tl.constexpr, SIZE: tl.constexpr, WHOLE: tl.constexpr):
    """(ROWS, SIZE) of one head from row ``first`` on, 0 where the tensor ends. Heads are numbered across the batch.

    WHOLE says that SIZE is the tensor's own size: nothing to mask there.
    """
    own_head = (head % num_heads) // view.group_size
    start = view.data + (head // num_heads).to(tl.int64) * view.strides[0] + own_head.to(tl.int64) * view.strides[1]
    start += tl.cast(first, tl.int64) * view.strides[2]
    rows, columns = tl.arange(0, ROWS), tl.arange(0, SIZE)
    pointers = start + rows[:, None] * view.strides[2] + columns[None, :]
    inside = (first + rows < num_rows)[:, None]
    if WHOLE:
        return tl.load(pointers, mask=inside, other=0.0)
    else:
        return tl.load(pointers, mask=inside & (columns < size)[None, :], other=0.0)


@triton.jit
def store_rows(tensor, head, num_heads, first, num_rows, size, values, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """The counterpart of load_rows, for a tensor laid out as (batch, time, heads, size)."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, SIZE)
    row = ((head // num_heads).to(tl.int64) * num_rows + first + rows) * num_heads + head % num_heads
    inside = (first + rows < num_rows)[:, None] & (columns < size)[None, :]
    tl.store(tensor + row[:, None] * size + columns[None, :], values.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
def product(left, right, PRECISION: tl.constexpr):
    """A matrix product with sums in float32, of numbers of the right factor's type."""
    return tl.dot(left.to(right.dtype), right, input_precision=PRECISION)


@triton.jit
def settled(matrix_product):
    """The product itself, to which a number may be added.

    Triton makes of ``product + x`` a product that starts from x, and sets the registers it starts from after the instruction
    that has to follow them (``wgmma.fence``). On an H200 (ptxas 12.8) positions then came out as if there were no gates, in
    some sizes of tiles: ptxas had taken a constant x for the whole sum. A line of assembly keeps the two apart.
    """
    if ASSEMBLY:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [matrix_product], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return matrix_product


@triton.jit
def tile_product(of_queries, of_keys, KEY_AXIS: tl.constexpr, PRECISION: tl.constexpr):
    """Of each query's row with each key's."""
    if KEY_AXIS == 1:
        return product(of_queries, tl.trans(of_keys), PRECISION)
    else:
        return product(of_keys, tl.trans(of_queries), PRECISION)


@triton.jit
def sums_from_the_left(values, like, KEY_AXIS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr):
    """Of each query, the sum up to each key, that key included; multiplied in the type of ``like``."""
    first, second = tl.arange(0, KEYS)[:, None], tl.arange(0, KEYS)[None, :]
    if KEY_AXIS == 1:
        return settled(product(values, (first <= second).to(like.dtype), PRECISION))
    else:
        return settled(product((second <= first).to(like.dtype), values.to(like.dtype), PRECISION))


@triton.jit
def content_logits(inputs, q, k, shown, KEY_AXIS: tl.constexpr, PRECISION: tl.constexpr):
    """q_i . k_j / sqrt(head_dim) of a tile, in base 2; -inf for keys that are masked (``shown``, of :func:`load_key_mask`)."""
    logits = tile_product(q, k, KEY_AXIS, PRECISION) * (inputs.scale * LOG2_E)
    if inputs.key_mask is not None:
        logits = tl.where(along(shown, KEY_AXIS), logits, float("-inf"))
    return logits


@triton.jit
def load_key_mask(inputs, head, first_key, num_keys, KEYS: tl.constexpr):
    """Which keys of a tile are seen; where no key is masked just True, since in Triton 3.6 a function cannot return None."""
    if inputs.key_mask is not None:
        keys = first_key + tl.arange(0, KEYS)
        row = (head // inputs.num_heads).to(tl.int64) * num_keys
        return tl.load(inputs.key_mask + row + keys, mask=keys < num_keys, other=1) != 0
    else:
        return True


@triton.jit
def _mixed(x):
    """A hash of 32 bits (lowbias32, Chris Wellons 2018)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def dropout_mask(
    inputs, head, first_query, first_key, KEY_AXIS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr
):  # fmt: skip
    """0 where an attention weight is dropped, else what the others are multiplied with. The same in every kernel: the random
    number of a weight is a function of the seed and of where the weight stands."""
    queries = (first_query + tl.arange(0, QUERIES)).to(tl.uint32)
    keys = (first_key + tl.arange(0, KEYS)).to(tl.uint32)
    seed = tl.load(inputs.seed).to(tl.uint32)
    of_queries = _mixed(_mixed(queries ^ seed) + (head * 32 + inputs.first_head).to(tl.uint32) * 0x9E3779B1)
    random = _mixed(across(of_queries, KEY_AXIS) + along(keys * 0x85EBCA77, KEY_AXIS))
    return tl.where(random.to(tl.float32) >= inputs.dropout * 4294967296.0, 1.0 / (1.0 - inputs.dropout), 0.0)
