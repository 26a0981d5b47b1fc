"""The kernel that owns queries in the backward pass: the first of ``gradients.py``."""

# Kernels are compiled by Triton, which has no types to write down for their parameters.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from cope.kernels.triton.counting import BITS, count_beyond, joined, pack, rows_of_z, split_count, store_pairs, unpack
from cope.kernels.triton.gradients import attention_gradients, load_statistic
from cope.kernels.triton.logits import counted_logits, relative_window, to_distances, with_distance
from cope.kernels.triton.tiles import LN_2, content_logits, load_key_mask, load_rows, product, store_rows, sums_from_the_left


@triton.jit(do_not_specialize=["num_queries", "num_keys", "num_rows"])
def query_gradients_kernel(
    inputs, table, table_scale, output, grad_output, log_sum_exp, meeting, meeting_count,
    statistics, counted_from, edge_counts, edge_sums, last_counted, crossings, dz, dq, scratch, num_queries, num_keys, num_rows,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PLAIN_KEYS: tl.constexpr, EDGE_KEYS: tl.constexpr, HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Writes, with a program for each block of queries:

    dq; dz (batch * heads, query, num_positions); and for the other kernels, with num_rows >= num_queries rows a head, so that
    nothing need be masked there:
    statistics (3, batch * heads, row): log-sum-exp (infinite where there is no query: all attention weights are 0), the same
    less z at the last position, delta;
    counted_from (batch * heads, row): the first key whose gate was counted;
    edge_counts, edge_sums (batch * heads, block of EDGE_KEYS keys, row): at the right edge of a block that has such keys the
    count, split, at its left edge the sum of dp so far;
    last_counted (batch * heads, block of EDGE_KEYS keys): one more than the last query for which it has such keys.
    """
    num_blocks = tl.cdiv(num_queries, QUERIES)
    program = tl.program_id(0)
    head, first_query = program // num_blocks, (num_blocks - 1 - program % num_blocks) * QUERIES
    offset = num_keys - num_queries
    num_edges = tl.cdiv(num_keys, EDGE_KEYS)
    queries = first_query + tl.arange(0, QUERIES)
    inside = queries < num_queries
    if scratch is not None:
        scratch += program.to(tl.int64) * QUERIES * (QUERIES + KEYS)

    q = load_rows(inputs.q, head, inputs.num_heads, first_query, num_queries, inputs.head_dim, QUERIES, HEAD_DIM, WHOLE)
    do = load_rows(grad_output, head, inputs.num_heads, first_query, num_queries, inputs.value_dim, QUERIES, VALUE_DIM, WHOLE)
    o = load_rows(output, head, inputs.num_heads, first_query, num_queries, inputs.value_dim, QUERIES, VALUE_DIM, WHOLE)
    own_delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    own_log_sum_exp = load_statistic(log_sum_exp, head, first_query, num_queries, float("inf"), QUERIES)
    rows = rows_of_z(inputs, head, first_query, num_queries, QUERIES)

    # Blocks of keys that every query sees and, with a table, that lie beyond the last position for every query.
    first_counted = tl.maximum(first_query + offset, 0) // KEYS
    beyond = tl.zeros((QUERIES,), tl.float32)
    own_meeting = tl.zeros((QUERIES,), tl.int32)
    count = tl.zeros((QUERIES,), tl.int64)
    if inputs.z is not None:
        beyond, _no_slope = unpack(tl.load(inputs.z + rows + inputs.num_positions - 1))
        own_meeting = load_statistic(meeting, head, first_query, num_queries, num_keys, QUERIES)
        first_counted = tl.minimum(first_counted, tl.min(own_meeting, 0) // KEYS)
        count = load_statistic(meeting_count, head, first_query, num_queries, 0, QUERIES)
    first_counted = first_counted // (PLAIN_KEYS // KEYS) * (PLAIN_KEYS // KEYS)
    row = head.to(tl.int64) * num_rows + queries
    heads_and_rows = num_rows.to(tl.int64) * (tl.num_programs(0) // num_blocks)
    tl.store(statistics + row, own_log_sum_exp)
    tl.store(statistics + heads_and_rows + row, own_log_sum_exp - beyond)
    tl.store(statistics + 2 * heads_and_rows + row, own_delta)
    if inputs.z is not None:
        tl.store(counted_from + row, tl.zeros((QUERIES,), tl.int32) + first_counted * KEYS)
    ds_sum = tl.zeros((QUERIES,), tl.float32)
    accumulated = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    for key_block in range(0, first_counted // (PLAIN_KEYS // KEYS)):
        first_key = key_block * PLAIN_KEYS
        gap = first_query + offset - first_key
        k = load_rows(inputs.k, head, inputs.num_heads, first_key, num_keys, inputs.head_dim, PLAIN_KEYS, HEAD_DIM, WHOLE)
        v = load_rows(inputs.v, head, inputs.num_heads, first_key, num_keys, inputs.value_dim, PLAIN_KEYS, VALUE_DIM, WHOLE)
        shown = load_key_mask(inputs, head, first_key, num_keys, PLAIN_KEYS)
        logits = content_logits(inputs, q, k, shown, 1, PRECISION)
        logits = with_distance(inputs, head, q, logits, gap, scratch, 1, QUERIES, PLAIN_KEYS, HEAD_DIM, PRECISION)
        if inputs.z is not None:
            logits += beyond[:, None]
        _weights, ds = attention_gradients(
            inputs, head, logits, do, v, own_log_sum_exp, own_delta, first_query, first_key, 1, QUERIES, PLAIN_KEYS, PRECISION
        )
        if inputs.z is not None:
            ds_sum += tl.sum(ds, 1)
        accumulated = tl.dot(ds.to(k.dtype), k, accumulated, input_precision=PRECISION)
        if inputs.relative is not None:
            window = relative_window(inputs, gap, QUERIES, PLAIN_KEYS, HEAD_DIM)
            accumulated += product(to_distances(scratch, ds, 1, QUERIES, PLAIN_KEYS), window, PRECISION)

    weighted_sum = tl.zeros((QUERIES,), tl.float32)
    dp_sum = tl.zeros((QUERIES,), tl.float32)
    highest = tl.minimum(count >> BITS, tl.maximum(inputs.num_positions - 1, 0)).to(tl.int32)  # floor of the leftmost position
    last_block = tl.cdiv(tl.minimum(first_query + QUERIES + offset, num_keys), KEYS)
    # One stage: Triton would load z ahead, too, which takes positions, which take a product.
    for key_block in tl.range(first_counted, last_block, num_stages=1):
        first_key = key_block * KEYS
        gap = first_query + offset - first_key
        k = load_rows(inputs.k, head, inputs.num_heads, first_key, num_keys, inputs.head_dim, KEYS, HEAD_DIM, WHOLE)
        v = load_rows(inputs.v, head, inputs.num_heads, first_key, num_keys, inputs.value_dim, KEYS, VALUE_DIM, WHOLE)
        gate_keys = None
        if inputs.gate_keys is not None:
            gate_keys = load_rows(
                inputs.gate_keys, head, inputs.num_heads, first_key, num_keys, inputs.head_dim, KEYS, HEAD_DIM, WHOLE
            )
        # A block of queries may be made of several of the forward pass, each with a meeting of its own. Keys before a query's
        # meeting are beyond its last position.
        met = first_key >= own_meeting
        shown = load_key_mask(inputs, head, first_key, num_keys, KEYS)
        logits, gates, rounded, whole, rest, below, slope, right = counted_logits(
            inputs, head, q, k, shown, gate_keys, gap, tl.where(met, count, count_beyond(inputs, QUERIES)), rows, scratch,
            "left", 1, QUERIES, KEYS, HEAD_DIM, PRECISION,
        )  # fmt: skip
        _weights, ds = attention_gradients(
            inputs, head, logits, do, v, own_log_sum_exp, own_delta, first_query, first_key, 1, QUERIES, KEYS, PRECISION
        )
        dlogits = ds
        if inputs.z is not None:
            count = tl.where(met, right, count)
            edge = head.to(tl.int64) * num_edges + first_key // EDGE_KEYS
            if first_key % EDGE_KEYS == 0:
                tl.store(edge_sums + edge * num_rows + queries, dp_sum)
                tl.atomic_max(last_counted + edge, first_query + QUERIES)
            if ((first_key + KEYS) % EDGE_KEYS == 0) | (key_block == last_block - 1):
                counted, fraction = split_count(inputs, tl.where(met, count, count_beyond(inputs, QUERIES)))
                tl.store(edge_counts + edge * num_rows + queries, joined(counted, fraction))

            last = inputs.num_positions - 1
            weighted = tl.where(whole < last, ds * rest, 0.0)
            ds_sums = ds_sum[:, None] + sums_from_the_left(ds, k, 1, KEYS, PRECISION)
            weighted_sums = weighted_sum[:, None] + sums_from_the_left(weighted, k, 1, KEYS, PRECISION)
            # The next key's position has a smaller whole part.
            crossed = (rest < rounded) & (whole <= last) & inside[:, None]
            store_pairs(crossings + rows[:, None] + below, ds_sums, weighted_sums, crossed)
            ds_sum += tl.sum(ds, 1)
            weighted_sum += tl.sum(weighted, 1)

            dp = ds * slope * LN_2
            dgates = dp_sum[:, None] + sums_from_the_left(dp, k, 1, KEYS, PRECISION)
            dp_sum += tl.sum(dp, 1)
            dgate_logits = dgates * (gates * (1.0 - gates))
            if gate_keys is not None:
                accumulated += product(dgate_logits, gate_keys, PRECISION)
            else:
                dlogits += dgate_logits
        accumulated = tl.dot(dlogits.to(k.dtype), k, accumulated, input_precision=PRECISION)
        if inputs.relative is not None:
            window = relative_window(inputs, gap, QUERIES, KEYS, HEAD_DIM)
            accumulated += product(to_distances(scratch, ds, 1, QUERIES, KEYS), window, PRECISION)

    accumulated *= inputs.scale
    if inputs.z is not None:
        # The keys of position 0 to 1 end with the row.
        tl.debug_barrier()
        tl.store(crossings + rows, pack(ds_sum, weighted_sum), mask=inside)
        tl.debug_barrier()
        columns = tl.arange(0, HEAD_DIM)
        end = tl.minimum(tl.max(highest, 0) + 2, inputs.num_positions)
        for start in tl.range(0, end, POSITIONS, num_stages=1):
            # Of f itself and of f - 1; the row's sums up to f + 1, f and f - 1.
            f = start + tl.arange(0, POSITIONS)[None, :] + tl.zeros((QUERIES, POSITIONS), tl.int32)
            there = inside[:, None] & (f <= highest[:, None])
            there_above = inside[:, None] & (f < highest[:, None])
            there_below = inside[:, None] & (f >= 1) & (f - 1 <= highest[:, None])
            none = tl.zeros((QUERIES, POSITIONS), tl.int64)
            own = crossings + rows[:, None] + f
            a_above, b_above = unpack(tl.load(own + 1, mask=there_above, other=none))
            a, b = unpack(tl.load(own, mask=there, other=none))
            _a_below, b_below = unpack(tl.load(own - 1, mask=there_below, other=none))
            own_dz = tl.where(there, (a - a_above) - (b - b_above), 0.0) + tl.where(there_below, b_below - b, 0.0)
            positions = start + tl.arange(0, POSITIONS)
            in_table = (positions < inputs.num_positions)[:, None] & (columns < inputs.head_dim)[None, :]
            vectors = tl.load(table + positions[:, None] * inputs.head_dim + columns[None, :], mask=in_table, other=0.0)
            accumulated += product(own_dz, vectors, PRECISION) * table_scale
            in_dz = inside[:, None] & (positions < inputs.num_positions)[None, :]
            tl.store(dz + rows[:, None] + f, own_dz.to(dz.dtype.element_ty), mask=in_dz)
        for start in tl.range(tl.cdiv(end, POSITIONS) * POSITIONS, inputs.num_positions, POSITIONS, num_stages=1):
            positions = start + tl.arange(0, POSITIONS)
            in_dz = inside[:, None] & (positions < inputs.num_positions)[None, :]
            zeros = tl.zeros((QUERIES, POSITIONS), tl.float32)
            tl.store(dz + rows[:, None] + positions[None, :], zeros.to(dz.dtype.element_ty), mask=in_dz)
    store_rows(dq, head, inputs.num_heads, first_query, num_queries, inputs.head_dim, accumulated, QUERIES, HEAD_DIM)
