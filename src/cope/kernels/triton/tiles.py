"""What every Triton kernel of CoPE attention does with a tile of queries x keys: products, gates, positions, look-ups.

Letters are the paper's: gates g, positions p, z_ip = q_i . e[p] for the table's vector e[p], attention logits s, weights a.
A tile lies either way round: KEY_AXIS is 1 for (query, key), in kernels that own queries, and 0 for (key, query), in those that
own keys, so that what a kernel multiplies next is in registers already. Logits are in base 2 (times log2 e): a GPU's own
exponential is that of 2.

**Positions are whole numbers**, in units of 2^-22: sums of whole numbers are exact in any order, so a query's positions do not
depend on how its keys are cut into tiles, and never step back. A gate is rounded to such a unit, as finely as float32 computes
it, and split into two numbers of 11 bits, which float16 holds exactly; a tensor core adds them up, in float32, by a product with
a triangle of ones, exactly too. A query's count so far is an int64: 42 bits of whole positions, 22 of fraction.
"""

# Kernels are compiled by Triton, which has no types to write down for their parameters.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import os
from typing import Any, NamedTuple

import triton
import triton.language as tl

BITS = tl.constexpr(22)
FRACTION = tl.constexpr(2**22 - 1)  # the bits below
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# Triton gives a load of its own a layout of its own, and carries addresses and values there and back through shared memory. A line
# of assembly works on numbers where they are. Triton's interpreter knows no assembly: there the same is written in Triton.
ASSEMBLY = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")


class View(NamedTuple):
    """A (batch, heads, time, size) tensor, contiguous in its last dimension."""

    data: Any
    strides: tuple[int, int, int]


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
    start = view.data + (head // num_heads).to(tl.int64) * view.strides[0] + (head % num_heads).to(tl.int64) * view.strides[1]
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
        return product(values, (first <= second).to(like.dtype), PRECISION)
    else:
        return product((second <= first).to(like.dtype), values.to(like.dtype), PRECISION)


@triton.jit
def sums_from_the_right(values, KEY_AXIS: tl.constexpr, KEYS: tl.constexpr):
    """Of each query, the sum from each key on, that key included; of numbers that float16 holds exactly."""
    first, second = tl.arange(0, KEYS)[:, None], tl.arange(0, KEYS)[None, :]
    if KEY_AXIS == 1:
        return tl.dot(values.to(tl.float16), (first >= second).to(tl.float16))
    else:
        return tl.dot((second >= first).to(tl.float16), values.to(tl.float16))


@triton.jit
def open_gates(gate_logits, visible, KEY_AXIS: tl.constexpr):
    """Of a tile: the gates (Equation 3), rounded to whole units in two parts, and each query's sum of them in units."""
    gates = tl.where(visible, 1.0 / (1.0 + tl.exp2(-gate_logits)), 0.0)
    # Of a NaN and a number, tl.maximum takes the number: what is made of a gate stays an index of the table.
    bounded = tl.maximum(gates, 0.0)
    high = (bounded + 4096.0) - 4096.0  # a float32 above 4096 is a multiple of 2^-11
    low = ((bounded - high) * 2048.0 + 6144.0) - 6144.0  # the rest, in multiples of 2^-22, times 2^11
    units = (tl.sum(high, KEY_AXIS) * 4194304.0).to(tl.int64) + (tl.sum(low, KEY_AXIS) * 2048.0).to(tl.int64)
    return gates, high, low, units


@triton.jit
def split_count(inputs, count):
    """The whole part of a count, as far as it matters, and its fraction: both int32, as :func:`count_positions` takes them."""
    # 0x45C00000 are the bits of 6144.0; see there.
    return tl.minimum(count >> BITS, inputs.num_positions).to(tl.int32), (count & FRACTION).to(tl.int32) - 0x45C00000


@triton.jit
def count_positions(high, low, whole, fraction, KEY_AXIS: tl.constexpr, KEYS: tl.constexpr):
    """Positions of a tile (Equation 4), given each query's count at the tile's right edge: their whole part, and the rest."""
    # A float32 from 4096 to 8192 is 4096 and whole 2^-11, which its lowest bits are: no conversion is needed.
    high_bits = (sums_from_the_right(high, KEY_AXIS, KEYS) + 4096.0).to(tl.int32, bitcast=True)
    low_bits = (sums_from_the_right(low, KEY_AXIS, KEYS) + 6144.0).to(tl.int32, bitcast=True)
    sums = high_bits * 2048 + low_bits + across(fraction, KEY_AXIS)  # 2048 times the bits of 4096.0 is 0 in 32 bits
    # The bits of a float32 between 2 and 3.
    rest = ((sums & FRACTION) | 0x40000000).to(tl.float32, bitcast=True) - 2.0
    return across(whole, KEY_AXIS) + (sums >> BITS), rest


@triton.jit
def rows_of_z(inputs, head, first_query, num_queries, QUERIES: tl.constexpr):
    """Where each query's row of z begins; beyond the last query the last one's."""
    queries = tl.minimum(first_query + tl.arange(0, QUERIES), num_queries - 1)
    return (head.to(tl.int64) * num_queries + queries) * inputs.num_positions


@triton.jit
def count_beyond(inputs, QUERIES: tl.constexpr):
    """A count past the last position, and still past it when a tile's gates are taken off."""
    return (tl.zeros((QUERIES,), tl.int64) + inputs.num_positions + 1024) << BITS


@triton.jit
def halves(words):
    """The two int32 of an int64."""
    return words.to(tl.int32), (words >> 32).to(tl.int32)


@triton.jit
def joined(low, high):
    """Two int32 as an int64."""
    return (low.to(tl.int64) & 0xFFFFFFFF) | (high.to(tl.int64) << 32)


@triton.jit
def unpack(words):
    """The two float32 of an int64."""
    low, high = halves(words)
    return low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)


