"""The Triton kernels of CoPE attention and its gradients; ``triton.py`` launches them.

All walk over tiles of BLOCK queries x BLOCK keys and keep nothing of a tile but sums, as FlashAttention does (Dao et al. 2022,
arXiv 2205.14135). Letters are the paper's: gates g, positions p, z_ip = q_i . e[p] for the table's vector e[p], attention
logits s, attention weights a. ``z`` is small, (batch, heads, query, num_positions), and comes as a tensor, scaled already.

Forward. A program owns a block of queries of one head and walks over the keys from the diagonal to the left, because
p_ij = g_ij + ... + g_ii counts from the query backwards. For each query it carries the count so far, the largest logit and the
sum of exponentials so far (online softmax), and the output. It leaves the output and log sum_j exp(s_ij).

Positions are integers, whole positions << BITS: sums of integers are exact in any order, so that a query's positions do not
depend on how its keys are cut into tiles, and never step back. The count is clamped at the last position: it bounds the sums.

Backward, with the output's gradient do and delta_i = do_i . o_i. Four kernels, each tile computed anew in each:

1. ``count_kernel`` walks as the forward pass does, over the gates alone, and stores every query's count at the right edge
   of every tile. With it the other kernels start at any tile.
2. ``query_gradients_kernel`` owns a block of queries and walks over the keys from left to right:

       a_ij = exp(s_ij - log_sum_exp_i)
       ds_ij = a_ij (do_i . v_j - delta_i)
       dz_i[floor p] += ds (1 - w), dz_i[floor p + 1] += ds w      interpolation, w = p - floor p
       dp_ij = ds_ij (z_i[floor p + 1] - z_i[floor p])             0 at the last position, where p is clamped
       dg_it = sum_{j <= t} dp_ij                                  gate t is in every p_ij with j <= t
       d(gate logit)_it = dg_it g_it (1 - g_it)

   It carries the sum of dp so far, stores it at the left edge of every tile for the next kernel, and writes dq and dz. What dz
   gives to the queries and to the table are plain matrix products, left to PyTorch.
3. ``key_gradients_kernel`` owns a block of keys, walks over the queries that see it, and writes dk, dv and dgate_keys.
4. ``distance_gradients_kernel``, only with a relative term or a bias, owns a diagonal of tiles: all have the same 2 BLOCK - 1
   distances. Neighbouring diagonals share distances, so each writes sums of its own, and PyTorch adds them up.

Every number has one program that adds to it, in a fixed order: gradients are the same to the bit from run to run. Memory
beyond inputs, outputs and z is linear in time, but for the two numbers that a query keeps for each tile in the backward pass:
8 / BLOCK bytes per query and key (with blocks of 32, 4 MB per head at 4096 tokens).
"""

# Kernels are compiled by Triton, which has no types to write down for their parameters.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# Products are computed on tensor cores as three tf32 products, which together are about as exact as float32. One alone has
# 10 bits, too few for positions, sums of many gates: outputs would be off by 1e-3 and gradients by 1e-2.
PRECISION = tl.constexpr("tf32x3")


class View(NamedTuple):
    """A (batch, heads, time, size) tensor, contiguous in its last dimension."""

    data: Any
    strides: tuple[int, int, int]


class Inputs(NamedTuple):
    """What all kernels read. What is None is left out when they are compiled."""

    q: View
    k: View
    v: View
    gate_keys: View | None
    z: Any  # (batch, heads, query, num_positions)
    relative: Any  # (num_distances, head_dim)
    bias: Any  # (heads, num_biases), or one row for all heads: bias_stride is 0 then
    seed: int | None
    num_heads: int
    num_queries: int
    num_keys: int
    head_dim: int
    value_dim: int
    num_positions: int
    furthest: int  # position that a count can get to: the last of all, or one for each key
    num_distances: int
    num_biases: int
    bias_stride: int
    scale: float  # of q.k
    dropout: float


