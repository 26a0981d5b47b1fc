"""PaTH (Yang et al. 2025, arXiv 2505.16381): between key and query stands a product of reflections that the tokens make."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cope.errors import check_at_least
from cope.positions.base import Heads, ModelShape, PositionEncoding
from cope.positions.content_rotary import convolution_weights, short_convolution

TOKENS_PER_CHUNK = 64


class Path(PositionEncoding):
    """logit_ij = k_j . H_{j+1} ... H_i q_i / sqrt(d), H_t = I - beta_t w_t w_t^T.

    w_t is of unit length, from the token through a bottleneck, a short causal convolution and SiLU; beta_t = 2 sigmoid(...),
    so that H_t can reflect: such products can track states, as in the word problem of A5. Without the authors' optional forget
    gate. Defined for any length.

    The products are not formed. Tokens are taken in chunks, from the last to the first. Within a chunk that begins at b,

        y_t = w_t . H_{t-1} ... H_b x,  y_t + sum_{b<=s<t} (w_t . w_s) beta_s y_s = w_t . x      (a triangular system)
        H_t ... H_b x = x - sum_{b<=s<=t} beta_s w_s y_s

    and so for keys that begin later in it. Solved once for x all keys of the chunk, and all vectors at once (x = I), it gives
    the logits of the chunk's keys and what is left of each query at its beginning.

    Cost: plain PyTorch, some three times the products of queries and keys, and a system of 64 tokens for each chunk.

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
        weighted = beta * w
        num_before = k.shape[-2] - q.shape[-2]  # where the first query stands
        columns, turned = [], q[..., :0, :]
        num_turned = 0  # queries that later chunks have turned, the last ones
        for begin in reversed(range(0, k.shape[-2], TOKENS_PER_CHUNK)):
            tokens = slice(begin, begin + TOKENS_PER_CHUNK)
            keys, own, own_weighted = k[..., tokens, :], w[..., tokens, :], weighted[..., tokens, :]
            first = max(0, begin - num_before)  # the first query that is not before the chunk
            turned = torch.cat([q[..., first : q.shape[-2] - num_turned, :], turned], dim=-2)
            num_turned = q.shape[-2] - first
            solved = torch.linalg.solve_triangular(
                (own @ own_weighted.transpose(-1, -2)).tril(-1),
                torch.cat([(own @ keys.transpose(-1, -2)).tril(-1), own], dim=-1),
                upper=False,
                unitriangular=True,
            )
            taken = (turned @ own_weighted.transpose(-1, -2)).tril(num_before + first - begin) @ solved
            num_keys = keys.shape[-2]
            products = turned @ keys.transpose(-1, -2) - taken[..., :num_keys]
            columns.append(F.pad(products, (0, 0, first, 0)))
            turned = turned - taken[..., num_keys:]
        return (torch.cat(columns[::-1], dim=-1) / math.sqrt(q.shape[-1])).to(heads.q.dtype)
