"""Rotary position encoding (RoPE; Su et al. 2021, arXiv 2104.09864): queries and keys are turned by their position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cope.errors import UserError, check_at_least
from cope.positions.base import ModelShape, PositionEncoding


class Rotary(PositionEncoding):
    """The product of a query turned by i and a key turned by j depends on i - j alone.

    Dimension m of a head's first half is paired with dimension m of its second half, as in LLaMA and GPT-NeoX.

    Args:
        base: ratio of the slowest rotation's wavelength to the fastest's.
    """

    def __init__(self, shape: ModelShape, *, base: float) -> None:
        super().__init__(shape)
        check_even_head_size(shape)
        check_at_least("pe.base", base, 1.0)
        self.base = base

    def rotate(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        half = q.shape[-1] // 2
        frequency = self.base ** -(torch.arange(half, device=q.device, dtype=torch.float32) / half)
        position = torch.arange(start, start + q.shape[-2], device=q.device, dtype=torch.float32)
        angle = position[:, None] * frequency  # (time, head_dim / 2)
        cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
        return _turn(q, cos, sin), _turn(k, cos, sin)


class Xpos(Rotary):
    """xPos (Sun et al. 2022, arXiv 2212.10554): RoPE whose products also decay with distance, by frequency.

    The product of pair m is multiplied by zeta_m^((i - j) / scale_base), zeta_m = (m / (d/2) + gamma) / (1 + gamma): the query
    by its own power, the key by the inverse. Fixed. Defined for any length, but in float32 zeta^(i / scale_base) leaves the
    range of numbers at some 35,000 tokens.

    Args:
        base: as in :class:`Rotary`.
        gamma: the authors' 0.4.
        scale_base: tokens; the authors' 512.
    """

    def __init__(self, shape: ModelShape, *, base: float, gamma: float, scale_base: float) -> None:
        super().__init__(shape, base=base)
        check_at_least("pe.gamma", gamma, 0.0)
        check_at_least("pe.scale_base", scale_base, 1.0)
        self.gamma = gamma
        self.scale_base = scale_base

    def rotate(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        q, k = super().rotate(q, k, start)
        half = q.shape[-1] // 2
        zeta = (torch.arange(half, device=q.device, dtype=torch.float32) / half + self.gamma) / (1 + self.gamma)
        position = torch.arange(start, start + q.shape[-2], device=q.device, dtype=torch.float32)
        scale = torch.cat([zeta, zeta]) ** (position[:, None] / self.scale_base)  # (time, head_dim)
        return q * scale.to(q.dtype), k / scale.to(k.dtype)


def check_even_head_size(shape: ModelShape) -> None:
    """Raise UserError unless a head's dimensions make pairs."""
    if shape.head_dim % 2:
        raise UserError(
            f"pairs of dimensions are turned, which needs an even head size; model.dim={shape.dim} with "
            f"model.num_heads={shape.num_heads} gives {shape.head_dim}."
        )


class _Turn(torch.autograd.Function):
    """Turns pairs of dimensions by an angle; the gradient is turned back by it.

    Autograd's own backward pass through the formula takes twice as many operators, and some of the forward pass's are saved by
    writing into the output: on a CPU a tenth of a small model's training step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = x.chunk(2, dim=-1)
        turned = x * torch.cat([cos, cos], dim=-1)
        turned_first, turned_second = turned.chunk(2, dim=-1)
        turned_first.addcmul_(second, sin, value=-1)
        turned_second.addcmul_(first, sin)
        return turned

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradients[0], cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned: Tensor = _Turn.apply(x, cos, sin)
    return turned
