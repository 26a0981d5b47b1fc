"""Causal multi-head self-attention that leaves position to the encoding's hooks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cope.positions.base import Heads, PositionEncoding


class LayerCache:
    """Keys, values and projected vectors of the tokens seen so far by one layer, for decoding a token at a time."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.projected: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor, projected: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append the newest tokens' tensors and return those of all tokens."""
        if self.k is not None and self.v is not None:
            k, v = torch.cat([self.k, k], dim=-2), torch.cat([self.v, v], dim=-2)
            if projected is not None and self.projected is not None:
                projected = torch.cat([self.projected, projected], dim=-2)
        self.k, self.v, self.projected = k, v, projected
        return k, v, projected


class SelfAttention(nn.Module):
    """Queries, keys and values of all heads, attended causally, and projected back."""

    def __init__(self, dim: int, num_heads: int, biases: bool, dropout: float, layer: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.layer = layer
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=biases)
        self.output = nn.Linear(dim, dim, bias=biases)

    def heads(self, x: Tensor, encoding: PositionEncoding, start: int = 0, cache: LayerCache | None = None) -> Heads:
        """Queries, keys and values as the encoding sees them."""
        # (batch, time, 3 dim) -> three of (batch, heads, time, head_dim)
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3).unbind(2)
        q, k = encoding.rotate(q, k, start)
        projected = encoding.project(x, self.layer)
        if cache is not None:
            k, v, projected = cache.extend(k, v, projected)
        return Heads(q, k, v, projected, self.layer)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        encoding: PositionEncoding,
        start: int = 0,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """Attend from the tokens at ``start``, ``start + 1``, ... to themselves and all earlier ones."""
        heads = self.heads(x, encoding, start, cache)
        attended = encoding.attend(heads, self.dropout if self.training else 0.0)
        merged: Tensor = self.output(attended.transpose(1, 2).flatten(-2))  # (batch, heads, time, head_dim) -> (..., dim)
        return merged