@triton.jit
def _load_rows(view, head, num_heads, rows, num_rows, size, SIZE: tl.constexpr):
    """(rows, SIZE) of one head, 0 where the tensor ends. Heads are numbered across the batch."""
    columns = tl.arange(0, SIZE)
    start = view.data + (head // num_heads).to(tl.int64) * view.strides[0] + (head % num_heads).to(tl.int64) * view.strides[1]
    inside = (rows < num_rows)[:, None] & (columns < size)[None, :]
    return tl.load(start + rows.to(tl.int64)[:, None] * view.strides[2] + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store_rows(tensor, head, num_heads, rows, num_rows, size, values, SIZE: tl.constexpr):
    """The counterpart of _load_rows, for a tensor laid out as (batch, time, heads, size)."""
    columns = tl.arange(0, SIZE)
    row = ((head // num_heads).to(tl.int64) * num_rows + rows) * num_heads + head % num_heads
    inside = (rows < num_rows)[:, None] & (columns < size)[None, :]
    tl.store(tensor + row[:, None] * size + columns[None, :], values, mask=inside)


@triton.jit
def _products(rows, columns):
    """Of each row of the one with each row of the other."""
    return tl.dot(rows, tl.trans(columns), input_precision=PRECISION)


@triton.jit
def _visible(inputs, queries, keys):
    """Whether a query may look at a key. The last query stands at the last key."""
    own_keys = queries + (inputs.num_keys - inputs.num_queries)
    return (keys[None, :] <= own_keys[:, None]) & (keys < inputs.num_keys)[None, :]


@triton.jit
def _count(inputs, gate_logits, visible, count, BITS: tl.constexpr):
    """Gates of a tile, positions, and each query's count at the tile's left edge, given that at its right edge."""
    gates = tl.where(visible, tl.sigmoid(gate_logits), 0.0)
    # A NaN counts as 1: the index made of it stays within the table.
    steps = (tl.where(gates <= 1.0, gates, 1.0) * (1 << BITS) + 0.5).to(tl.int32)
    last = inputs.furthest << BITS
    count += tl.sum(steps, 1)
    positions = count[:, None] - tl.cumsum(steps, 1) + steps
    return gates, tl.minimum(positions, last), tl.minimum(count, last)


@triton.jit
def _interpolate(inputs, head, queries, positions, BITS: tl.constexpr):
    """z at fractional positions (Equation 5), and its slope there."""
    below = positions >> BITS
    above = tl.minimum(below + 1, inputs.num_positions - 1)
    weight = (positions - (below << BITS)).to(tl.float32) * (1.0 / (1 << BITS))
    row = inputs.z + (head.to(tl.int64) * inputs.num_queries + queries)[:, None] * inputs.num_positions
    inside = (queries < inputs.num_queries)[:, None]
    z_below = tl.load(row + below, mask=inside, other=0.0)
    slope = tl.load(row + above, mask=inside, other=0.0) - z_below
    return z_below + slope * weight, slope


# In a tile with the distance `gap` between its first query and its first key, query m and key n are gap + m - n apart. The
# 2 BLOCK - 1 distances are numbered in rising order: number m - n + BLOCK - 1 is the distance of m and n. (Number 2 BLOCK - 1
# is there because sizes must be powers of two; no pair has it.)


@triton.jit
def _relative_window(inputs, gap, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr):
    """The vectors r of a tile's distances, (2 BLOCK, HEAD_DIM)."""
    distance = gap - (BLOCK - 1) + tl.arange(0, 2 * BLOCK)
    rows = tl.minimum(tl.maximum(distance, 0), inputs.num_distances - 1)
    columns = tl.arange(0, HEAD_DIM)
    inside = (columns < inputs.head_dim)[None, :]
    return tl.load(inputs.relative + rows[:, None] * inputs.head_dim + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _to_keys(by_distance, BLOCK: tl.constexpr):
    """(query, number of the distance) -> (query, key)."""
    index = tl.arange(0, BLOCK)[:, None] - tl.arange(0, BLOCK)[None, :] + (BLOCK - 1)
    return tl.gather(by_distance, index, 1)


@triton.jit
def _to_distances(by_key, BLOCK: tl.constexpr):
    """(query, key) -> (query, number of the distance), 0 for a distance that the query has to no key of the tile."""
    index = tl.arange(0, BLOCK)[:, None] - tl.arange(0, 2 * BLOCK)[None, :] + (BLOCK - 1)
    here = (index >= 0) & (index < BLOCK)
    return tl.where(here, tl.gather(by_key, tl.where(here, index, 0), 1), 0.0)


@triton.jit
def _logits(
    inputs, head, q, k, gate_keys, queries, keys, gap, count, BITS: tl.constexpr, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """Attention logits of a tile, -inf where a query may not look, and what the gates did on the way (all 0 without a table):
    gates, positions, slope of z, and each query's count at the tile's left edge, given that at its right edge."""
    visible = _visible(inputs, queries, keys)
    logits = _products(q, k) * inputs.scale
    gates = tl.zeros((BLOCK, BLOCK), tl.float32)
    slope = tl.zeros((BLOCK, BLOCK), tl.float32)
    positions = tl.zeros((BLOCK, BLOCK), tl.int32)
    if inputs.z is not None:
        gate_logits = logits
        if gate_keys is not None:
            gate_logits = _products(q, gate_keys) * inputs.scale
        gates, positions, count = _count(inputs, gate_logits, visible, count, BITS)
        contextual, slope = _interpolate(inputs, head, queries, positions, BITS)
        # A gate that is NaN reaches the loss, although its position is a number.
        logits += tl.where(gates == gates, contextual, gates)
    if inputs.relative is not None:
        window = _relative_window(inputs, gap, BLOCK, HEAD_DIM)
        logits += _to_keys(_products(q, window), BLOCK) * inputs.scale
    if inputs.bias is not None:
        distance = gap + tl.arange(0, BLOCK)[:, None] - tl.arange(0, BLOCK)[None, :]
        column = tl.minimum(tl.maximum(distance, 0), inputs.num_biases - 1)
        logits += tl.load(inputs.bias + (head % inputs.num_heads) * inputs.bias_stride + column)
    return tl.where(visible, logits, float("-inf")), gates, positions, slope, count


@triton.jit
def _dropout_mask(inputs, head, queries, keys):
    """0 where an attention weight is dropped, else what the others are multiplied with. The same in every kernel: the random
    number of a weight is a function of the seed and of where the weight stands."""
    zeros = tl.zeros((queries.shape[0], keys.shape[0]), tl.int32)
    random, _, _, _ = tl.philox(inputs.seed, zeros + keys[None, :], zeros + queries[:, None], zeros + head, zeros)
    return tl.where(tl.uint_to_uniform_float(random) >= inputs.dropout, 1.0 / (1.0 - inputs.dropout), 0.0)


@triton.jit
def _attention_gradients(inputs, head, logits, do, v, log_sum_exp, delta, queries, keys):
    """Of a tile: the attention weights by which the values were multiplied, and ds."""
    weights = tl.exp(logits - log_sum_exp[:, None])
    da = _products(do, v)
    if inputs.seed is not None:
        mask = _dropout_mask(inputs, head, queries, keys)
        return weights * mask, weights * (da * mask - delta[:, None])
    else:
        return weights, weights * (da - delta[:, None])


@triton.jit
def _own_block(length, BLOCK: tl.constexpr):
    """The head and the block of it that this program owns; the last block, with the most keys to see, first."""
    num_blocks = tl.cdiv(length, BLOCK)
    program = tl.program_id(0)
    return program // num_blocks, num_blocks - 1 - program % num_blocks


@triton.jit
def _num_key_blocks(inputs, query_block, BLOCK: tl.constexpr):
    """How many blocks of keys a block of queries sees."""
    num_keys = tl.minimum((query_block + 1) * BLOCK + inputs.num_keys - inputs.num_queries, inputs.num_keys)
    return tl.cdiv(num_keys, BLOCK)


@triton.jit
def _edges(tensor, inputs, head, key_block, queries, BLOCK: tl.constexpr):
    """Where a (batch * heads, block of keys, query) tensor keeps what the queries had at the edge of a block of keys."""
    row = head.to(tl.int64) * tl.cdiv(inputs.num_keys, BLOCK) + key_block
    return tensor + row * inputs.num_queries + queries


@triton.jit
def forward_kernel(
    inputs,
    output,
    log_sum_exp,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
):
    """output and log_sum_exp (batch, heads, query); a program for each block of queries."""
    head, query_block = _own_block(inputs.num_queries, BLOCK)
    queries = query_block * BLOCK + tl.arange(0, BLOCK)
    q = _load_rows(inputs.q, head, inputs.num_heads, queries, inputs.num_queries, inputs.head_dim, HEAD_DIM)

    count = tl.zeros((BLOCK,), tl.int32)
    # Finite, because a query may see none of the first block of keys: exp(-inf - largest) is 0 then, not NaN.
    largest = tl.full((BLOCK,), -3e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    accumulated = tl.zeros((BLOCK, VALUE_DIM), tl.float32)
    for key_block in range(_num_key_blocks(inputs, query_block, BLOCK) - 1, -1, -1):
        keys = key_block * BLOCK + tl.arange(0, BLOCK)
        gap = query_block * BLOCK + inputs.num_keys - inputs.num_queries - key_block * BLOCK
        k = _load_rows(inputs.k, head, inputs.num_heads, keys, inputs.num_keys, inputs.head_dim, HEAD_DIM)
        v = _load_rows(inputs.v, head, inputs.num_heads, keys, inputs.num_keys, inputs.value_dim, VALUE_DIM)
        gate_keys = None
        if inputs.gate_keys is not None:
            gate_keys = _load_rows(inputs.gate_keys, head, inputs.num_heads, keys, inputs.num_keys, inputs.head_dim, HEAD_DIM)
        logits, _, _, _, count = _logits(inputs, head, q, k, gate_keys, queries, keys, gap, count, BITS, BLOCK, HEAD_DIM)

        new_largest = tl.maximum(largest, tl.max(logits, 1))
        exponentials = tl.exp(logits - new_largest[:, None])
        shrink = tl.exp(largest - new_largest)
        largest = new_largest
        total = total * shrink + tl.sum(exponentials, 1)
        if inputs.seed is not None:
            exponentials *= _dropout_mask(inputs, head, queries, keys)
        accumulated = accumulated * shrink[:, None] + tl.dot(exponentials, v, input_precision=PRECISION)

    inside = queries < inputs.num_queries
    tl.store(log_sum_exp + head.to(tl.int64) * inputs.num_queries + queries, largest + tl.log(total), mask=inside)
    averages = accumulated / total[:, None]
    _store_rows(output, head, inputs.num_heads, queries, inputs.num_queries, inputs.value_dim, averages, VALUE_DIM)


@triton.jit
def count_kernel(inputs, counts, BITS: tl.constexpr, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr):
    """counts (batch * heads, block of keys, query): at each block's right edge; a program for each block of queries."""
    head, query_block = _own_block(inputs.num_queries, BLOCK)
    queries = query_block * BLOCK + tl.arange(0, BLOCK)
    q = _load_rows(inputs.q, head, inputs.num_heads, queries, inputs.num_queries, inputs.head_dim, HEAD_DIM)
    gate_keys = inputs.k if inputs.gate_keys is None else inputs.gate_keys

    count = tl.zeros((BLOCK,), tl.int32)
    for key_block in range(_num_key_blocks(inputs, query_block, BLOCK) - 1, -1, -1):
        edge = _edges(counts, inputs, head, key_block, queries, BLOCK)
        tl.store(edge, count, mask=queries < inputs.num_queries)
        keys = key_block * BLOCK + tl.arange(0, BLOCK)
        rows = _load_rows(gate_keys, head, inputs.num_heads, keys, inputs.num_keys, inputs.head_dim, HEAD_DIM)
        gate_logits = _products(q, rows) * inputs.scale
        _, _, count = _count(inputs, gate_logits, _visible(inputs, queries, keys), count, BITS)


@triton.jit
def _add_to_dz(inputs, dz, head, queries, ds, positions, BITS: tl.constexpr):
    """Adds a tile's share to the rows of dz, which belong to this program.

    A column at a time, from the floor of each query's first position on. Positions never step back on a query's way through the
    keys, so that all tiles together take about num_positions columns, whatever the number of keys.
    """
    below = positions >> BITS
    weight = (positions - (below << BITS)).to(tl.float32) * (1.0 / (1 << BITS))
    first = tl.min(below, 1)
    row = dz + (head.to(tl.int64) * inputs.num_queries + queries) * inputs.num_positions
    for step in range(tl.max(tl.max(below, 1) - first, 0) + 2):
        column = first + step
        share = tl.where(below == column[:, None], 1.0 - weight, 0.0) + tl.where(below + 1 == column[:, None], weight, 0.0)
        inside = (queries < inputs.num_queries) & (column < inputs.num_positions)
        before = tl.load(row + column, mask=inside, other=0.0)
        tl.store(row + column, before + tl.sum(ds * share, 1), mask=inside)
    # The next tile reads what this one wrote.
    tl.debug_barrier()


@triton.jit
def query_gradients_kernel(
    inputs,
    grad_output,
    log_sum_exp,
    delta,
    counts,
    dp_before,
    dq,
    dz,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
):
    """dq without what comes through z; dz; and dp_before (batch * heads, block of keys, query), the sum of dp up to each
    block's left edge; a program for each block of queries. counts, dp_before and dz are None without a table."""
    head, query_block = _own_block(inputs.num_queries, BLOCK)
    queries = query_block * BLOCK + tl.arange(0, BLOCK)
    inside = queries < inputs.num_queries
    q = _load_rows(inputs.q, head, inputs.num_heads, queries, inputs.num_queries, inputs.head_dim, HEAD_DIM)
    do = _load_rows(grad_output, head, inputs.num_heads, queries, inputs.num_queries, inputs.value_dim, VALUE_DIM)
    row = head.to(tl.int64) * inputs.num_queries + queries
    # Infinity where there is no query: all of its attention weights are 0.
    log_sum_exp_here = tl.load(log_sum_exp + row, mask=inside, other=float("inf"))
    delta_here = tl.load(delta + row, mask=inside, other=0.0)

    count = tl.zeros((BLOCK,), tl.int32)
    dp_sum = tl.zeros((BLOCK,), tl.float32)
    accumulated = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
    for key_block in range(_num_key_blocks(inputs, query_block, BLOCK)):
        keys = key_block * BLOCK + tl.arange(0, BLOCK)
        gap = query_block * BLOCK + inputs.num_keys - inputs.num_queries - key_block * BLOCK
        k = _load_rows(inputs.k, head, inputs.num_heads, keys, inputs.num_keys, inputs.head_dim, HEAD_DIM)
        v = _load_rows(inputs.v, head, inputs.num_heads, keys, inputs.num_keys, inputs.value_dim, VALUE_DIM)
        gate_keys = None
        if inputs.gate_keys is not None:
            gate_keys = _load_rows(inputs.gate_keys, head, inputs.num_heads, keys, inputs.num_keys, inputs.head_dim, HEAD_DIM)
        if inputs.z is not None:
            count = tl.load(_edges(counts, inputs, head, key_block, queries, BLOCK), mask=inside, other=0)
        logits, gates, positions, slope, _ = _logits(
            inputs, head, q, k, gate_keys, queries, keys, gap, count, BITS, BLOCK, HEAD_DIM
        )
        _, ds = _attention_gradients(inputs, head, logits, do, v, log_sum_exp_here, delta_here, queries, keys)

        dlogits = ds
        if inputs.z is not None:
            _add_to_dz(inputs, dz, head, queries, ds, positions, BITS)
            tl.store(_edges(dp_before, inputs, head, key_block, queries, BLOCK), dp_sum, mask=inside)
            dp = ds * slope
            dgates = dp_sum[:, None] + tl.cumsum(dp, 1)
            dp_sum += tl.sum(dp, 1)
            dgate_logits = dgates * gates * (1.0 - gates)
            if gate_keys is not None:
                accumulated += tl.dot(dgate_logits, gate_keys, input_precision=PRECISION)
            else:
                dlogits += dgate_logits
        accumulated += tl.dot(dlogits, k, input_precision=PRECISION)
        if inputs.relative is not None:
            window = _relative_window(inputs, gap, BLOCK, HEAD_DIM)
            accumulated += tl.dot(_to_distances(ds, BLOCK), window, input_precision=PRECISION)
    _store_rows(dq, head, inputs.num_heads, queries, inputs.num_queries, inputs.head_dim, accumulated * inputs.scale, HEAD_DIM)


@triton.jit
def key_gradients_kernel(
    inputs,
    grad_output,
    log_sum_exp,
    delta,
    counts,
    dp_before,
    dk,
    dv,
    dgate_keys,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
):
    """dk, dv and, where gates have keys of their own, dgate_keys; a program for each block of keys."""
    num_key_blocks = tl.cdiv(inputs.num_keys, BLOCK)
    head = tl.program_id(0) // num_key_blocks
    key_block = tl.program_id(0) % num_key_blocks
    keys = key_block * BLOCK + tl.arange(0, BLOCK)
    k = _load_rows(inputs.k, head, inputs.num_heads, keys, inputs.num_keys, inputs.head_dim, HEAD_DIM)
    v = _load_rows(inputs.v, head, inputs.num_heads, keys, inputs.num_keys, inputs.value_dim, VALUE_DIM)
    gate_keys = None
    if inputs.gate_keys is not None:
        gate_keys = _load_rows(inputs.gate_keys, head, inputs.num_heads, keys, inputs.num_keys, inputs.head_dim, HEAD_DIM)

    count = tl.zeros((BLOCK,), tl.int32)
    for_k = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
    for_v = tl.zeros((BLOCK, VALUE_DIM), tl.float32)
    for_gate_keys = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
    # The first query that sees a key of this block stands at the block's first key, or is the first of all.
    first_query = tl.maximum(key_block * BLOCK - (inputs.num_keys - inputs.num_queries), 0)
    for query_block in range(first_query // BLOCK, tl.cdiv(inputs.num_queries, BLOCK)):
        queries = query_block * BLOCK + tl.arange(0, BLOCK)
        inside = queries < inputs.num_queries
        gap = query_block * BLOCK + inputs.num_keys - inputs.num_queries - key_block * BLOCK
        q = _load_rows(inputs.q, head, inputs.num_heads, queries, inputs.num_queries, inputs.head_dim, HEAD_DIM)
        do = _load_rows(grad_output, head, inputs.num_heads, queries, inputs.num_queries, inputs.value_dim, VALUE_DIM)
        row = head.to(tl.int64) * inputs.num_queries + queries
        log_sum_exp_here = tl.load(log_sum_exp + row, mask=inside, other=float("inf"))
        delta_here = tl.load(delta + row, mask=inside, other=0.0)
        if inputs.z is not None:
            count = tl.load(_edges(counts, inputs, head, key_block, queries, BLOCK), mask=inside, other=0)
        logits, gates, _, slope, _ = _logits(inputs, head, q, k, gate_keys, queries, keys, gap, count, BITS, BLOCK, HEAD_DIM)
        weights, ds = _attention_gradients(inputs, head, logits, do, v, log_sum_exp_here, delta_here, queries, keys)

        for_v += tl.dot(tl.trans(weights), do, input_precision=PRECISION)
        dlogits = ds
        if inputs.z is not None:
            dp_sum = tl.load(_edges(dp_before, inputs, head, key_block, queries, BLOCK), mask=inside, other=0.0)
            dgates = dp_sum[:, None] + tl.cumsum(ds * slope, 1)
            dgate_logits = dgates * gates * (1.0 - gates)
            if gate_keys is not None:
                for_gate_keys += tl.dot(tl.trans(dgate_logits), q, input_precision=PRECISION)
            else:
                dlogits += dgate_logits
        for_k += tl.dot(tl.trans(dlogits), q, input_precision=PRECISION)

    _store_rows(dk, head, inputs.num_heads, keys, inputs.num_keys, inputs.head_dim, for_k * inputs.scale, HEAD_DIM)
    _store_rows(dv, head, inputs.num_heads, keys, inputs.num_keys, inputs.value_dim, for_v, VALUE_DIM)
    if inputs.gate_keys is not None:
        _store_rows(
            dgate_keys, head, inputs.num_heads, keys, inputs.num_keys, inputs.head_dim, for_gate_keys * inputs.scale, HEAD_DIM
        )


@triton.jit
def distance_gradients_kernel(
    inputs,
    grad_output,
    log_sum_exp,
    delta,
    counts,
    drelative,
    dbias,
    first_diagonal,
    num_diagonals,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
):
    """drelative (batch * heads, diagonal, 2 BLOCK, head_dim) and dbias (batch * heads, diagonal, 2 BLOCK), by the number of
    the distance in the diagonal's tiles; a program for each diagonal, query block - key block."""
    head = tl.program_id(0) // num_diagonals
    nth = tl.program_id(0) % num_diagonals
    diagonal = first_diagonal + nth
    gap = diagonal * BLOCK + inputs.num_keys - inputs.num_queries

    count = tl.zeros((BLOCK,), tl.int32)
    for_relative = tl.zeros((2 * BLOCK, HEAD_DIM), tl.float32)
    for_bias = tl.zeros((2 * BLOCK,), tl.float32)
    num_query_blocks = tl.cdiv(inputs.num_queries, BLOCK)
    num_key_blocks = tl.cdiv(inputs.num_keys, BLOCK)
    for query_block in range(tl.maximum(diagonal, 0), tl.minimum(num_query_blocks, num_key_blocks + diagonal)):
        key_block = query_block - diagonal
        queries = query_block * BLOCK + tl.arange(0, BLOCK)
        keys = key_block * BLOCK + tl.arange(0, BLOCK)
        inside = queries < inputs.num_queries
        q = _load_rows(inputs.q, head, inputs.num_heads, queries, inputs.num_queries, inputs.head_dim, HEAD_DIM)
        do = _load_rows(grad_output, head, inputs.num_heads, queries, inputs.num_queries, inputs.value_dim, VALUE_DIM)
        k = _load_rows(inputs.k, head, inputs.num_heads, keys, inputs.num_keys, inputs.head_dim, HEAD_DIM)
        v = _load_rows(inputs.v, head, inputs.num_heads, keys, inputs.num_keys, inputs.value_dim, VALUE_DIM)
        gate_keys = None
        if inputs.gate_keys is not None:
            gate_keys = _load_rows(inputs.gate_keys, head, inputs.num_heads, keys, inputs.num_keys, inputs.head_dim, HEAD_DIM)
        row = head.to(tl.int64) * inputs.num_queries + queries
        log_sum_exp_here = tl.load(log_sum_exp + row, mask=inside, other=float("inf"))
        delta_here = tl.load(delta + row, mask=inside, other=0.0)
        if inputs.z is not None:
            count = tl.load(_edges(counts, inputs, head, key_block, queries, BLOCK), mask=inside, other=0)
        logits, _, _, _, _ = _logits(inputs, head, q, k, gate_keys, queries, keys, gap, count, BITS, BLOCK, HEAD_DIM)
        _, ds = _attention_gradients(inputs, head, logits, do, v, log_sum_exp_here, delta_here, queries, keys)

        by_distance = _to_distances(ds, BLOCK)
        if inputs.relative is not None:
            for_relative += tl.dot(tl.trans(by_distance), q, input_precision=PRECISION)
        if inputs.bias is not None:
            for_bias += tl.sum(by_distance, 0)

    numbers = tl.arange(0, 2 * BLOCK)
    row = (head.to(tl.int64) * num_diagonals + nth) * (2 * BLOCK) + numbers
    if inputs.relative is not None:
        columns = tl.arange(0, HEAD_DIM)
        inside = (columns < inputs.head_dim)[None, :] & (numbers >= 0)[:, None]
        tl.store(drelative + row[:, None] * inputs.head_dim + columns[None, :], for_relative * inputs.scale, mask=inside)
    if inputs.bias is not None:
        tl.store(dbias + row, for_bias)
