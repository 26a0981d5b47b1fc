"""The gradients, with the output's gradient do and delta_i = do_i . o_i. Each tile is computed anew in each kernel.

1. ``query_gradients_kernel`` owns a block of queries and walks over the keys from left to right, subtracting gates from the
   count that the forward pass left where its zones meet:

       a_ij = exp(s_ij - log_sum_exp_i)
       ds_ij = a_ij (do_i . v_j - delta_i)
       dp_ij = ds_ij (z_i[floor p + 1] - z_i[floor p])             0 beyond the last position
       dg_it = sum_{j <= t} dp_ij                                  gate t is in every p_ij with j <= t
       d(gate logit)_it = dg_it g_it (1 - g_it)

   It leaves delta, and at every edge between blocks of keys the count and the sum of dp, with which the next kernel can start at
   any tile. For dz it needs no scattered sums: along a row the floor f of the position falls by at most one at a time, so the
   keys with the same f stand side by side, and where f changes the row's sums of ds and of ds w so far (w = p - f) are stored
   in a row of ``crossings``. Differences of neighbours are the sums of one f, A_f and B_f:

       dz_i[f] = A_f - B_f + B_{f-1}                               interpolation gives 1 - w to f and w to f + 1

2. ``key_gradients_kernel`` owns a block of keys, walks over the queries that see it, and writes dk, dv and dgate_keys.
3. ``distance_gradients_kernel``, only with a relative term or a bias, owns a diagonal of tiles: all have the same distances.
   Neighbouring diagonals share distances, so each writes sums of its own, and PyTorch adds them up.

Every number has one program that adds to it, in a fixed order: gradients are the same to the bit from run to run.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from cope.kernels.triton.tiles import (
    BITS,
    LN_2,
    across,
    content_logits,
    count_beyond,
    counted_logits,
    dropout_mask,
    joined,
    load_rows,
    pack,
    product,
    relative_window,
    rows_of_z,
    split_count,
    store_pairs,
    store_rows,
    sums_from_the_left,
    tile_product,
    to_distances,
    unpack,
    with_distance,
)


@triton.jit
def _attention_gradients(
    inputs, head, logits, do, v, log_sum_exp, delta, first_query, first_key,
    KEY_AXIS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a tile: the attention weights by which the values were multiplied, and ds."""
    weights = tl.exp2(logits - across(log_sum_exp, KEY_AXIS))
    da = tile_product(do, v, KEY_AXIS, PRECISION)
    if inputs.seed is not None:
        mask = dropout_mask(inputs, head, first_query, first_key, KEY_AXIS, QUERIES, KEYS)
        return weights * mask, weights * (da * mask - across(delta, KEY_AXIS))
    else:
        return weights, weights * (da - across(delta, KEY_AXIS))


@triton.jit
def _load(tensor, head, first_query, num_queries, other, QUERIES: tl.constexpr):
    """A number for each query of a block, from a (batch, heads, query) tensor."""
    queries = first_query + tl.arange(0, QUERIES)
    return tl.load(tensor + head.to(tl.int64) * num_queries + queries, mask=queries < num_queries, other=other)


