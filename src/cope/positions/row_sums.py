"""Biases that are products of one number of the query and one of the key: forget gates (FoX), query-gated slopes (GRAPE).

    logit_ij = q_i . k_j / sqrt(d) + a_i (b_j - b_i)

Whatever is summed along the sequence is in b, so no query and key meet but in this product: ``a_i b_i`` is the same for all
keys of a query, which softmax does not see, and ``a_i b_j`` is one more dimension of queries and keys. The fast path is
ordinary attention with that dimension, at its cost, in float32 under any precision, since b is a sum of many numbers. Defined
for any length. ALiBi is the case a_i = m_h, b_j = j (``positions/distance_bias.py``).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cope.positions.base import Heads, ModelShape, PositionEncoding, plain_attention
from cope.positions.distance_bias import alibi_slopes


class RowSums(PositionEncoding):
    """What they share. Subclasses give a and b."""

    @abstractmethod
    def factors(self, heads: Heads) -> tuple[Float[Tensor, "*batch #query 1"], Float[Tensor, "*batch key 1"]]:
        """a of each query, and b of each key, of nothing after it: later tokens would change how earlier ones are rounded."""

    def bias(self, heads: Heads, logits: Tensor) -> Tensor:
        of_query, of_key = self.factors(heads)
        bias: Tensor = of_query * (of_key.transpose(-1, -2) - of_key[..., -logits.shape[-2] :, :])
        return bias.to(logits.dtype)

    def attend(self, heads: Heads, dropout: float) -> Tensor:
        q, k, v = heads.q, heads.k, heads.v
        size, dtype = q.shape[-1] + 1, torch.promote_types(q.dtype, torch.float32)
        has_autocast = torch.amp.is_autocast_available(q.device.type)
        with torch.autocast(q.device.type, enabled=False) if has_autocast else nullcontext():
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
            of_query, of_key = self.factors(heads._replace(q=q, k=k, v=v))
            # The longer product is divided by the square root of its own size.
            q = torch.cat([q * math.sqrt(size / (size - 1)), of_query.expand(*q.shape[:-1], 1) * math.sqrt(size)], dim=-1)
            k = torch.cat([k, of_key.expand(*k.shape[:-1], 1).to(dtype)], dim=-1)
            return plain_attention(heads._replace(q=q, k=k, v=v), dropout).to(heads.v.dtype)


class Forgetting(RowSums):
    """The Forgetting Transformer's gates (FoX; Lin et al. 2025, arXiv 2503.02130): sums of log forget gates.

    f_t = sigmoid(w_h . x_t + c_h) for each head, and logit_ij gains log f_{j+1} + ... + log f_i. Without the authors' further
    changes to the block (output gate, norms, shifted keys: their "Pro").

    Args:
        initial_bias: c at the start. The paper starts a plain linear layer, from about 0: half is forgotten at each token;
            x-transformers starts from 5.
    """

    def __init__(self, shape: ModelShape, *, initial_bias: float) -> None:
        super().__init__(shape)
        self.gates = nn.ModuleList(nn.Linear(shape.dim, shape.num_heads) for _ in range(shape.num_layers))
        for gate in self.gates:
            assert isinstance(gate, nn.Linear)
            nn.init.constant_(gate.bias, initial_bias)

    def project(self, x: Tensor, layer: int) -> Tensor:
        gate: Tensor = self.gates[layer](x)
        return F.logsigmoid(gate.to(torch.promote_types(gate.dtype, torch.float32))).transpose(1, 2)[..., None]

    def factors(self, heads: Heads) -> tuple[Tensor, Tensor]:
        assert heads.projected is not None
        kept = heads.projected.cumsum(-2)
        return kept.new_ones(1, 1), -kept


class QueryGatedSlope(RowSums):
    """GRAPE-A, query-gated (Zhang et al. 2025, arXiv 2512.07805; code: model-architectures/GRAPE): slopes set by the query.

    logit_ij = q_i . k_j / sqrt(d) - (i - j) m_h softplus(omega_h) softplus(u_h . q_i / sqrt(d)), with m_h ALiBi's slopes and
    |u_h| = 1. At the start softplus(omega) = 1 and u is a random direction, so that slopes are near log(2) m_h. Each layer has
    its own omega and u. The paper's additive form with a gate of the query; with u = 0 it is ALiBi, with a slope of 1 and
    gates on the keys FoX.
    """

    slopes: Tensor

    def __init__(self, shape: ModelShape) -> None:
        super().__init__(shape)
        self.register_buffer("slopes", torch.tensor(alibi_slopes(shape.num_heads)))
        self.omega = nn.Parameter(torch.full((shape.num_layers, shape.num_heads), math.log(math.expm1(1.0))))
        self.directions = nn.Parameter(torch.randn(shape.num_layers, shape.num_heads, shape.head_dim) * shape.head_dim**-0.5)

    def factors(self, heads: Heads) -> tuple[Tensor, Tensor]:
        direction = F.normalize(self.directions[heads.layer], dim=-1)[:, None]  # (heads, 1, head_dim)
        seen = (heads.q * direction.to(heads.q.dtype)).sum(-1, keepdim=True)  # (batch, heads, query, 1)
        gate = F.softplus(seen / math.sqrt(heads.q.shape[-1]))
        slope = self.slopes * F.softplus(self.omega[heads.layer])
        place = torch.arange(heads.k.shape[-2], device=slope.device, dtype=slope.dtype)
        return slope[:, None, None] * gate, place[:, None]
