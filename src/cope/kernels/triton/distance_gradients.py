"""The kernel that owns distances in the backward pass: the third of ``gradients.py``."""

# Kernels are compiled by Triton, which has no types to write down for their parameters.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from cope.kernels.triton.counting import rows_of_z
from cope.kernels.triton.gradients import attention_gradients, counts_at_edge
from cope.kernels.triton.logits import counted_logits, to_distances
from cope.kernels.triton.tiles import load_key_mask, load_rows, product


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
            count, _edge, _counted = counts_at_edge(
                inputs, counted_from, edge_counts, head, first_query, first_key, num_keys, num_rows, BLOCK, BLOCK
            )
        shown = load_key_mask(inputs, head, first_key, num_keys, BLOCK)
        logits, _gates, _rounded, _whole, _rest, _below, _slope, _left = counted_logits(
            inputs, head, q, k, shown, gate_keys, gap, count, rows, scratch, "split", 0, BLOCK, BLOCK, HEAD_DIM, PRECISION
        )
        _weights, ds = attention_gradients(
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
