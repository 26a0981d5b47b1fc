"""Gates, positions and look-ups of a tile.

**Positions are whole numbers**, in units of 2^-22: sums of whole numbers are exact in any order, so a query's positions do not
depend on how its keys are cut into tiles, and never step back. A gate is rounded to such a unit, as finely as float32 computes
it, and split into two numbers of 11 bits, which float16 holds exactly; a tensor core adds them up, in float32, by a product
with a triangle of ones, exactly too. A query's count so far is an int64: 42 bits of whole positions, 22 of fraction.
"""

# Kernels are compiled by Triton, which has no types to write down for their parameters.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from cope.kernels.triton.tiles import ASSEMBLY, across, settled

BITS = tl.constexpr(22)
FRACTION = tl.constexpr(2**22 - 1)  # the bits below
# Triton gives each load a layout of its own, and carries addresses and values there and back through shared memory. A line of
# assembly works on numbers where they are: load_pairs, store_pairs.


@triton.jit
def sums_from_the_right(values, KEY_AXIS: tl.constexpr, KEYS: tl.constexpr):
    """Of each query, the sum from each key on, that key included; of numbers that float16 holds exactly."""
    first, second = tl.arange(0, KEYS)[:, None], tl.arange(0, KEYS)[None, :]
    if KEY_AXIS == 1:
        return settled(tl.dot(values.to(tl.float16), (first >= second).to(tl.float16)))
    else:
        return settled(tl.dot((second >= first).to(tl.float16), values.to(tl.float16)))


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
    # The backward pass takes its own gates off the forward pass's count. Their products may be summed in another order, so that
    # less than nothing is left.
    count = tl.maximum(count, 0)
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
def count_beyond(inputs, QUERIES: tl.constexpr):
    """A count past the last position, and still past it when a tile's gates are taken off."""
    return (tl.zeros((QUERIES,), tl.int64) + inputs.num_positions + 1024) << BITS


@triton.jit
def rows_of_z(inputs, head, first_query, num_queries, QUERIES: tl.constexpr):
    """Where each query's row of z begins; beyond the last query the last one's."""
    queries = tl.minimum(first_query + tl.arange(0, QUERIES), num_queries - 1)
    return (head.to(tl.int64) * num_queries + queries) * inputs.num_positions


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
