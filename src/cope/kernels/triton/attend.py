"""The forward pass: z for every query and position, and attention.

A program owns a block of queries of one head and walks over the keys from the diagonal to the left, because
p_ij = g_ij + ... + g_ii counts from the query backwards. It carries what FlashAttention carries (Dao et al. 2022, arXiv
2205.14135: the largest logit, the sum of exponentials, the output) and each query's count.

There are two zones. Once every query of the block has counted to the last position, all keys further to the left have that
position: no gate, no sum, no look-up, only a number a query to add to its logits. For the backward pass the program leaves the
log-sum-exp, where the zones meet, and each query's count there.

With few queries and many keys, as in decoding, the keys are cut into parts: ``parts.py``.
"""

# Kernels are compiled by Triton, which has no types to write down for their parameters.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from cope.kernels.triton.counting import BITS, rows_of_z, store_pairs, unpack
from cope.kernels.triton.logits import counted_logits, with_distance
from cope.kernels.triton.parts import count_to_the_right, own_part
from cope.kernels.triton.tiles import content_logits, dropout_mask, load_key_mask, load_rows, product, store_rows


@triton.jit(do_not_specialize=["num_queries", "num_keys", "num_positions"])
def z_kernel(
    q, table, z, scale, num_heads, num_queries, num_keys, num_positions, head_dim,
    ROWS: tl.constexpr, POSITIONS: tl.constexpr, HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z_ip = scale q_i . e[p] in base 2, packed with the step to the next position, as far as a query can count; a program for
    each block of queries."""
    num_blocks = tl.cdiv(num_queries, ROWS)
    head, first = tl.program_id(0) // num_blocks, (tl.program_id(0) % num_blocks) * ROWS
    rows = load_rows(q, head, num_heads, first, num_queries, head_dim, ROWS, HEAD_DIM, False)
    queries, columns = first + tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    row = (head.to(tl.int64) * num_queries + queries)[:, None] * num_positions
    # No position is above the number of keys that a query sees; a look-up reads one entry further. The last query has all: its
    # row serves where there is no query.
    end = tl.where(
        first + ROWS < num_queries, tl.minimum(first + ROWS + num_keys - num_queries + 2, num_positions), num_positions
    )
    for start in range(0, end, POSITIONS):
        positions = start + tl.arange(0, POSITIONS)
        inside = (positions < num_positions)[:, None] & (columns < head_dim)[None, :]
        here = tl.load(table + positions[:, None] * head_dim + columns[None, :], mask=inside, other=0.0)
        above = tl.minimum(positions + 1, num_positions - 1)
        next_ = tl.load(table + above[:, None] * head_dim + columns[None, :], mask=inside, other=0.0)
        value = product(rows, tl.trans(here), PRECISION) * scale
        slope = product(rows, tl.trans(next_), PRECISION) * scale - value
        inside = (queries < num_queries)[:, None] & (positions < num_positions)[None, :]
        store_pairs(z + row + positions[None, :], value, slope, inside)


@triton.jit
def _attend(logits, v, mask, largest, total, accumulated, PRECISION: tl.constexpr):
    """Online softmax: what the program carries, with one more tile."""
    new_largest = tl.maximum(largest, tl.max(logits, 1))
    exponentials = tl.exp2(logits - new_largest[:, None])
    shrink = tl.exp2(largest - new_largest)
    total = total * shrink + tl.sum(exponentials, 1)
    if mask is not None:
        exponentials *= mask
    return new_largest, total, tl.dot(exponentials.to(v.dtype), v, accumulated * shrink[:, None], input_precision=PRECISION)


@triton.jit(do_not_specialize=["num_queries", "num_keys", "num_parts"])
def forward_kernel(
    inputs, output, log_sum_exp, meeting, meeting_count, part_counts, scratch, num_queries, num_keys, num_parts,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PLAIN_KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes, all (part, batch, heads, query) with one part but for decoding:

    output (part, batch, time, heads, value_dim); log_sum_exp in base 2; meeting: the first key of the zone of gates, the same
    for a block's queries; meeting_count: the query's count there.
    """
    head, first_query, first_block, last_block = own_part(num_queries, num_keys, num_parts, QUERIES, KEYS)
    num_heads_in_all = tl.num_programs(0) // tl.cdiv(num_queries, QUERIES)
    part = tl.program_id(1)
    offset = num_keys - num_queries
    q = load_rows(inputs.q, head, inputs.num_heads, first_query, num_queries, inputs.head_dim, QUERIES, HEAD_DIM, WHOLE)
    rows = rows_of_z(inputs, head, first_query, num_queries, QUERIES)
    if scratch is not None:
        program = tl.program_id(0).to(tl.int64) + part * tl.num_programs(0)
        scratch += program * QUERIES * (QUERIES + KEYS)

    count = count_to_the_right(inputs, part_counts, part, num_parts, head, first_query, num_queries, QUERIES)
    # Finite, because a query may see none of the first block of keys: exp(-inf - largest) is 0 then, not NaN.
    largest = tl.full((QUERIES,), -3e38, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    accumulated = tl.zeros((QUERIES, VALUE_DIM), tl.float32)

    # The zone of gates, with all blocks of keys that not every query of this block sees.
    key_block = last_block - 1
    going = key_block >= first_block
    while going:
        first_key = key_block * KEYS
        gap = first_query + offset - first_key
        k = load_rows(inputs.k, head, inputs.num_heads, first_key, num_keys, inputs.head_dim, KEYS, HEAD_DIM, WHOLE)
        gate_keys = None
        if inputs.gate_keys is not None:
            gate_keys = load_rows(
                inputs.gate_keys, head, inputs.num_heads, first_key, num_keys, inputs.head_dim, KEYS, HEAD_DIM, WHOLE
            )
        shown = load_key_mask(inputs, head, first_key, num_keys, KEYS)
        logits, _gates, _rounded, _whole, _rest, _below, _slope, count = counted_logits(
            inputs, head, q, k, shown, gate_keys, gap, count, rows, scratch, "right", 1, QUERIES, KEYS, HEAD_DIM, PRECISION
        )
        v = load_rows(inputs.v, head, inputs.num_heads, first_key, num_keys, inputs.value_dim, KEYS, VALUE_DIM, WHOLE)
        mask = None
        if inputs.seed is not None:
            mask = dropout_mask(inputs, head, first_query, first_key, 1, QUERIES, KEYS)
        largest, total, accumulated = _attend(logits, v, mask, largest, total, accumulated, PRECISION)
        key_block -= 1
        going = first_key - 1 > first_query + offset
        if inputs.z is not None:
            going = going | (tl.min(count >> BITS, 0) < inputs.num_positions - 1)
        going = going | ((key_block + 1 - first_block) % (PLAIN_KEYS // KEYS) != 0)
        going = going & (key_block >= first_block)
    last_block = key_block + 1

    # Beyond the last position.
    beyond = tl.zeros((QUERIES,), tl.float32)
    if inputs.z is not None:
        beyond, _no_slope = unpack(tl.load(inputs.z + rows + inputs.num_positions - 1))
    num_plain = (last_block - first_block) // (PLAIN_KEYS // KEYS)
    for step in range(0, num_plain):
        first_key = first_block * KEYS + (num_plain - 1 - step) * PLAIN_KEYS
        gap = first_query + offset - first_key
        k = load_rows(inputs.k, head, inputs.num_heads, first_key, num_keys, inputs.head_dim, PLAIN_KEYS, HEAD_DIM, WHOLE)
        shown = load_key_mask(inputs, head, first_key, num_keys, PLAIN_KEYS)
        logits = content_logits(inputs, q, k, shown, 1, PRECISION)
        logits = with_distance(inputs, head, q, logits, gap, scratch, 1, QUERIES, PLAIN_KEYS, HEAD_DIM, PRECISION)
        if inputs.z is not None:
            logits += beyond[:, None]
        v = load_rows(inputs.v, head, inputs.num_heads, first_key, num_keys, inputs.value_dim, PLAIN_KEYS, VALUE_DIM, WHOLE)
        mask = None
        if inputs.seed is not None:
            mask = dropout_mask(inputs, head, first_query, first_key, 1, QUERIES, PLAIN_KEYS)
        largest, total, accumulated = _attend(logits, v, mask, largest, total, accumulated, PRECISION)

    queries = first_query + tl.arange(0, QUERIES)
    inside = queries < num_queries
    place = (part.to(tl.int64) * num_heads_in_all + head) * num_queries + queries
    own_log_sum_exp = largest + tl.log2(total)
    if inputs.key_mask is not None:
        # Of a query that sees no key: weights of 0. In parts, another part may have one.
        own_log_sum_exp = tl.where((total > 0.0) | (num_parts > 1), own_log_sum_exp, float("inf"))
    tl.store(log_sum_exp + place, own_log_sum_exp, mask=inside)
    if meeting is not None:
        tl.store(meeting + place, tl.zeros((QUERIES,), tl.int32) + last_block * KEYS, mask=inside)
        tl.store(meeting_count + place, count, mask=inside)
    averages = accumulated / tl.where(total > 0.0, total, 1.0)[:, None]
    output += part.to(tl.int64) * num_heads_in_all * num_queries * inputs.value_dim
    store_rows(output, head, inputs.num_heads, first_query, num_queries, inputs.value_dim, averages, QUERIES, VALUE_DIM)
