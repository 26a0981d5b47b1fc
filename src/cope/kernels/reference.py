"""CoPE attention as the paper writes it, equation by equation.

*Contextual Position Encoding: Learning to Count What's Important*, Golovneva et al., arXiv 2405.18719, Section 4. This file is
the definition that every faster backend is held to, in values and in gradients. It builds several time x time tensors per
head: read it, test against it, train with another.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_mask(num_queries: int, num_keys: int, device: torch.device | None = None) -> Tensor:
    """(query, key) bool, True where a query may look. The last query stands at the last key, as when decoding with a cache."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


def contextual_positions(
    gate_logits: Tensor, num_positions: int | None, key_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gates and the positions they add up to.

    Args:
        gate_logits: (..., query, key), the scaled products of each query with each key.
        num_positions: positions are clamped to the last one, ``num_positions - 1``; None leaves them free.
        key_mask: (batch, key), False for keys that no query counts; all are counted if not given.

    Returns:
        gates g_ij = sigmoid(gate_logits_ij), 0 for keys after the query (Equation 3), and positions
        p_ij = g_ij + ... + g_ii (Equation 4): how much each query i counts from key j up to itself, both ends included.
    """
    num_queries, num_keys = gate_logits.shape[-2:]
    visible = causal_mask(num_queries, num_keys, gate_logits.device)
    if key_mask is not None:
        visible = visible & key_mask[:, None, None, :]
    gates = torch.sigmoid(gate_logits).masked_fill(~visible, 0.0)
    positions = gates.flip(-1).cumsum(-1).flip(-1)
    return gates, positions if num_positions is None else positions.clamp(max=num_positions - 1)


def interpolate(z: Tensor, positions: Tensor) -> Tensor:
    """z_i[p_ij] for fractional p_ij, on the line between the two whole positions around it (Equation 5).

    Args:
        z: (..., query, num_positions), the product of each query with each vector of the table.
        positions: (..., query, key), between 0 and num_positions - 1.
    """
    last = z.shape[-1] - 1
    # floor and floor + 1, not floor and ceil: where p is a whole number the two agree in value, but with ceil both ends
    # are the same entry and p would get no gradient at all. The slope there is that of the segment above; at the last, 0.
    below = positions.detach().floor().long().clamp(0, last)
    above = (below + 1).clamp(max=last)
    return torch.lerp(z.gather(-1, below), z.gather(-1, above), positions - below)


def by_distance(values: Tensor, num_keys: int) -> Tensor:
    """(..., query, distance) -> (..., query, key): the entry for each pair's distance; 0 for keys after the query.

    The last entry serves all further distances too.
    """
    num_queries, num_distances = values.shape[-2:]
    query_index = torch.arange(num_keys - num_queries, num_keys, device=values.device)[:, None]
    distance = query_index - torch.arange(num_keys, device=values.device)
    index = distance.clamp(0, num_distances - 1).expand(*values.shape[:-1], num_keys)
    return values.gather(-1, index).masked_fill(distance < 0, 0.0)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    *,
    gate_keys: Tensor | None = None,
    relative: Tensor | None = None,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    scale: str = "released",
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention with contextual positions; shapes and arguments as in :func:`cope.functional.cope_attention`.

    Without a table the contextual term is left out, as in :func:`cope.functional.relative_attention`.
    """
    num_queries, num_keys = q.shape[-2], k.shape[-2]
    if k.shape[1] != q.shape[1]:  # grouped heads: here each head of q gets a copy of its keys and values
        group_size = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group_size, 1), v.repeat_interleave(group_size, 1)
        gate_keys = None if gate_keys is None else gate_keys.repeat_interleave(group_size, 1)
    inverse_sqrt_dim = 1.0 / math.sqrt(q.shape[-1])
    content_logits = q @ k.transpose(-1, -2) * inverse_sqrt_dim  # (batch, heads, query, key)
    logits = content_logits
    if table is not None:
        gate_logits = content_logits if gate_keys is None else q @ gate_keys.transpose(-1, -2) * inverse_sqrt_dim
        _, positions = contextual_positions(gate_logits, table.shape[0], key_mask)
        z = q @ table.transpose(-1, -2)  # (batch, heads, query, num_positions)
        if scale == "released":
            z = z * inverse_sqrt_dim
        logits = logits + interpolate(z, positions)  # Equation 6
    if relative is not None:
        logits = logits + by_distance(q @ relative.transpose(-1, -2) * inverse_sqrt_dim, num_keys)
    if bias is not None:
        logits = logits + by_distance(bias[:, None, :].expand(-1, num_queries, -1), num_keys)
    visible = causal_mask(num_queries, num_keys, q.device)
    if key_mask is not None:
        visible = visible & key_mask[:, None, None, :]
    weights = logits.masked_fill(~visible, -math.inf).softmax(-1)
    if key_mask is not None:
        weights = weights.masked_fill(~visible, 0.0)  # of a query that sees no key: softmax has no answer there
    return F.dropout(weights, dropout) @ v