@triton.jit
def _counts_at_edge(
    inputs,
    counted_from,
    edge_counts,
    head,
    first_query,
    first_key,
    num_keys,
    num_rows,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Each query's count at the right edge of a block of keys, split; where those edges are, and which of them were written."""
    queries = first_query + tl.arange(0, QUERIES)
    edge = (head.to(tl.int64) * tl.cdiv(num_keys, KEYS) + first_key // KEYS) * num_rows + queries
    counted = first_key >= tl.load(counted_from + head.to(tl.int64) * num_rows + queries)
    beyond, none = split_count(inputs, count_beyond(inputs, QUERIES))
    return tl.load(edge_counts + edge, mask=counted, other=joined(beyond, none)), edge, counted


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
    statistics (3, batch * heads, row): log-sum-exp (infinite where there is no query: all attention weights are 0), the same less
    z at the last position, delta;
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
    own_log_sum_exp = _load(log_sum_exp, head, first_query, num_queries, float("inf"), QUERIES)
    rows = rows_of_z(inputs, head, first_query, num_queries, QUERIES)

    # Blocks of keys that every query sees and, with a table, that lie beyond the last position for every query.
    first_counted = tl.maximum(first_query + offset, 0) // KEYS
    beyond = tl.zeros((QUERIES,), tl.float32)
    own_meeting = tl.zeros((QUERIES,), tl.int32)
    count = tl.zeros((QUERIES,), tl.int64)
    if inputs.z is not None:
        beyond, _no_slope = unpack(tl.load(inputs.z + rows + inputs.num_positions - 1))
        own_meeting = _load(meeting, head, first_query, num_queries, num_keys, QUERIES)
        first_counted = tl.minimum(first_counted, tl.min(own_meeting, 0) // KEYS)
        count = _load(meeting_count, head, first_query, num_queries, 0, QUERIES)
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
        logits = content_logits(inputs, q, k, 1, PRECISION)
        logits = with_distance(inputs, head, q, logits, gap, scratch, 1, QUERIES, PLAIN_KEYS, HEAD_DIM, PRECISION)
        if inputs.z is not None:
            logits += beyond[:, None]
        weights, ds = _attention_gradients(
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
        logits, gates, rounded, whole, rest, below, slope, right = counted_logits(
            inputs, head, q, k, gate_keys, gap, tl.where(met, count, count_beyond(inputs, QUERIES)), rows, scratch,
            "left", 1, QUERIES, KEYS, HEAD_DIM, PRECISION,
        )  # fmt: skip
        _weights, ds = _attention_gradients(
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
        for start in tl.range(0, inputs.num_positions, POSITIONS, num_stages=1):
            positions = start + tl.arange(0, POSITIONS)
            # Of f itself and of f - 1; the row's sums up to f + 1, f and f - 1.
            f = positions[None, :] + tl.zeros((QUERIES, POSITIONS), tl.int32)
            there, there_below = (
                inside[:, None] & (f <= highest[:, None]),
                inside[:, None] & (f >= 1) & (f - 1 <= highest[:, None]),
            )
            none = tl.zeros((QUERIES, POSITIONS), tl.int64)
            own = crossings + rows[:, None] + f
            a_above, b_above = unpack(tl.load(own + 1, mask=inside[:, None] & (f + 1 <= highest[:, None]), other=none))
            a, b = unpack(tl.load(own, mask=there, other=none))
            _a_below, b_below = unpack(tl.load(own - 1, mask=there_below, other=none))
            own_dz = tl.where(there, (a - a_above) - (b - b_above), 0.0) + tl.where(there_below, b_below - b, 0.0)
            in_table = (positions < inputs.num_positions)[:, None] & (columns < inputs.head_dim)[None, :]
            vectors = tl.load(table + positions[:, None] * inputs.head_dim + columns[None, :], mask=in_table, other=0.0)
            accumulated += product(own_dz, vectors, PRECISION) * table_scale
            in_dz = inside[:, None] & (positions < inputs.num_positions)[None, :]
            tl.store(dz + rows[:, None] + f, own_dz.to(dz.dtype.element_ty), mask=in_dz)
    store_rows(dq, head, inputs.num_heads, first_query, num_queries, inputs.head_dim, accumulated, QUERIES, HEAD_DIM)


@triton.jit
def _key_gradients(
    inputs, head, k, v, gate_keys, grad_output, statistics, counted_from, edge_counts, edge_sums, scratch,
    for_k, for_v, for_gate_keys, first_query, first_key, num_queries, num_keys, num_rows, num_heads_in_all,
    COUNTED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile's share of the gradients of its keys."""
    gap = first_query + num_keys - num_queries - first_key
    q = load_rows(inputs.q, head, inputs.num_heads, first_query, num_queries, inputs.head_dim, QUERIES, HEAD_DIM, WHOLE)
    do = load_rows(grad_output, head, inputs.num_heads, first_query, num_queries, inputs.value_dim, QUERIES, VALUE_DIM, WHOLE)
    row = statistics + head.to(tl.int64) * num_rows + first_query + tl.arange(0, QUERIES)
    heads_and_rows = num_rows.to(tl.int64) * num_heads_in_all
    own_delta = tl.load(row + 2 * heads_and_rows)
    if COUNTED:
        own_log_sum_exp = tl.load(row)
        rows = rows_of_z(inputs, head, first_query, num_queries, QUERIES)
        count = tl.zeros((QUERIES,), tl.int64)
        dp_sum = tl.zeros((QUERIES,), tl.float32)
        if inputs.z is not None:
            count, edge, counted = _counts_at_edge(
                inputs, counted_from, edge_counts, head, first_query, first_key, num_keys, num_rows, QUERIES, KEYS
            )
            dp_sum = tl.load(edge_sums + edge, mask=counted, other=0.0)
        logits, gates, _rounded, _whole, _rest, _below, slope, _left = counted_logits(
            inputs, head, q, k, gate_keys, gap, count, rows, scratch, "split", 0, QUERIES, KEYS, HEAD_DIM, PRECISION
        )
    else:
        own_log_sum_exp = tl.load(row + heads_and_rows)
        logits = content_logits(inputs, q, k, 0, PRECISION)
        logits = with_distance(inputs, head, q, logits, gap, scratch, 0, QUERIES, KEYS, HEAD_DIM, PRECISION)
    weights, ds = _attention_gradients(
        inputs, head, logits, do, v, own_log_sum_exp, own_delta, first_query, first_key, 0, QUERIES, KEYS, PRECISION
    )
    for_v = tl.dot(weights.to(do.dtype), do, for_v, input_precision=PRECISION)
    dlogits = ds
    if COUNTED and inputs.z is not None:
        dgates = dp_sum[None, :] + sums_from_the_left(ds * slope * LN_2, k, 0, KEYS, PRECISION)
        dgate_logits = dgates * (gates * (1.0 - gates))
        if gate_keys is not None:
            for_gate_keys = tl.dot(dgate_logits.to(q.dtype), q, for_gate_keys, input_precision=PRECISION)
        else:
            dlogits += dgate_logits
    for_k = tl.dot(dlogits.to(q.dtype), q, for_k, input_precision=PRECISION)
    return for_k, for_v, for_gate_keys


@triton.jit(do_not_specialize=["num_queries", "num_keys", "num_rows"])
def key_gradients_kernel(
    inputs, grad_output, statistics, counted_from, edge_counts, edge_sums, last_counted, dk, dv, dgate_keys, scratch,
    num_queries, num_keys, num_rows,
    QUERIES: tl.constexpr, PLAIN_QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk, dv and, where gates have keys of their own, dgate_keys; a program for each block of keys."""
    num_key_blocks = tl.cdiv(num_keys, KEYS)
    head, key_block = tl.program_id(0) // num_key_blocks, tl.program_id(0) % num_key_blocks
    num_heads_in_all = tl.num_programs(0) // num_key_blocks
    first_key = key_block * KEYS
    if scratch is not None:
        scratch += tl.program_id(0).to(tl.int64) * QUERIES * (QUERIES + KEYS)
    k = load_rows(inputs.k, head, inputs.num_heads, first_key, num_keys, inputs.head_dim, KEYS, HEAD_DIM, WHOLE)
    v = load_rows(inputs.v, head, inputs.num_heads, first_key, num_keys, inputs.value_dim, KEYS, VALUE_DIM, WHOLE)
    gate_keys = None
    if inputs.gate_keys is not None:
        gate_keys = load_rows(
            inputs.gate_keys, head, inputs.num_heads, first_key, num_keys, inputs.head_dim, KEYS, HEAD_DIM, WHOLE
        )
    for_k = tl.zeros((KEYS, HEAD_DIM), tl.float32)
    for_v = tl.zeros((KEYS, VALUE_DIM), tl.float32)
    for_gate_keys = tl.zeros((KEYS, HEAD_DIM), tl.float32)
    # The first query that sees a key of this block stands at the block's first key, or is the first of all. Up to the last
    # query that does not see all of the block, or for which gates are counted here, comes all that counting takes.
    offset = num_keys - num_queries
    first_block = tl.maximum(first_key - offset, 0) // QUERIES
    last_query = tl.minimum(first_key + KEYS - offset, num_queries)
    if inputs.z is not None:
        last_query = tl.maximum(last_query, tl.load(last_counted + head.to(tl.int64) * num_key_blocks + key_block))
    first_plain_block = tl.cdiv(tl.maximum(last_query, first_block * QUERIES), PLAIN_QUERIES)
    last_block = tl.minimum(first_plain_block * (PLAIN_QUERIES // QUERIES), tl.cdiv(num_queries, QUERIES))
    for query_block in tl.range(first_block, last_block, num_stages=1):
        for_k, for_v, for_gate_keys = _key_gradients(
            inputs, head, k, v, gate_keys, grad_output, statistics, counted_from, edge_counts, edge_sums, scratch,
            for_k, for_v, for_gate_keys, query_block * QUERIES, first_key, num_queries, num_keys, num_rows, num_heads_in_all,
            True, QUERIES, KEYS, HEAD_DIM, VALUE_DIM, WHOLE, PRECISION,
        )  # fmt: skip
    for query_block in range(first_plain_block, tl.cdiv(num_queries, PLAIN_QUERIES)):
        for_k, for_v, for_gate_keys = _key_gradients(
            inputs, head, k, v, gate_keys, grad_output, statistics, counted_from, edge_counts, edge_sums, scratch,
            for_k, for_v, for_gate_keys, query_block * PLAIN_QUERIES, first_key, num_queries, num_keys, num_rows,
            num_heads_in_all, False, PLAIN_QUERIES, KEYS, HEAD_DIM, VALUE_DIM, WHOLE, PRECISION,
        )  # fmt: skip
    store_rows(dk, head, inputs.num_heads, first_key, num_keys, inputs.head_dim, for_k * inputs.scale, KEYS, HEAD_DIM)
    store_rows(dv, head, inputs.num_heads, first_key, num_keys, inputs.value_dim, for_v, KEYS, VALUE_DIM)
    if inputs.gate_keys is not None:
        gradient = for_gate_keys * inputs.scale
        store_rows(dgate_keys, head, inputs.num_heads, first_key, num_keys, inputs.head_dim, gradient, KEYS, HEAD_DIM)


@triton.jit(do_not_specialize=["first_diagonal", "num_diagonals", "num_queries", "num_keys", "num_rows", "num_heads_in_all"])
def distance_gradients_kernel(
    inputs, grad_output, statistics, counted_from, edge_counts, drelative, dbias, scratch,
    first_diagonal, num_diagonals, num_queries, num_keys, num_rows, num_heads_in_all,
    BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """drelative (batch * heads, diagonal, 2 BLOCK, head_dim) and dbias (batch * heads, diagonal, 2 BLOCK), by the number of
    the distance in the diagonal's tiles; a program for each diagonal, query block - key block."""
    head, nth = tl.program_id(0) // num_diagonals, tl.program_id(0) % num_diagonals
    diagonal = first_diagonal + nth
    gap = diagonal * BLOCK + num_keys - num_queries
    scratch += tl.program_id(0).to(tl.int64) * BLOCK * 2 * BLOCK
    for_relative = tl.zeros((2 * BLOCK, HEAD_DIM), tl.float32)
    for_bias = tl.zeros((2 * BLOCK,), tl.float32)
    num_query_blocks, num_key_blocks = tl.cdiv(num_queries, BLOCK), tl.cdiv(num_keys, BLOCK)
    for query_block in range(tl.maximum(diagonal, 0), tl.minimum(num_query_blocks, num_key_blocks + diagonal)):
        first_query, first_key = query_block * BLOCK, (query_block - diagonal) * BLOCK
        q = load_rows(inputs.q, head, inputs.num_heads, first_query, num_queries, inputs.head_dim, BLOCK, HEAD_DIM, WHOLE)
        do = load_rows(grad_output, head, inputs.num_heads, first_query, num_queries, inputs.value_dim, BLOCK, VALUE_DIM, WHOLE)
        k = load_rows(inputs.k, head, inputs.num_heads, first_key, num_keys, inputs.head_dim, BLOCK, HEAD_DIM, WHOLE)
        v = load_rows(inputs.v, head, inputs.num_heads, first_key, num_keys, inputs.value_dim, BLOCK, VALUE_DIM, WHOLE)
        gate_keys = None
        if inputs.gate_keys is not None:
            gate_keys = load_rows(
                inputs.gate_keys, head, inputs.num_heads, first_key, num_keys, inputs.head_dim, BLOCK, HEAD_DIM, WHOLE
            )
        row = statistics + head.to(tl.int64) * num_rows + first_query + tl.arange(0, BLOCK)
        own_log_sum_exp, own_delta = tl.load(row), tl.load(row + 2 * num_rows.to(tl.int64) * num_heads_in_all)
        rows = rows_of_z(inputs, head, first_query, num_queries, BLOCK)
        count = tl.zeros((BLOCK,), tl.int64)
        if inputs.z is not None:
            count, _edge, _counted = _counts_at_edge(
                inputs, counted_from, edge_counts, head, first_query, first_key, num_keys, num_rows, BLOCK, BLOCK
            )
        logits, _gates, _rounded, _whole, _rest, _below, _slope, _left = counted_logits(
            inputs, head, q, k, gate_keys, gap, count, rows, scratch, "split", 0, BLOCK, BLOCK, HEAD_DIM, PRECISION
        )
        _weights, ds = _attention_gradients(
            inputs, head, logits, do, v, own_log_sum_exp, own_delta, first_query, first_key, 0, BLOCK, BLOCK, PRECISION
        )
        by_distance = to_distances(scratch, ds, 0, BLOCK, BLOCK)
        if inputs.relative is not None:
            for_relative += product(by_distance, q, PRECISION)
        if inputs.bias is not None:
            for_bias += tl.sum(by_distance, 1)

    numbers, columns = tl.arange(0, 2 * BLOCK), tl.arange(0, HEAD_DIM)
    row = (head.to(tl.int64) * num_diagonals + nth) * (2 * BLOCK) + numbers
    if inputs.relative is not None:
        in_vector = (columns < inputs.head_dim)[None, :] & (numbers >= 0)[:, None]
        tl.store(drelative + row[:, None] * inputs.head_dim + columns[None, :], for_relative * inputs.scale, mask=in_vector)
    if inputs.bias is not None:
        tl.store(dbias + row, for_bias)
