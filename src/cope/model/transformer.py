"""A decoder-only Transformer, top to bottom. Position comes from the encoding's hooks alone.

Its settings reach from GPT-2 (gelu, layer norm, biases) to Llama 2 (swiglu, RMS norm, no biases, an output layer of its own).

Initialisation follows the code that CoPE's authors released: token embeddings from N(0, 1/dim), PyTorch's own for linear
layers, and with pre-norm each branch's last layer divided by sqrt(2 num_layers).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cope.errors import UserError, check_at_least, check_between, check_choice
from cope.positions.base import Heads, ModelShape, PositionEncoding


def swiglu(x: Tensor) -> Tensor:
    """One half of the hidden units, gated by the other (Shazeer 2020, arXiv 2002.05202)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


# The function, and how many hidden vectors it takes in for each that it gives out.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "relu": (F.relu, 1),
    "gelu": (F.gelu, 1),
    "swiglu": (swiglu, 2),
}
NORMALIZATIONS: dict[str, type[nn.LayerNorm | nn.RMSNorm]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def check_shape(dim: int, num_layers: int, num_heads: int) -> None:
    """Raise UserError unless a Transformer can have this shape."""
    for key, value in (("dim", dim), ("num_layers", num_layers), ("num_heads", num_heads)):
        check_at_least(f"model.{key}", value, 1)
    if dim % num_heads:
        divisors = [str(heads) for heads in range(1, min(dim, 64) + 1) if dim % heads == 0]
        raise UserError(f"model.num_heads={num_heads} does not divide model.dim={dim}; allowed: {', '.join(divisors)}.")


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


class FeedForward(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, dim: int, hidden: int, activation: str, biases: bool, dropout: float) -> None:
        super().__init__()
        self.activation, num_inputs = ACTIVATIONS[activation]
        self.hidden = nn.Linear(dim, num_inputs * hidden, bias=biases)
        self.output = nn.Linear(hidden, dim, bias=biases)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (batch, time, dim) in and out."""
        output: Tensor = self.output(self.dropout(self.activation(self.hidden(x))))
        return output


class Layer(nn.Module):
    """Attention and feed-forward, each in a residual branch with a norm before it (pre) or after the sum (post)."""

    def __init__(
        self,
        shape: ModelShape,
        index: int,
        feed_forward_multiple: int,
        activation: str,
        norm: str,
        normalization: str,
        biases: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(shape.dim, shape.num_heads, biases, dropout, index)
        self.feed_forward = FeedForward(shape.dim, shape.dim * feed_forward_multiple, activation, biases, dropout)
        self.attention_norm = NORMALIZATIONS[normalization](shape.dim)
        self.feed_forward_norm = NORMALIZATIONS[normalization](shape.dim)
        self.norm = norm
        self.dropout = nn.Dropout(dropout)

    def attention_input(self, x: Tensor) -> Tensor:
        """What attention sees of the layer's input."""
        normed: Tensor = self.attention_norm(x) if self.norm == "pre" else x
        return normed

    def forward(self, x: Tensor, encoding: PositionEncoding, start: int, cache: LayerCache | None) -> Tensor:
        """Shapes (batch, time, dim) in and out."""
        attended = self.dropout(self.attention(self.attention_input(x), encoding, start, cache))
        if self.norm == "pre":
            x = x + attended
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + attended)
        normed: Tensor = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return normed


class Transformer(nn.Module):
    """Token ids in, logits of the next token out.

    Args:
        vocab_size: number of token ids.
        encoding: the position encoding, which also knows the model's shape.
        feed_forward_multiple: the feed-forward's hidden size, in multiples of dim.
        activation: ``relu``, ``gelu`` or ``swiglu``, which has a third weight matrix of the hidden size.
        norm: where it stands, ``pre`` or ``post``.
        normalization: ``layer`` or ``rms``.
        biases: of the linear layers in attention and feed-forward.
        dropout: probability, for embeddings, attention weights, hidden units and branches.
        tied_embeddings: the output layer is the token embedding's transpose.

    Raises:
        UserError: a value that is not allowed.
    """

    def __init__(
        self,
        vocab_size: int,
        encoding: PositionEncoding,
        feed_forward_multiple: int = 4,
        activation: str = "relu",
        norm: str = "pre",
        normalization: str = "layer",
        biases: bool = True,
        dropout: float = 0.0,
        tied_embeddings: bool = True,
    ) -> None:
        super().__init__()
        check_at_least("model.feed_forward_multiple", feed_forward_multiple, 1)
        check_choice("model.activation", activation, ACTIVATIONS)
        check_choice("model.norm", norm, ["pre", "post"])
        check_choice("model.normalization", normalization, NORMALIZATIONS)
        check_between("model.dropout", dropout, 0.0, 0.99)
        shape = encoding.shape
        self.encoding = encoding
        self.embedding = nn.Embedding(vocab_size, shape.dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(shape, index, feed_forward_multiple, activation, norm, normalization, biases, dropout)
            for index in range(shape.num_layers)
        )
        self.final_norm = NORMALIZATIONS[normalization](shape.dim) if norm == "pre" else nn.Identity()
        self.output = nn.Linear(shape.dim, vocab_size, bias=False)
        self._initialise(shape, norm)
        if tied_embeddings:
            self.output.weight = self.embedding.weight

    def _initialise(self, shape: ModelShape, norm: str) -> None:
        nn.init.normal_(self.embedding.weight, std=shape.dim**-0.5)
        if norm == "pre":
            with torch.no_grad():
                for layer in self.layers:
                    assert isinstance(layer, Layer)
                    layer.attention.output.weight /= math.sqrt(2 * shape.num_layers)
                    layer.feed_forward.output.weight /= math.sqrt(2 * shape.num_layers)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        where: Int[Tensor, " wanted"] | None = None,
        start: int = 0,
        caches: list[LayerCache] | None = None,
    ) -> Float[Tensor, "batch time vocab"] | Float[Tensor, "wanted vocab"]:
        """Logits of the token after each of ``tokens``.

        Args:
            tokens: the ids at ``start``, ``start + 1``, ...
            where: places in the flattened ``tokens``, batch by batch: compute logits only there, in one row each. The rest of
                the output layer's work is saved.
            start: number of tokens already in ``caches``.
            caches: one for each layer, from :meth:`empty_caches`, for decoding a few tokens at a time.
        """
        x = self.dropout(self.encoding.embed(self.embedding(tokens), start))
        for index, layer in enumerate(self.layers):
            x = layer(x, self.encoding, start, None if caches is None else caches[index])
        x = self.final_norm(x)
        logits: Tensor = self.output(x if where is None else x.flatten(0, 1).index_select(0, where))
        return logits

    def empty_caches(self) -> list[LayerCache]:
        """One empty cache for each layer."""
        return [LayerCache() for _ in self.layers]

    def num_parameters(self) -> int:
        """Learned numbers, each counted once; position vectors beyond the training context are never learned."""
        parameters = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        return parameters - self.encoding.num_untrained
