"""The contract of a position encoding: hooks that attention calls without knowing whose they are.

Each hook defaults to "no position", so an encoding overrides only what it uses, and encodings compose by calling one
another's hooks. One module serves the whole model; ``layer`` tells a hook where it is called from.

    embed      adds to the token embeddings                       absolute, sinusoidal
    project    makes further numbers per token, cached            CoPE with separate keys, every forget gate
    rotate     turns queries and keys by where they stand         RoPE
    transform  turns queries and keys by what was read so far     Selective RoPE, MapFormer
    bias       adds to the attention logits                       relative, ALiBi, every CoPE
    logits     the products of queries and keys, and the bias     PaTH, Wall
    weights    makes attention weights of the logits: softmax     stick-breaking
    attend     the whole of attention, where a fused form is faster than the others; equal to them to rounding

In every hook the last query stands at the last key, so the same code serves a whole sequence, a block of its queries, and
one token at a time with a cache of earlier keys. What is cached is of each token alone; what runs along the sequence, such as
a sum, is made of it again at each step, which costs no more than attention itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cope.errors import UserError
from cope.kernels.reference import causal_mask

QUERIES_PER_BLOCK = 128


@dataclass(frozen=True)
class ModelShape:
    """What an encoding may need to know of the model it serves."""

    dim: int
    num_layers: int
    num_heads: int
    context: int  # the most tokens that the model reads of a sequence in training
    longest: int  # the most tokens that it reads of any sequence that will be evaluated; at least ``context``

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.dim // self.num_heads


class Heads(NamedTuple):
    """What one layer's attention hands to an encoding."""

    q: Float[Tensor, "batch heads query head_dim"]
    k: Float[Tensor, "batch heads key head_dim"]
    v: Float[Tensor, "batch heads key value_dim"]
    projected: Float[Tensor, "batch heads key size"] | None  # what ``project`` made of the keys' tokens
    layer: int

    def block(self, start: int, end: int) -> Heads:
        """The queries from ``start`` to ``end``, with the keys up to the last of them."""
        num_keys = self.k.shape[-2] - self.q.shape[-2] + end
        return Heads(
            self.q[..., start:end, :],
            self.k[..., :num_keys, :],
            self.v[..., :num_keys, :],
            None if self.projected is None else self.projected[..., :num_keys, :],
            self.layer,
        )


