"""How much a model uses its counted positions: what to look at before believing that CoPE, once added, does anything.

A table can stay inert while the loss looks fine, as when its learning rate is too low. Two numbers tell: the share of the
attention logits' variance that comes from the table, and the positions that no pair of query and key ever reads, whose vectors
training cannot reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cope.errors import counted
from cope.kernels.reference import causal_mask, contextual_positions, interpolate

QUERIES_PER_BLOCK = 128


@dataclass(frozen=True)
class PositionUse:
    """What :func:`position_use` found in one layer. Those of several batches add up."""

    content_variance: Float[Tensor, " heads"]  # of q.k / sqrt(head_dim) among a query's keys, summed over the queries
    position_variance: Float[Tensor, " heads"]  # of what the table adds
    reads: Float[Tensor, " num_positions"]  # of each vector, by pairs of query and key; a position in between reads two in part

    def __repr__(self) -> str:
        """Short, however many heads and positions there are; the attributes have every number."""
        lowest, highest = self.share.min().item(), self.share.max().item()
        share = f"share {lowest:.2f} to {highest:.2f} in {counted(len(self.share), 'head')}"
        return f"<PositionUse: {share}, {len(self.unused)} of {len(self.reads)} positions unused>"

    def __add__(self, other: PositionUse) -> PositionUse:
        return PositionUse(
            self.content_variance + other.content_variance,
            self.position_variance + other.position_variance,
            self.reads + other.reads,
        )

    @property
    def share(self) -> Float[Tensor, " heads"]:
        """The table's part in both variances, of each head. 0 is inert, NaN where nothing varies."""
        return self.position_variance / (self.position_variance + self.content_variance)

    @property
    def unused(self) -> list[int]:
        """The positions that no pair reads."""
        return (self.reads == 0).nonzero().flatten().tolist()


@torch.no_grad()
def position_use(
    q: Float[Tensor, "batch heads query head_dim"],
    k: Float[Tensor, "batch key_heads key head_dim"],
    table: Float[Tensor, "num_positions head_dim"],
    *,
    gate_keys: Float[Tensor, "batch key_heads key head_dim"] | None = None,
    gate_bias: Float[Tensor, " heads"] | None = None,
    key_mask: Bool[Tensor, "batch key"] | None = None,
    scale: str = "released",
) -> PositionUse:
    """How much attention by :func:`cope.cope_attention` with these arguments depends on its table."""
    q, k, table = (tensor.detach().float() for tensor in (q, k, table))
    gate_keys = k if gate_keys is None else gate_keys.float()
    group_size = q.shape[1] // k.shape[1]
    k, gate_keys = k.repeat_interleave(group_size, 1), gate_keys.repeat_interleave(group_size, 1)
    num_queries, num_keys = q.shape[-2], k.shape[-2]
    z_scale = 1.0 / math.sqrt(q.shape[-1]) if scale == "released" else 1.0
    found = []
    for start in range(0, num_queries, QUERIES_PER_BLOCK):
        block = q[..., start : start + QUERIES_PER_BLOCK, :] / math.sqrt(q.shape[-1])
        seen = slice(0, num_keys - num_queries + start + block.shape[-2])
        block_mask = None if key_mask is None else key_mask[:, seen]
        visible = causal_mask(block.shape[-2], seen.stop, q.device)
        if block_mask is not None:
            visible = visible & block_mask[:, None, None, :]
        gate_logits = block @ gate_keys[..., seen, :].transpose(-1, -2)
        if gate_bias is not None:
            gate_logits = gate_logits + gate_bias[:, None, None]
        _, positions = contextual_positions(gate_logits, table.shape[0], block_mask)
        z = block @ table.transpose(0, 1) * (z_scale * math.sqrt(q.shape[-1]))
        found.append(
            PositionUse(
                _variance(block @ k[..., seen, :].transpose(-1, -2), visible),
                _variance(interpolate(z, positions), visible),
                _reads(positions, visible.expand_as(positions), table.shape[0]),
            )
        )
    return total(found)


def total(uses: Iterable[PositionUse]) -> PositionUse:
    """Of several batches, or of several blocks of queries."""
    first, *others = uses
    for other in others:
        first = first + other
    return first


def _variance(logits: Tensor, visible: Tensor) -> Tensor:
    """(batch, heads, query, key) -> (heads,): the variance among the keys that a query sees, summed over batch and queries."""
    num_visible = visible.sum(-1, keepdim=True).clamp(min=1)
    mean = logits.masked_fill(~visible, 0.0).sum(-1, keepdim=True) / num_visible
    squares = (logits - mean).square().masked_fill(~visible, 0.0).sum(-1, keepdim=True) / num_visible
    return squares.double().sum((0, 2, 3))


def _reads(positions: Tensor, visible: Tensor, num_positions: int) -> Tensor:
    positions = positions[visible]
    below = positions.floor().long()
    weight = (positions - below).double()
    counts = torch.zeros(num_positions + 1, dtype=torch.float64, device=positions.device)  # one above the last, read by none
    counts.index_add_(0, below, 1 - weight).index_add_(0, below + 1, weight)
    return counts[:num_positions]
