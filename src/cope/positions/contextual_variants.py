"""CoPE without a table: the position itself weighs the logit (CoPE_ALiBi), or an MLP makes its vector (CoPE_MLP).

Ablations of arXiv 2405.18719 (Appendix). ALiBi is Press et al. 2021, arXiv 2108.12409.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cope.errors import check_at_least
from cope.positions.base import Heads, ModelShape, PositionEncoding
from cope.positions.contextual import Contextual, Gated


class ContextualAlibi(Gated):
    """Logit + m_h p_ij, one slope m_h a head (``pe=cope_alibi``).

    Fixed slopes are negative, as in ALiBi: a larger count lowers the logit. They fall geometrically over the heads, by ALiBi's
    own ratio 2^(-8 / num_heads), from ``first_slope``. Learned slopes, one a head and layer, start from 0.

    Args:
        first_slope: size of the first head's slope; the paper tried 1, 1/4 and 1/16. Has no effect on learned slopes.
        learned: learn the slopes.
        **gated: as in :class:`Gated`; ``num_positions`` may be null, since there is no table to outrun.
    """

    def __init__(self, shape: ModelShape, *, first_slope: float, learned: bool, **gated: Any) -> None:
        super().__init__(shape, **gated)
        check_at_least("pe.first_slope", first_slope, 0.0)
        ratio = 2.0 ** (-8.0 / shape.num_heads)
        slopes = torch.tensor([-first_slope * ratio**head for head in range(shape.num_heads)])
        if learned:
            self.slopes = nn.Parameter(torch.zeros(shape.num_layers, shape.num_heads))
        else:
            self.register_buffer("slopes", slopes.expand(shape.num_layers, -1).clone())

    def bias(self, heads: Heads, logits: Tensor) -> Tensor:
        _, positions = self.gates_and_positions(heads)
        return self.slopes[heads.layer][:, None, None] * positions


class ContextualMlp(Contextual):
    """q_i . e(p_ij) with a small network e instead of interpolation (``pe=cope_mlp``).

    The network, shared by heads and layers alike, maps x = p / (num_positions - 1) through ``width`` ReLU units to a vector of
    head_dim: e(x) = W relu(u x + b) + c. As written that takes (query, key, width) numbers a head. But a sum of ReLUs of one
    number is a chain of straight lines, bent where a unit turns on or off, so q.e(x) = slope x + intercept with the slope and
    intercept of the segment that x lies in: (query, width + 1) numbers a head, from which each pair reads two. Values and
    gradients are those of the network as written, but for an x exactly on a bend, where the slope taken is that to its right.

    Args:
        width: hidden units; the paper's N = 64.
        first_layer_only: the MLP in the first layer, interpolation from a table in the others.
        init_std: standard deviation of the output layer's initial values, and of the tables'; 0 starts without position, as
            the paper's table does.
        share_layers: concerns the tables.
        num_positions, scale, gates: as in :class:`Contextual`.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        width: int,
        first_layer_only: bool,
        share_layers: bool,
        init_std: float,
        num_positions: int,
        scale: str,
        gates: str,
    ) -> None:
        super().__init__(
            shape, num_positions=num_positions, scale=scale, share_layers=share_layers, init_std=init_std, gates=gates,
            backend="auto",
        )  # fmt: skip
        check_at_least("pe.width", width, 1)
        self.first_layer_only = first_layer_only
        if not first_layer_only or shape.num_layers == 1:
            del self.tables  # no layer would read them
        elif not share_layers:
            self.tables = nn.Parameter(self.tables.detach()[1:].clone())
        self.hidden = nn.Linear(1, width)
        self.output = nn.Linear(width, shape.head_dim)
        nn.init.normal_(self.output.weight, std=init_std)
        nn.init.zeros_(self.output.bias)

    @property
    def kernel(self) -> str | None:
        return super().kernel if hasattr(self, "tables") else None  # kernels look up tables

    def table(self, layer: int) -> Tensor:
        return self.tables[layer - 1 if len(self.tables) > 1 else 0]  # the first layer has none

    def uses_mlp(self, layer: int) -> bool:
        """Whether a layer's position vectors come from the MLP."""
        return layer == 0 or not self.first_layer_only

    def bias(self, heads: Heads, logits: Tensor) -> Tensor:
        if not self.uses_mlp(heads.layer):
            return super().bias(heads, logits)
        _, positions = self.gates_and_positions(heads)
        assert self.num_positions is not None
        x = positions / max(1, self.num_positions - 1)  # (batch, heads, query, key), from 0 to 1
        bends, active = self.segments()
        weights = heads.q @ self.output.weight  # (batch, heads, query, width)
        slopes = (weights * self.hidden.weight[:, 0]) @ active.T  # (batch, heads, query, width + 1)
        intercepts = (weights * self.hidden.bias) @ active.T + (heads.q @ self.output.bias)[..., None]
        segment = torch.bucketize(x.detach().to(bends.dtype), bends, right=True)
        product = slopes.gather(-1, segment) * x + intercepts.gather(-1, segment)
        return product / math.sqrt(heads.q.shape[-1]) if self.scale == "released" else product

    @torch.no_grad()
    def segments(self) -> tuple[Tensor, Tensor]:
        """Where the lines bend, (width,) rising from 0 to 1, and which units are on between, (width + 1, width), 1 or 0."""
        u, b = self.hidden.weight[:, 0], self.hidden.bias
        bends = (-b / u).nan_to_num(0.0).clamp(0.0, 1.0).sort().values  # a unit that never turns bends nothing
        ends = torch.arange(2, device=b.device, dtype=b.dtype)  # 0 and 1, made where they are needed
        middles = (torch.cat([ends[:1], bends]) + torch.cat([bends, ends[1:]])) / 2
        return bends, (middles[:, None] * u + b > 0).to(b.dtype)

    def attend(self, heads: Heads, dropout: float) -> Tensor:
        if self.uses_mlp(heads.layer):
            return PositionEncoding.attend(self, heads, dropout)  # not Contextual's, which reads the table
        return super().attend(heads, dropout)