class PositionEncoding(nn.Module):
    """No position at all (``pe=none``), and the base of every encoding."""

    max_tokens: int | None = None  # the longest sequence for which the encoding is defined; None is any
    num_untrained: int = 0  # parameters that no training sequence reaches, since they are for longer ones

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape

    @property
    def kernel(self) -> str | None:
        """The backend of :func:`cope.cope_attention` that it asks for; None where it needs none."""
        return None

    def embed(self, x: Float[Tensor, "batch time dim"], start: int) -> Float[Tensor, "batch time dim"]:
        """Token embeddings with positions ``start``, ``start + 1``, ... added."""
        return x

    def project(self, x: Float[Tensor, "batch time dim"], layer: int) -> Float[Tensor, "batch heads time size"] | None:
        """Further numbers for each token, computed from its input to the layer alone and cached beside keys and values."""
        return None

    def rotate(
        self, q: Float[Tensor, "batch heads time head_dim"], k: Float[Tensor, "batch heads time head_dim"], start: int
    ) -> tuple[Float[Tensor, "batch heads time head_dim"], Float[Tensor, "batch heads time head_dim"]]:
        """Queries and keys of the tokens at ``start``, ``start + 1``, ..., turned by their positions."""
        return q, k

    def transform(self, heads: Heads) -> Heads:
        """``heads`` with queries and keys as their products see them, where that takes all that was read before them."""
        return heads

    def bias(self, heads: Heads, logits: Float[Tensor, "batch heads query key"]) -> Float[Tensor, "... query key"] | None:
        """What to add to ``logits``, the products q.k / sqrt(head_dim); any shape that broadcasts to theirs.

        Keys after the query are masked by the caller.
        """
        return None

    def gates_and_positions(
        self, heads: Heads
    ) -> tuple[Float[Tensor, "batch heads query key"], Float[Tensor, "batch heads query key"]] | None:
        """The gates and the positions that they count, to be looked at; None for an encoding without gates."""
        return None

    def logits(self, heads: Heads) -> Float[Tensor, "batch heads query key"]:
        """What ``weights`` are made of: q.k / sqrt(head_dim) and ``bias``. Keys after the query may have any finite value."""
        heads = self.transform(heads)
        logits = heads.q @ heads.k.transpose(-1, -2) / math.sqrt(heads.q.shape[-1])
        bias = self.bias(heads, logits)
        return logits if bias is None else logits + bias

    def weights(
        self, logits: Float[Tensor, "batch heads query key"], visible: Bool[Tensor, "query key"]
    ) -> Float[Tensor, "batch heads query key"]:
        """How much each query attends to each key; nothing to those that are not ``visible``, which come after it."""
        return logits.masked_fill(~visible, -math.inf).softmax(-1)

    def attend(self, heads: Heads, dropout: float) -> Float[Tensor, "batch heads query value_dim"]:
        """Causal attention, a block of queries at a time: keys that no query sees are never built."""
        own, none = type(self), PositionEncoding
        if own.bias is none.bias and own.logits is none.logits and own.weights is none.weights:
            return plain_attention(self.transform(heads), dropout)
        num_queries = heads.q.shape[-2]
        if num_queries <= QUERIES_PER_BLOCK:
            return self._attend_block(heads, dropout)
        # Each block is computed again in the backward pass, so that memory grows with time, not with its square.
        outputs = [
            checkpoint(
                self._attend_block,
                heads.block(start, min(start + QUERIES_PER_BLOCK, num_queries)),
                dropout,
                use_reentrant=False,
                preserve_rng_state=dropout > 0,
            )
            for start in range(0, num_queries, QUERIES_PER_BLOCK)
        ]
        return torch.cat(outputs, dim=-2)

    def _attend_block(self, heads: Heads, dropout: float) -> Tensor:
        visible = causal_mask(heads.q.shape[-2], heads.k.shape[-2], heads.q.device)
        return F.dropout(self.weights(self.logits(heads), visible), dropout) @ heads.v

    def check_length(self, num_tokens: int) -> None:
        """Raise UserError if a sequence of ``num_tokens`` is longer than the encoding is defined for."""
        if self.max_tokens is not None and num_tokens > self.max_tokens:
            raise UserError(
                f"a sequence of {num_tokens} tokens is longer than the {self.max_tokens} positions of this encoding, which "
                "has none beyond them. Take one that has (relative_capped, rope, cope), or train with splits as long in the "
                "configuration."
            )


def plain_attention(heads: Heads, dropout: float) -> Float[Tensor, "batch heads query value_dim"]:
    """Causal softmax attention of q.k / sqrt(size of q), by PyTorch's own kernels."""
    (num_queries, size), num_keys = heads.q.shape[-2:], heads.k.shape[-2]
    # Values as long as the queries: the fast kernels know no others.
    value_dim = heads.v.shape[-1]
    v = F.pad(heads.v, (0, size - value_dim)) if size > value_dim else heads.v
    if num_queries == num_keys:
        return F.scaled_dot_product_attention(heads.q, heads.k, v, dropout_p=dropout, is_causal=True)[..., :value_dim]
    visible = None if num_queries == 1 else causal_mask(num_queries, num_keys, heads.q.device)
    return F.scaled_dot_product_attention(heads.q, heads.k, v, attn_mask=visible, dropout_p=dropout)[..., :value_dim]


def positions_beyond_training(shape: ModelShape, beyond: str) -> int:
    """Number of positions in a table of learned positions.

    ``untrained`` has entries for the longest sequence to be evaluated; those beyond the training context keep their initial
    values, which is what the published comparisons did. ``error`` has none, and a longer sequence is refused.
    """
    return shape.longest if beyond == "untrained" else shape.context
