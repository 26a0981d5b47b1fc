"""Wall attention, as flash-linear-attention has it (``ops/wall_attn``, by Averbuch and Pai of Tilde Research)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cope.positions.base import Heads, ModelShape, PositionEncoding

QUERIES_AT_ONCE = 32


class Wall(PositionEncoding):
    """logit_ij = sum_c q_ic k_jc exp(P_ic - P_jc) / sqrt(d), P the running sum of log sigmoid(W x + b).

    Each dimension of a head forgets at its own pace, set by the tokens between key and query: FoX's gate lowers a logit, this
    one fades the content. b starts from ``initial_bias``, so that nearly all is kept. Without the class's optional scalar and
    output gates. Defined for any length.

    Cost: plain PyTorch. exp(P_i) and exp(-P_j) by themselves leave the range of numbers, so that queries are taken 32 at a
    time, and keys decayed to the first of them: each key 1/32 time for each query. Pairs within the 32 are taken one by one.

    Args:
        initial_bias: the authors' 8.
    """

    def __init__(self, shape: ModelShape, *, initial_bias: float) -> None:
        super().__init__(shape)
        self.gates = nn.ModuleList(nn.Linear(shape.dim, shape.dim) for _ in range(shape.num_layers))
        for gate in self.gates:
            assert isinstance(gate, nn.Linear)
            nn.init.constant_(gate.bias, initial_bias)

    def project(self, x: Tensor, layer: int) -> Tensor:
        gate: Tensor = self.gates[layer](x)
        kept = F.logsigmoid(gate.to(torch.promote_types(gate.dtype, torch.float32)))
        return kept.unflatten(-1, (self.shape.num_heads, -1)).transpose(1, 2)

    def logits(self, heads: Heads) -> Tensor:
        assert heads.projected is not None
        decay = heads.projected.cumsum(-2)  # P, falling along the sequence
        num_queries, num_keys = heads.q.shape[-2], heads.k.shape[-2]
        rows = []
        for start in range(0, num_queries, QUERIES_AT_ONCE):
            end = min(start + QUERIES_AT_ONCE, num_queries)
            first, last = num_keys - num_queries + start, num_keys - num_queries + end  # where these queries stand
            q, own = heads.q[..., start:end, :], decay[..., first:last, :]
            at_first = own[..., :1, :]
            earlier = heads.k[..., :first, :] * (at_first - decay[..., :first, :]).exp()
            before = (q * (own - at_first).exp()) @ earlier.transpose(-1, -2)
            # (batch, heads, query, key, head_dim); keys after the query are masked later
            kept = (own[..., :, None, :] - own[..., None, :, :]).clamp(max=0.0).exp()
            within = (q[..., :, None, :] * heads.k[..., None, first:last, :] * kept).sum(-1)
            rows.append(F.pad(torch.cat([before, within], dim=-1), (0, num_keys - last)))
        return (torch.cat(rows, dim=-2) / math.sqrt(heads.q.shape[-1])).to(heads.q.dtype)
