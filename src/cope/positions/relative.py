"""Relative positions (Shaw et al. 2018, arXiv 1803.02155, the key term of Equation 4), as CoPE's authors released them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cope.errors import check_at_least, check_choice
from cope.functional import BACKENDS, relative_attention
from cope.kernels.reference import by_distance
from cope.positions.base import Heads, ModelShape, PositionEncoding, positions_beyond_training


class Relative(PositionEncoding):
    """A learned vector e[i - j] per distance: logits (q_i . k_j + q_i . e[i - j]) / sqrt(head_dim).

    One table, by default drawn from N(0, 1/head_dim), serves all heads and layers, as in the released code.

    Args:
        beyond: what stands beyond the trained distances: ``untrained`` (vectors at their initial values), ``error``, or
            ``capped`` (the last trained vector, reused: "Relative-capped" in the paper's Figure 3).
        init_std: standard deviation of the table's initial values; null is 1/sqrt(head_dim).
        backend: which implementation of :func:`cope.relative_attention` runs.
    """

    def __init__(self, shape: ModelShape, *, beyond: str, backend: str, init_std: float | None = None) -> None:
        super().__init__(shape)
        check_choice("pe.beyond", beyond, ["untrained", "error", "capped"])
        check_choice("pe.backend", backend, ["auto", *BACKENDS])
        if init_std is not None:
            check_at_least("pe.init_std", init_std, 0.0)
        self.backend = backend
        num_distances = positions_beyond_training(shape, beyond)
        self.max_tokens = None if beyond == "capped" else num_distances
        self.num_untrained = max(0, num_distances - shape.context) * shape.head_dim
        self.vectors = nn.Parameter(
            torch.randn(num_distances, shape.head_dim) * (shape.head_dim**-0.5 if init_std is None else init_std)
        )

    @property
    def kernel(self) -> str | None:
        return self.backend

    def bias(self, heads: Heads, logits: Tensor) -> Tensor:
        num_keys = heads.k.shape[-2]
        self.check_length(num_keys)
        return by_distance(heads.q @ self.vectors.transpose(0, 1) / math.sqrt(heads.q.shape[-1]), num_keys)

    def attend(self, heads: Heads, dropout: float) -> Tensor:
        self.check_length(heads.k.shape[-2])
        return relative_attention(heads.q, heads.k, heads.v, self.vectors, dropout=dropout, backend=self.backend)