@triton.jit
def pack(first, second):
    """Two float32 as an int64."""
    return joined(first.to(tl.int32, bitcast=True), second.to(tl.int32, bitcast=True))


@triton.jit
def load_pairs(pointers):
    """The two float32 at each pointer, of a tensor that the kernel does not write."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            "ld.global.nc.v2.f32 {$0, $1}, [$2];", "=f,=f,l", [pointers.to(tl.int64)],
            dtype=(tl.float32, tl.float32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return unpack(tl.load(pointers))


@triton.jit
def store_pairs(pointers, first, second, mask):
    """Two float32 at each pointer, where ``mask`` is true."""
    if ASSEMBLY:
        tl.inline_asm_elementwise(
            "{.reg .pred p; setp.ne.s32 p, $4, 0; @p st.global.v2.f32 [$1], {$2, $3}; mov.u32 $0, 0;}", "=r,l,f,f,r",
            [pointers.to(tl.int64), first, second, mask.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    else:
        tl.store(pointers, pack(first, second), mask=mask)


@triton.jit
def interpolate(inputs, rows, whole, rest, KEY_AXIS: tl.constexpr):
    """z at fractional positions (Equation 5), its slope there, and the entry below. Beyond the last entry the slope is 0."""
    below = tl.maximum(tl.minimum(whole, inputs.num_positions - 1), 0)
    value, slope = load_pairs(inputs.z + across(rows, KEY_AXIS) + below)
    return value + slope * rest, slope, below


@triton.jit
def bias_of_distance(inputs, head, distance):
    """The bias of each pair of a tile, in base 2."""
    column = tl.minimum(tl.maximum(distance, 0), inputs.num_biases - 1)
    return tl.load(inputs.bias + (head % inputs.num_heads) * inputs.bias_stride + column) * LOG2_E


# In a tile with the distance `gap` between its first query and its first key, query m and key n are gap + m - n apart. The
# QUERIES + KEYS - 1 distances are numbered in rising order: number m - n + KEYS - 1 is the distance of m and n. (One more number
# is there because sizes must be powers of two; no pair has it.) What goes from keys to distances or back goes through a small
# scratch in global memory, which stays in the cache: a row's numbers move by one from query to query.


@triton.jit
def relative_window(inputs, gap, QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """The vectors r of a tile's distances, (QUERIES + KEYS, HEAD_DIM)."""
    distance = gap - (KEYS - 1) + tl.arange(0, QUERIES + KEYS)
    rows = tl.minimum(tl.maximum(distance, 0), inputs.num_distances - 1)
    columns = tl.arange(0, HEAD_DIM)
    inside = (columns < inputs.head_dim)[None, :]
    return tl.load(inputs.relative + rows[:, None] * inputs.head_dim + columns[None, :], mask=inside, other=0.0)


