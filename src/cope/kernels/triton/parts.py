"""Few queries against many keys, as in decoding: the keys are cut into parts, each with a program of its own.

``count_part_kernel`` counts each part's gates first, so that a part's walk (``forward_kernel``) can begin with the count of all
parts to its right, and ``join_parts_kernel`` makes one result of all.
"""

# Kernels are compiled by Triton, which has no types to write down for their parameters.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from cope.kernels.triton.counting import BITS, count_beyond, open_gates
from cope.kernels.triton.tiles import content_logits, load_key_mask, load_rows


@triton.jit
def own_part(num_queries, num_keys, num_parts, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """The head of this program, its first query and the blocks of keys that it walks over. The last queries come first: they
    have the most keys to see."""
    num_blocks = tl.cdiv(num_queries, QUERIES)
    program = tl.program_id(0)
    head, first_query = program // num_blocks, (num_blocks - 1 - program % num_blocks) * QUERIES
    num_key_blocks = tl.cdiv(tl.minimum(first_query + QUERIES + num_keys - num_queries, num_keys), KEYS)
    part, size = tl.program_id(1), tl.cdiv(tl.cdiv(num_keys, KEYS), num_parts)
    return head, first_query, tl.minimum(part * size, num_key_blocks), tl.minimum((part + 1) * size, num_key_blocks)


@triton.jit
def count_to_the_right(inputs, counts, part, num_parts, head, first_query, num_queries, QUERIES: tl.constexpr):
    """Each query's count over all parts to the right of ``part``. Where there is no query: beyond the last position, so that no
    block waits for it."""
    queries = first_query + tl.arange(0, QUERIES)
    inside = queries < num_queries
    count = tl.where(inside, 0, count_beyond(inputs, QUERIES))
    if counts is not None:
        for right in range(part + 1, num_parts):
            row = (head.to(tl.int64) * num_parts + right) * num_queries + queries
            count += tl.load(counts + row, mask=inside, other=0)
    return count


@triton.jit(do_not_specialize=["num_queries", "num_keys", "num_parts"])
def count_part_kernel(
    inputs, counts, num_queries, num_keys, num_parts,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PLAIN_KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """counts (batch * heads, part, query): the gates of each part of the keys, added up; a program for each part."""
    head, first_query, first_block, last_block = own_part(num_queries, num_keys, num_parts, QUERIES, KEYS)
    q = load_rows(inputs.q, head, inputs.num_heads, first_query, num_queries, inputs.head_dim, QUERIES, HEAD_DIM, WHOLE)
    view = inputs.k
    if inputs.gate_keys is not None:
        view = inputs.gate_keys
    count = tl.zeros((QUERIES,), tl.int64)
    queries = first_query + tl.arange(0, QUERIES)
    for key_block in range(first_block, last_block):
        keys = load_rows(view, head, inputs.num_heads, key_block * KEYS, num_keys, inputs.head_dim, KEYS, HEAD_DIM, WHOLE)
        visible = (queries + (num_keys - num_queries))[:, None] >= (key_block * KEYS + tl.arange(0, KEYS))[None, :]
        shown = load_key_mask(inputs, head, key_block * KEYS, num_keys, KEYS)
        _gates, _high, _low, total = open_gates(content_logits(inputs, q, keys, shown, 1, PRECISION), visible, 1)
        count += total
    row = (head.to(tl.int64) * num_parts + tl.program_id(1)) * num_queries + queries
    tl.store(counts + row, count, mask=queries < num_queries)


@triton.jit(do_not_specialize=["num_queries", "num_parts"])
def join_parts_kernel(
    outputs, sums, meetings, meeting_counts, output, log_sum_exp, meeting, meeting_count,
    num_heads, num_queries, num_parts, num_positions, value_dim, PARTS: tl.constexpr, VALUE_DIM: tl.constexpr,
):  # fmt: skip
    """What ``forward_kernel`` left of all parts, as it leaves it of one; a program for each head's query.

    A query's zones meet in the rightmost part at whose left edge it has counted to the last position; if in none, in the
    leftmost, whose left edge is that of all.
    """
    row = tl.program_id(0)  # (batch, head, query)
    head, query = row // num_queries, row % num_queries
    place = ((head // num_heads).to(tl.int64) * num_queries + query) * num_heads + head % num_heads  # (batch, query, head)
    numbers, columns = tl.arange(0, PARTS), tl.arange(0, VALUE_DIM)
    num_rows = tl.num_programs(0).to(tl.int64)
    in_value = columns < value_dim

    largest = tl.full((1,), -3e38, tl.float32)  # finite, because a query may see no key of the first parts
    total = tl.zeros((1,), tl.float32)
    accumulated = tl.zeros((VALUE_DIM,), tl.float32)
    met = tl.zeros((1,), tl.int32)
    for first in range(0, num_parts, PARTS):
        parts = first + numbers
        there = parts < num_parts
        own = parts * num_rows
        own_sums = tl.load(sums + own + row, mask=there, other=float("-inf"))
        new_largest = tl.maximum(largest, tl.max(own_sums, 0))
        shares, shrink = tl.exp2(own_sums - new_largest), tl.exp2(largest - new_largest)
        averages = tl.load(
            outputs + ((own + place) * value_dim)[:, None] + columns[None, :],
            mask=there[:, None] & in_value[None, :],
            other=0.0,
        )
        total = total * shrink + tl.sum(shares, 0)
        accumulated = accumulated * shrink + tl.sum(averages * shares[:, None], 0)
        largest = new_largest
        if meeting_counts is not None:
            counts = tl.load(meeting_counts + own + row, mask=there, other=0)
            met = tl.maximum(met, tl.max(tl.where(there & (counts >> BITS >= num_positions - 1), parts, 0), 0))

    one = tl.arange(0, 1)
    # A query that sees no key: weights of 0.
    tl.store(log_sum_exp + row + one, tl.where(total == 0.0, float("inf"), largest + tl.log2(total)))
    if meeting_counts is not None:
        tl.store(meeting + row + one, tl.load(meetings + met * num_rows + row))
        tl.store(meeting_count + row + one, tl.load(meeting_counts + met * num_rows + row))
    averages = accumulated / tl.where(total == 0.0, 1.0, total)
    tl.store(output + place * value_dim + columns, averages.to(output.dtype.element_ty), mask=in_value)
