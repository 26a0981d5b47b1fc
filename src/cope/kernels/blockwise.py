"""CoPE attention in plain PyTorch, a block of queries at a time.

The values and gradients of ``reference.py`` without its time x time tensors: a block of queries sees only the keys up to its
own end (what the causal mask throws away is never built), and the backward pass computes the block again instead of keeping
it. Extra memory is one block x time tensor of each kind; time is less than half of the reference's.

The backward pass, for one block, in the paper's letters. With attention a, output o and its gradient do:

    ds_ij = a_ij (do_i . v_j - do_i . o_i)        softmax
    dz_i[floor p] += ds (1 - w), dz_i[floor p + 1] += ds w      interpolation, w = p - floor p
    dp_ij = ds_ij (z_i[floor p + 1] - z_i[floor p])             0 at the last position, where p is clamped
    dg_it = sum_{j <= t} dp_ij                    p_ij sums the gates from j to i, so gate t is in every p_ij with j <= t
    d(gate logit)_it = dg_it g_it (1 - g_it)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cope.kernels.operator import Arguments, empty_heads, make_operator
from cope.kernels.reference import by_distance, causal_mask

QUERIES_PER_BLOCK = 64  # 32 to 64 were best on CPUs: the block's tensors stay in the cache


class _Block:
    """What one block of queries computes on the way to its attention weights."""

    def __init__(self, given: Arguments) -> None:
        q, k, _, table, gate_keys, relative, bias, table_scale, *_, key_mask = given
        inverse_sqrt_dim = 1.0 / math.sqrt(q.shape[-1])
        num_keys = k.shape[-2]
        visible = causal_mask(q.shape[-2], num_keys, q.device)
        if key_mask is not None:
            visible = visible & key_mask[:, None, None, :]
        logits = _products(q, k) * inverse_sqrt_dim
        if table is not None:
            gate_logits = logits if gate_keys is None else _products(q, gate_keys) * inverse_sqrt_dim
            self.gates = gate_logits.sigmoid().masked_fill_(~visible, 0.0)
            last = table.shape[0] - 1
            positions = self.gates.flip(-1).cumsum_(-1).flip(-1).clamp_(max=last)
            # Clamped as an integer too: a NaN stays an index within the table, and goes on through the weight to the loss.
            self.below = positions.floor().long().clamp_(0, last)
            self.weight = positions.sub_(self.below)
            z = q @ table.transpose(-1, -2) * table_scale
            self.slope = z.diff(dim=-1, append=z[..., -1:]).gather(-1, self.below)
            logits = logits + z.gather(-1, self.below).addcmul_(self.slope, self.weight)
        if relative is not None:
            logits = logits + by_distance(q @ relative.transpose(-1, -2) * inverse_sqrt_dim, num_keys)
        if bias is not None:
            logits = logits + by_distance(bias[:, None, :].expand(-1, q.shape[-2], -1), num_keys)
        self.attention = logits.masked_fill_(~visible, -math.inf).softmax(-1)
        if key_mask is not None:
            self.attention = self.attention.masked_fill(~visible, 0.0)  # of a query that sees no key


def _part(whole: Arguments, queries: slice, keys: slice) -> Arguments:
    """What a block of queries sees, as views."""
    return whole._replace(
        q=whole.q[..., queries, :],
        k=whole.k[..., keys, :],
        v=whole.v[..., keys, :],
        gate_keys=None if whole.gate_keys is None else whole.gate_keys[..., keys, :],
        # No pair is further apart than the keys are many.
        relative=None if whole.relative is None else whole.relative[: keys.stop],
        bias=None if whole.bias is None else whole.bias[:, : keys.stop],
        key_mask=None if whole.key_mask is None else whole.key_mask[:, keys],
    )


# Heads of q that share a head of keys are handled as one head with as many times the queries: no copies of keys are made.
def _as_one(of_queries: Tensor, num_key_heads: int) -> Tensor:
    """(batch, heads, query, n) -> (batch, key heads, heads of a group x query, n)"""
    group_size = of_queries.shape[1] // max(1, num_key_heads)
    return of_queries.unflatten(1, (num_key_heads, group_size)).flatten(2, 3)


def _products(q: Tensor, k: Tensor) -> Tensor:
    """Of each query with each key: (batch, heads, query, key)."""
    return _apart(_as_one(q, k.shape[1]) @ k.transpose(-1, -2), q)


def _sums(weights: Tensor, of_keys: Tensor) -> Tensor:
    """Each query's weighted sum over the keys: (batch, heads, query, n)."""
    return _apart(_as_one(weights, of_keys.shape[1]) @ of_keys, weights)


def _sums_over_queries(weights: Tensor, of_queries: Tensor, num_key_heads: int) -> Tensor:
    """Each key's weighted sum over the queries of its heads: (batch, key heads, key, n)."""
    return _as_one(weights, num_key_heads).transpose(-1, -2) @ _as_one(of_queries, num_key_heads)


