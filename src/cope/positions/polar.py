"""PoPE (Gopalakrishnan et al. 2025, arXiv 2509.10534): polar coordinates, lengths from content and angles from position."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cope.errors import check_at_least, check_choice
from cope.positions.base import Heads, ModelShape, PositionEncoding

START = ("zero", "uniform")


class Polar(PositionEncoding):
    """logit_ij = sum_c softplus(q_ic) softplus(k_jc) cos((j - i) theta_c + delta_c) / sqrt(d), theta_c = base^(-c/d).

    Where RoPE turns vectors that have angles of their own, here content gives each dimension a length alone, so that what and
    where are matched apart. delta, one for each layer, head and dimension, is learned and kept in [-2 pi, 0]. Defined for any
    length.

    Cost: queries and keys of twice the size in the products, by ordinary attention; the cache has their usual size.

    Args:
        base: as RoPE's.
        delta: its start: ``zero``, the authors' choice where longer sequences are tested, or ``uniform``, from U(-2 pi, 0).
    """

    def __init__(self, shape: ModelShape, *, base: float, delta: str) -> None:
        super().__init__(shape)
        check_at_least("pe.base", base, 1.0)
        check_choice("pe.delta", delta, START)
        self.base = base
        size = (shape.num_layers, shape.num_heads, 1, shape.head_dim)
        self.delta = nn.Parameter(torch.zeros(size) if delta == START[0] else -2 * math.pi * torch.rand(size))

    def transform(self, heads: Heads) -> Heads:
        (num_queries, size), num_keys = heads.q.shape[-2:], heads.k.shape[-2]
        theta = self.base ** -(torch.arange(size, device=heads.q.device, dtype=torch.float32) / size)
        place = torch.arange(num_keys, device=theta.device, dtype=torch.float32)[:, None]
        angle = place * theta
        # The product of twice the size would be divided by the square root of 2 too much.
        q = _polar(math.sqrt(2) * F.softplus(heads.q), angle[num_keys - num_queries :])
        k = _polar(F.softplus(heads.k), angle + self.delta[heads.layer].clamp(-2 * math.pi, 0.0))
        return heads._replace(q=q, k=k)


def _polar(length: Tensor, angle: Tensor) -> Tensor:
    return torch.cat([length * angle.cos().to(length.dtype), length * angle.sin().to(length.dtype)], dim=-1)
