"""Relative positions (Shaw et al. 2018, arXiv 1803.02155, the key term of Equation 4), as CoPE's authors released them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cope.errors import check_choice
from cope.kernels.reference import by_distance
from cope.positions.base import Heads, ModelShape, PositionEncoding, positions_beyond_training


class Relative(PositionEncoding):
    """A learned vector e[i - j] per distance: logits (q_i . k_j + q_i . e[i - j]) / sqrt(head_dim).

    One table, drawn from N(0, 1/head_dim), serves all heads and layers, as in the released code.

    Args:
        beyond: what stands beyond the trained distances: ``untrained`` (vectors at their initial values), ``error``, or
            ``capped`` (the last trained vector, reused: "Relative-capped" in the paper's Figure 3).
    """

    def __init__(self, shape: ModelShape, beyond: str = "untrained") -> None:
        super().__init__(shape)
        check_choice("pe.beyond", beyond, ["untrained", "error", "capped"])
        self.num_distances = positions_beyond_training(shape, beyond)
        if beyond == "capped":
            # A sequence's last token is only predicted, so the largest distance in training is context - 2.
            self.num_distances = max(1, self.num_distances - 1)
        self.max_tokens = None if beyond == "capped" else self.num_distances
        self.vectors = nn.Parameter(torch.randn(self.num_distances, shape.head_dim) * shape.head_dim**-0.5)

    def distance_bias(self, q: Tensor, num_keys: int) -> Float[Tensor, "batch heads query distance"]:
        """q_i . e[distance] / sqrt(head_dim) for every distance up to ``num_keys - 1``."""
        self.check_length(num_keys)
        products = q @ self.vectors[:num_keys].transpose(0, 1) / math.sqrt(q.shape[-1])
        missing = num_keys - products.shape[-1]
        if missing > 0:
            products = torch.cat([products, products[..., -1:].expand(*products.shape[:-1], missing)], dim=-1)
        return products

    def bias(self, heads: Heads, logits: Tensor) -> Tensor:
        num_keys = heads.k.shape[-2]
        return by_distance(self.distance_bias(heads.q, num_keys), num_keys)
