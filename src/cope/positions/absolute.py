"""Absolute positions, added to the token embeddings: learned, or sinusoids (Vaswani et al. 2017, arXiv 1706.03762, 3.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cope.errors import check_at_least, check_choice
from cope.positions.base import ModelShape, PositionEncoding, positions_beyond_training


class Absolute(PositionEncoding):
    """A learned vector for each position, by default drawn from N(0, 1/dim) as in the authors' released code.

    Args:
        beyond: what stands beyond the trained length: ``untrained`` (vectors at their initial values) or ``error``.
        init_std: standard deviation of the initial values; null is 1/sqrt(dim).
    """

    def __init__(self, shape: ModelShape, *, beyond: str, init_std: float | None = None) -> None:
        super().__init__(shape)
        check_choice("pe.beyond", beyond, ["untrained", "error"])
        if init_std is not None:
            check_at_least("pe.init_std", init_std, 0.0)
        self.max_tokens = positions_beyond_training(shape, beyond)
        self.num_untrained = max(0, self.max_tokens - shape.context) * shape.dim
        self.vectors = nn.Parameter(
            torch.randn(self.max_tokens, shape.dim) * (shape.dim**-0.5 if init_std is None else init_std)
        )

    def embed(self, x: Tensor, start: int) -> Tensor:
        self.check_length(start + x.shape[1])
        return x + self.vectors[start : start + x.shape[1]]


class Sinusoidal(PositionEncoding):
    """Sines and cosines of geometrically growing wavelengths, scaled to the size of the token embeddings.

    Vaswani et al. multiply embeddings of variance 1/dim by sqrt(dim); dividing the sinusoids instead is the same to a factor.

    Args:
        base: ratio of the longest wavelength to the shortest.
    """

    def __init__(self, shape: ModelShape, *, base: float) -> None:
        super().__init__(shape)
        check_at_least("pe.base", base, 1.0)
        self.base = base

    def embed(self, x: Tensor, start: int) -> Tensor:
        dim = x.shape[-1]
        position = torch.arange(start, start + x.shape[1], device=x.device, dtype=torch.float32)[:, None]
        frequency = torch.exp(-math.log(self.base) * torch.arange(0, dim, 2, device=x.device) / dim)
        angle = position * frequency  # (time, dim / 2, rounded up)
        vectors = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[:, :dim]
        return x + vectors.to(x.dtype) * dim**-0.5