def _apart(grouped: Tensor, like: Tensor) -> Tensor:
    return grouped.unflatten(2, (like.shape[1] // max(1, grouped.shape[1]), like.shape[2])).flatten(1, 2)


def _dropout_mask(attention: Tensor, dropout: float, seed: int) -> Tensor:
    generator = torch.Generator(attention.device).manual_seed(seed)
    kept = torch.rand(attention.shape, device=attention.device, generator=generator) >= dropout
    return kept.to(attention.dtype) / (1.0 - dropout)


def _blocks(num_queries: int, num_keys: int) -> list[tuple[slice, slice]]:
    """(queries, keys they may see) of each block."""
    before = num_keys - num_queries
    starts = range(0, num_queries, QUERIES_PER_BLOCK)
    ends = [min(start + QUERIES_PER_BLOCK, num_queries) for start in starts]
    return [(slice(start, end), slice(0, before + end)) for start, end in zip(starts, ends, strict=True)]


def _forward(given: Arguments) -> tuple[Tensor, ...]:
    output = empty_heads(given.q, given.v.shape[-1])
    for queries, keys in _blocks(given.q.shape[-2], given.k.shape[-2]):
        attention = _Block(_part(given, queries, keys)).attention
        if given.seed is not None:
            attention = attention * _dropout_mask(attention, given.dropout, int(given.seed) + queries.start)
        output[..., queries, :] = _sums(attention, given.v[..., keys, :])
    return (output,)


def _backward(grad_output: Tensor, given: Arguments, output: Tensor) -> list[Tensor]:
    inverse_sqrt_dim = 1.0 / math.sqrt(given.q.shape[-1])
    gradients = [gradient.zero_() for gradient in given.empty_gradients()]
    by_name: dict[str, Any] = dict(zip(given.tensors(), gradients, strict=True))
    for queries, keys in _blocks(given.q.shape[-2], given.k.shape[-2]):
        # A block of a gradient is a view: adding to it adds to the whole.
        part = _part(given, queries, keys)
        q, k, v, table, gate_keys, relative, bias, table_scale, dropout, seed, _ = part
        heads = k.shape[1]
        dq, dk, dv, dtable, dgate_keys, drelative, dbias, *_ = _part(given._replace(**by_name), queries, keys)
        block = _Block(part)
        do = grad_output[..., queries, :]

        da = _products(do, v)
        if seed is not None:
            mask = _dropout_mask(block.attention, dropout, int(seed) + queries.start)
            dv += _sums_over_queries(block.attention * mask, do, heads)
            da = da * mask
        else:
            dv += _sums_over_queries(block.attention, do, heads)
        ds = block.attention * (da - (da * block.attention).sum(-1, keepdim=True))

        dlogits = ds
        if table is not None and dtable is not None:
            above = ds * block.weight
            dz = ds.new_zeros(*ds.shape[:-1], table.shape[0])
            dz.scatter_add_(-1, block.below, ds - above)
            dz.scatter_add_(-1, (block.below + 1).clamp_(max=table.shape[0] - 1), above)
            dgates = (ds * block.slope).cumsum_(-1)
            dgate_logits = dgates.mul_(block.gates).mul_(1.0 - block.gates)
            if gate_keys is None or dgate_keys is None:
                dlogits = ds + dgate_logits
            else:
                dq += _sums(dgate_logits, gate_keys) * inverse_sqrt_dim
                dgate_keys += _sums_over_queries(dgate_logits, q, heads) * inverse_sqrt_dim
            dq += dz @ table * table_scale
            dtable += _outer(dz, q) * table_scale
        dq += _sums(dlogits, k) * inverse_sqrt_dim
        dk += _sums_over_queries(dlogits, q, heads) * inverse_sqrt_dim
        if relative is not None and drelative is not None:
            dproducts = _to_distance(ds, relative.shape[0]) * inverse_sqrt_dim
            dq += dproducts @ relative
            drelative += _outer(dproducts, q)
        if bias is not None and dbias is not None:
            per_head = _to_distance(ds, bias.shape[-1]).sum((0, -2))
            dbias += per_head.sum_to_size(bias.shape)
    return gradients


def _outer(weights: Tensor, q: Tensor) -> Tensor:
    """The sum over all queries: (batch, heads, query, n) and (batch, heads, query, head_dim) -> (n, head_dim)."""
    return weights.flatten(0, -2).transpose(0, 1) @ q.flatten(0, -2)


def _to_distance(ds: Tensor, num_distances: int) -> Tensor:
    """The gradient of :func:`by_distance`: (..., query, key) -> (..., query, distance)."""
    num_queries, num_keys = ds.shape[-2:]
    query_index = torch.arange(num_keys - num_queries, num_keys, device=ds.device)[:, None]
    distance = query_index - torch.arange(num_keys, device=ds.device)
    # ds is 0 where a key comes after its query, so that those pairs add nothing to distance 0.
    index = distance.clamp(0, num_distances - 1).expand_as(ds)
    return ds.new_zeros(*ds.shape[:-1], num_distances).scatter_add_(-1, index, ds)


attention = make_operator("blockwise", _forward, _backward, lambda given: [])
