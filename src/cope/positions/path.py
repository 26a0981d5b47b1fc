"""PaTH (Yang et al. 2025, arXiv 2505.16381): between key and query stands a product of reflections that the tokens make."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cope.errors import check_at_least
from cope.positions.base import Heads, ModelShape, PositionEncoding
from cope.positions.content_rotary import convolution_weights, short_convolution


class Path(PositionEncoding):
    """logit_ij = k_j . H_{j+1} ... H_i q_i / sqrt(d), H_t = I - beta_t w_t w_t^T.

    w_t is of unit length, from the token through a bottleneck, a short causal convolution and SiLU; beta_t = 2 sigmoid(...),
    so that H_t can reflect: such products can track states, as in the word problem of A5. Without the authors' optional forget
    gate. Defined for any length.

    The product is not formed. With y_tj = w_t . H_{t-1} ... H_{j+1} k_j, what is left of key j when token t reflects it,

        y_tj + sum_{j<s<t} (w_t . w_s) beta_s y_sj = w_t . k_j   for t > j      (a triangular system for each key)
        logit_ij = (q_i . k_j - sum_{j<t<=i} (q_i . w_t) beta_t y_tj) / sqrt(d)

    Cost: plain PyTorch; that system is solved for every key, in time with the cube of the length, a key x key tensor a head in
    memory. The authors' own kernel (flash-linear-attention) does without.

    Args:
        rank: of the bottleneck of w; the authors' 32.
        width: tokens of the convolution; the authors' 3.
    """

    def __init__(self, shape: ModelShape, *, rank: int, width: int) -> None:
        super().__init__(shape)
        check_at_least("pe.rank", rank, 1)
        check_at_least("pe.width", width, 1)
        layers = range(shape.num_layers)
        self.down = nn.ModuleList(nn.Linear(shape.dim, rank, bias=False) for _ in layers)
        self.up = nn.ModuleList(nn.Linear(rank, shape.dim, bias=False) for _ in layers)
        self.convolutions = convolution_weights(shape.num_layers, shape.dim, width)
        self.betas = nn.ModuleList(nn.Linear(shape.dim, shape.num_heads) for _ in layers)

    def project(self, x: Tensor, layer: int) -> Tensor:
        w = self.up[layer](self.down[layer](x)).unflatten(-1, (self.shape.num_heads, -1))
        return torch.cat([w, self.betas[layer](x)[..., None]], dim=-1).transpose(1, 2)  # (batch, heads, time, head_dim + 1)

    def reflections(self, heads: Heads) -> tuple[Tensor, Tensor]:
        """w (batch, heads, key, head_dim) and beta (batch, heads, key, 1) of each token, in float32 or better."""
        assert heads.projected is not None
        projected = heads.projected.to(torch.promote_types(heads.projected.dtype, torch.float32))
        w = F.normalize(F.silu(short_convolution(projected[..., :-1], self.convolutions[heads.layer])), dim=-1)
        return w, 2 * projected[..., -1:].sigmoid()

    def logits(self, heads: Heads) -> Tensor:
        w, beta = self.reflections(heads)
        q, k = heads.q.to(w.dtype), heads.k.to(w.dtype)
        num_queries, num_keys = q.shape[-2], k.shape[-2]
        weighted = beta * w
        left = torch.linalg.solve_triangular(
            (w @ weighted.transpose(-1, -2)).tril(-1), (w @ k.transpose(-1, -2)).tril(-1), upper=False, unitriangular=True
        )  # (batch, heads, token, key): y_tj
        taken = (q @ weighted.transpose(-1, -2)).tril(num_keys - num_queries) @ left
        return ((q @ k.transpose(-1, -2) - taken) / math.sqrt(q.shape[-1])).to(heads.q.dtype)
