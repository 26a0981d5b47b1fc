"""The kernel that owns keys in the backward pass: the second of ``gradients.py``."""

# Kernels are compiled by Triton, which has no types to write down for their parameters.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from cope.kernels.triton.counting import rows_of_z
from cope.kernels.triton.gradients import attention_gradients, counts_at_edge
from cope.kernels.triton.logits import counted_logits, with_distance
from cope.kernels.triton.tiles import LN_2, content_logits, load_key_mask, load_rows, store_rows, sums_from_the_left


@triton.jit
def _key_gradients(
    inputs, head, k, v, gate_keys, grad_output, statistics, counted_from, edge_counts, edge_sums, scratch,
    for_k, for_v, for_gate_keys, first_query, first_key, num_queries, num_keys, num_rows, num_heads_in_all,
    COUNTED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile's share of the gradients of its keys."""
    gap = first_query + num_keys - num_queries - first_key
    shown = load_key_mask(inputs, head, first_key, num_keys, KEYS)
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
            count, edge, counted = counts_at_edge(
                inputs, counted_from, edge_counts, head, first_query, first_key, num_keys, num_rows, QUERIES, KEYS
            )
            dp_sum = tl.load(edge_sums + edge, mask=counted, other=0.0)
        logits, gates, _rounded, _whole, _rest, _below, slope, _left = counted_logits(
            inputs, head, q, k, shown, gate_keys, gap, count, rows, scratch, "split", 0, QUERIES, KEYS, HEAD_DIM, PRECISION
        )
    else:
        own_log_sum_exp = tl.load(row + heads_and_rows)
        logits = content_logits(inputs, q, k, shown, 0, PRECISION)
        logits = with_distance(inputs, head, q, logits, gap, scratch, 0, QUERIES, KEYS, HEAD_DIM, PRECISION)
    weights, ds = attention_gradients(
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