@triton.jit
def from_distances(scratch, by_distance, KEY_AXIS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """(query, number of the distance), or with KEY_AXIS 0 (number, query), to a tile of queries and keys."""
    WIDTH: tl.constexpr = QUERIES + KEYS
    queries, keys, numbers = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    tl.debug_barrier()  # the last tile's numbers have been read
    tl.store(scratch + across(queries * WIDTH, KEY_AXIS) + along(numbers, KEY_AXIS), by_distance)
    tl.debug_barrier()
    return tl.load(scratch + across(queries * (WIDTH + 1) + KEYS - 1, KEY_AXIS) - along(keys, KEY_AXIS))


@triton.jit
def to_distances(scratch, tile, KEY_AXIS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """The other way: 0 for a distance that a query has to no key of the tile."""
    WIDTH: tl.constexpr = QUERIES + KEYS
    queries, keys, numbers = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    tl.debug_barrier()
    tl.store(scratch + across(queries * (WIDTH + 1) + KEYS - 1, KEY_AXIS) - along(keys, KEY_AXIS), tile)
    tl.debug_barrier()
    key = across(queries + KEYS - 1, KEY_AXIS) - along(numbers, KEY_AXIS)
    there = (key >= 0) & (key < KEYS)
    return tl.load(scratch + across(queries * WIDTH, KEY_AXIS) + along(numbers, KEY_AXIS), mask=there, other=0.0)


@triton.jit
def content_logits(inputs, q, k, KEY_AXIS: tl.constexpr, PRECISION: tl.constexpr):
    """q_i . k_j / sqrt(head_dim) of a tile, in base 2."""
    return tile_product(q, k, KEY_AXIS, PRECISION) * (inputs.scale * LOG2_E)


@triton.jit
def with_distance(
    inputs, head, q, logits, gap, scratch,
    KEY_AXIS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits of a tile and, where there are such, the terms that depend on distance alone."""
    if inputs.relative is not None:
        window = relative_window(inputs, gap, QUERIES, KEYS, HEAD_DIM)
        by_distance = tile_product(q, window, KEY_AXIS, PRECISION) * (inputs.scale * LOG2_E)
        logits += from_distances(scratch, by_distance, KEY_AXIS, QUERIES, KEYS)
    if inputs.bias is not None:
        logits += bias_of_distance(inputs, head, _distance(gap, KEY_AXIS, QUERIES, KEYS))
    return logits


@triton.jit
def _distance(gap, KEY_AXIS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    return gap + across(tl.arange(0, QUERIES), KEY_AXIS) - along(tl.arange(0, KEYS), KEY_AXIS)


@triton.jit
def counted_logits(
    inputs, head, q, k, gate_keys, gap, count, rows, scratch,
    EDGE: tl.constexpr, KEY_AXIS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """All logits of a tile, -inf where a query may not look, and what the gates did on the way.

    ``count`` is each query's at the tile's right edge or, with EDGE "left", at its left edge; with EDGE "split" it is that at
    the right edge, as ``joined(*split_count(count))``.

    Returns:
        logits; gates; gates in whole units; whole part and rest of the positions; the table's entry below; slope of z; each
        query's count at the tile's other edge.
    """
    visible = _distance(gap, KEY_AXIS, QUERIES, KEYS) >= 0
    content = content_logits(inputs, q, k, KEY_AXIS, PRECISION)
    logits = with_distance(inputs, head, q, content, gap, scratch, KEY_AXIS, QUERIES, KEYS, HEAD_DIM, PRECISION)
    if inputs.z is not None:
        gate_logits = content
        if gate_keys is not None:
            gate_logits = content_logits(inputs, q, gate_keys, KEY_AXIS, PRECISION)
        gates, high, low, total = open_gates(gate_logits, visible, KEY_AXIS)
        other = count + total
        if EDGE == "left":
            other = count - total
            count = other
        if EDGE == "split":
            counted, fraction = halves(count)
        else:
            counted, fraction = split_count(inputs, count)
        whole, rest = count_positions(high, low, counted, fraction, KEY_AXIS, KEYS)
        contextual, slope, below = interpolate(inputs, rows, whole, rest, KEY_AXIS)
        logits += contextual
        if gate_keys is not None:
            logits += gates - gates  # a gate that is NaN reaches the loss, although its position is a number
        return tl.where(visible, logits, float("-inf")), gates, high + low * (1.0 / 2048.0), whole, rest, below, slope, other
    else:
        zeros = tl.zeros_like(logits)
        return tl.where(visible, logits, float("-inf")), zeros, zeros, zeros, zeros, zeros, zeros, count


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
    of_queries = _mixed(_mixed(queries ^ seed) + head.to(tl.uint32) * 0x9E3779B1)
    random = _mixed(across(of_queries, KEY_AXIS) + along(keys * 0x85EBCA77, KEY_AXIS))
    return tl.where(random.to(tl.float32) >= inputs.dropout * 4294967296.0, 1.0 / (1.0 - inputs.dropout), 0.0)
