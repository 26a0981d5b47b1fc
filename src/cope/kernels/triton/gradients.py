"""The gradients, with the output's gradient do and delta_i = do_i . o_i. Each tile is computed anew in each kernel.

1. ``query_gradients_kernel`` owns a block of queries and walks over the keys from left to right, subtracting gates from the
   count that the forward pass left where its zones meet:

       a_ij = exp(s_ij - log_sum_exp_i)
       ds_ij = a_ij (do_i . v_j - delta_i)
       dp_ij = ds_ij (z_i[floor p + 1] - z_i[floor p])             0 beyond the last position
       dg_it = sum_{j <= t} dp_ij                                  gate t is in every p_ij with j <= t
       d(gate logit)_it = dg_it g_it (1 - g_it)

   It leaves delta, and at every edge between blocks of keys the count and the sum of dp, with which the next kernel can start
   at any tile. For dz it needs no scattered sums: along a row the floor f of the position falls by at most one at a time, so
   the keys with the same f stand side by side, and where f changes the row's sums of ds and of ds w so far (w = p - f) are
   stored in a row of ``crossings``. Differences of neighbours are the sums of one f, A_f and B_f:

       dz_i[f] = A_f - B_f + B_{f-1}                               interpolation gives 1 - w to f and w to f + 1

2. ``key_gradients_kernel`` owns a block of keys, walks over the queries that see it, and writes dk, dv and dgate_keys.
3. ``distance_gradients_kernel``, only with a relative term or a bias, owns a diagonal of tiles: all have the same distances.
   Neighbouring diagonals share distances, so each writes sums of its own, and PyTorch adds them up.

Every number has one program that adds to it, in a fixed order: gradients are the same to the bit from run to run.
"""

# Kernels are compiled by Triton, which has no types to write down for their parameters.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from cope.kernels.triton.counting import count_beyond, joined, split_count
from cope.kernels.triton.tiles import across, dropout_mask, tile_product


@triton.jit
def attention_gradients(
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
def load_statistic(tensor, head, first_query, num_queries, other, QUERIES: tl.constexpr):
    """A number for each query of a block, from a (batch, heads, query) tensor."""
    queries = first_query + tl.arange(0, QUERIES)
    return tl.load(tensor + head.to(tl.int64) * num_queries + queries, mask=queries < num_queries, other=other)


@triton.jit
def counts_at_edge(
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
