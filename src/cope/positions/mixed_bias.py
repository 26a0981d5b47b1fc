"""Biases made by small networks: FIRE's, of a distance measured against the query's position; DAPE's, of the logits too.

Neither depends on the distance alone, so neither has a fast path: both run on plain PyTorch, a block of queries at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from cope.errors import check_at_least, check_choice
from cope.positions.base import Heads, ModelShape, PositionEncoding
from cope.positions.distance_bias import Alibi, DistanceBias, KerpleLog


class Fire(PositionEncoding):
    """FIRE (Li et al. 2023, arXiv 2310.04418): b_ij = MLP(psi(i - j) / psi(max(i, mu L))).

    psi(x) = log(|c x| + 1); the MLP is 1-``width``-H with a ReLU. c and mu are learned, from 0.1 and 1; L is fixed. For i above
    mu L every distance is measured as a share of the query's position, so that longer sequences give the MLP no new input.
    Each layer has its own c, mu and MLP. Positions count from 0.

    Cost: the MLP runs on every pair of query and key: ``width`` times their number, in time and, within a block, in memory.

    Args:
        width: hidden units; the authors' 32.
        threshold: L; the authors' 512.
    """

    def __init__(self, shape: ModelShape, *, width: int, threshold: float) -> None:
        super().__init__(shape)
        check_at_least("pe.width", width, 1)
        check_at_least("pe.threshold", threshold, 1.0)
        self.threshold = threshold
        self.c = nn.Parameter(torch.full((shape.num_layers,), 0.1))
        self.mu = nn.Parameter(torch.ones(shape.num_layers))
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, shape.num_heads)) for _ in range(shape.num_layers)
        )

    def bias(self, heads: Heads, logits: Tensor) -> Tensor:
        num_queries, num_keys = logits.shape[-2:]
        c, mu = self.c[heads.layer], self.mu[heads.layer]
        query = torch.arange(num_keys - num_queries, num_keys, device=logits.device, dtype=c.dtype)[:, None]
        distance = (query - torch.arange(num_keys, device=logits.device)).clamp(min=0)  # (query, key)
        of_query = torch.maximum(query, (mu * self.threshold).abs())
        share = torch.log1p((c * distance).abs()) / (torch.log1p((c * of_query).abs()) + 1e-6)
        bias: Tensor = self.networks[heads.layer](share[..., None])
        return bias.movedim(-1, 0)  # (heads, query, key)


class Dape(PositionEncoding):
    """DAPE (Zheng et al. 2024, arXiv 2405.14722): s + b + MLP([s; b]), s the logits and b another encoding's bias.

    The MLP mixes the heads: 2H-``width``-H with a LeakyReLU, one a layer, from PyTorch's initial values as in the authors'
    code. Beyond the trained length b does what its own encoding does.

    Cost: the MLP runs on every pair of query and key: ``width`` numbers for each, in time and, within a block, in memory.

    Args:
        base: whose bias b is: ``Alibi``, ``KerpleLog`` (the paper's best) or ``Fire``.
        width: hidden units; the authors' 32.
    """

    BASES: ClassVar[dict[str, Callable[[ModelShape], DistanceBias | Fire]]] = {
        "Alibi": lambda shape: Alibi(shape, backend="auto"),
        "KerpleLog": lambda shape: KerpleLog(shape, backend="auto"),
        "Fire": lambda shape: Fire(shape, width=32, threshold=512.0),
    }

    def __init__(self, shape: ModelShape, *, base: str, width: int) -> None:
        super().__init__(shape)
        check_choice("pe.base", base, self.BASES)
        check_at_least("pe.width", width, 1)
        self.base = self.BASES[base](shape)
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * shape.num_heads, width), nn.LeakyReLU(), nn.Linear(width, shape.num_heads))
            for _ in range(shape.num_layers)
        )

    def bias(self, heads: Heads, logits: Tensor) -> Tensor:
        base = self.base.bias(heads, logits)
        mixed: Tensor = self.networks[heads.layer](torch.cat([logits, base.expand_as(logits)], dim=1).movedim(1, -1))
        return base + mixed.movedim(-1, 1)
