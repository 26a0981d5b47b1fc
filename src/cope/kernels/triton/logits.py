"""The logits of a tile: by content, by distance (a relative term, a bias), and by counted position."""

# Kernels are compiled by Triton, which has no types to write down for their parameters.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from cope.kernels.triton.counting import count_positions, halves, interpolate, open_gates, split_count
from cope.kernels.triton.tiles import LOG2_E, across, along, content_logits, tile_product


@triton.jit
def bias_of_distance(inputs, head, distance):
    """The bias of each pair of a tile, in base 2."""
    column = tl.minimum(tl.maximum(distance, 0), inputs.num_biases - 1)
    return tl.load(inputs.bias + (head % inputs.num_heads) * inputs.bias_stride + column) * LOG2_E


@triton.jit
def distances_of_tile(gap, KEY_AXIS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    return gap + across(tl.arange(0, QUERIES), KEY_AXIS) - along(tl.arange(0, KEYS), KEY_AXIS)


# In a tile with the distance `gap` between its first query and its first key, query m and key n are gap + m - n apart. The
# QUERIES + KEYS - 1 distances are numbered in rising order: number m - n + KEYS - 1 is the distance of m and n. (One more
# number is there because sizes must be powers of two; no pair has it.) What goes from keys to distances or back goes through a
# small scratch in global memory, which stays in the cache: a row's numbers move by one from query to query.


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
        logits += bias_of_distance(inputs, head, distances_of_tile(gap, KEY_AXIS, QUERIES, KEYS))
    return logits


@triton.jit
def counted_logits(
    inputs, head, q, k, shown, gate_keys, gap, count, rows, scratch,
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
    visible = distances_of_tile(gap, KEY_AXIS, QUERIES, KEYS) >= 0
    content = content_logits(inputs, q, k, shown, KEY_AXIS, PRECISION)
    logits = with_distance(inputs, head, q, content, gap, scratch, KEY_AXIS, QUERIES, KEYS, HEAD_DIM, PRECISION)
    if inputs.z is not None:
        gate_logits = content
        if gate_keys is not None:
            gate_logits = content_logits(inputs, q, gate_keys, shown, KEY_AXIS, PRECISION)
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
