"""CoPE attention in plain PyTorch, a block of queries at a time.

The values and gradients of ``reference.py`` without its time x time tensors: a block of queries sees only the keys up to its
own end (what the causal mask throws away is never built), and the backward pass computes the block again instead of keeping
it. Extra memory is one block x time tensor of each kind; time is less than half of the reference's.

The backward pass, for one block, in the paper's letters. With attention a, output o and its gradient do:

    ds_ij = a_ij (do_i . v_j - do_i . o_i)        softmax
    dz_i[floor p] += ds (1 - w), dz_i[floor p + 1] += ds w      interpolation, w = p - floor p
    dp_ij = ds_ij (z_i[floor p + 1] - z_i[floor p])             0 where p was clamped
    dg_it = sum_{j <= t} dp_ij                    p_ij sums the gates from j to i, so gate t is in every p_ij with j <= t
    d(gate logit)_it = dg_it g_it (1 - g_it)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cope.kernels.reference import by_distance, causal_mask

QUERIES_PER_BLOCK = 64  # 32 to 64 were best on CPUs: the block's tensors stay in the cache


# torch.compile takes the rest of the model: it cannot compile this (seen with PyTorch 2.13), and has little to gain here.
@torch.compiler.disable
def cope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    *,
    gate_keys: Tensor | None = None,
    scale: str = "released",
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention with contextual positions; shapes and arguments as in :func:`cope.functional.cope_attention`."""
    # Dropout's mask is drawn again in the backward pass, from a seed of its own, instead of being kept.
    seed = int(torch.randint(2**62, ()).item()) if dropout > 0 else 0
    table_scale = 1.0 / math.sqrt(q.shape[-1]) if scale == "released" else 1.0
    result: Tensor = _BlockwiseCope.apply(q, k, v, table, gate_keys, bias, table_scale, dropout, seed)
    return result


class _Block:
    """What one block of queries computes on the way to its attention weights."""

    def __init__(
        self, q: Tensor, k: Tensor, table: Tensor, gate_keys: Tensor | None, bias: Tensor | None, table_scale: float
    ) -> None:
        inverse_sqrt_dim = 1.0 / math.sqrt(q.shape[-1])
        num_positions = table.shape[0]
        self.visible = causal_mask(q.shape[-2], k.shape[-2], q.device)
        logits = q @ k.transpose(-1, -2) * inverse_sqrt_dim
        gate_logits = logits if gate_keys is None else q @ gate_keys.transpose(-1, -2) * inverse_sqrt_dim
        self.gates = gate_logits.sigmoid() * self.visible
        # The sum from each key to the query is the whole sum less the sum before the key.
        positions = self.gates.flip(-1).cumsum_(-1).flip(-1)
        self.free = positions <= num_positions - 1  # not clamped, so the gates still matter
        z = q @ table.transpose(-1, -2) * table_scale
        if num_positions == 1:
            self.below, self.weight, self.slope = None, None, None
            logits = logits + z
        else:
            positions = positions.clamp_(max=num_positions - 1)
            # Clamped as an integer: a NaN stays an index within the table, and goes on through the weight to the loss.
            self.below = positions.floor().long().clamp_(0, num_positions - 2)
            self.weight = positions - self.below
            self.slope = z.diff(dim=-1).gather(-1, self.below)
            logits = logits + z.gather(-1, self.below).addcmul_(self.slope, self.weight)
        if bias is not None:
            logits = logits + by_distance(bias, k.shape[-2])
        self.attention = logits.masked_fill_(~self.visible, -math.inf).softmax(-1)


def _dropout_mask(attention: Tensor, dropout: float, seed: int) -> Tensor:
    generator = torch.Generator(attention.device).manual_seed(seed)
    kept = torch.rand(attention.shape, device=attention.device, generator=generator) >= dropout
    return kept.to(attention.dtype) / (1.0 - dropout)


def _blocks(num_queries: int, num_keys: int) -> list[tuple[slice, slice]]:
    """(queries, keys they may see) of each block."""
    before = num_keys - num_queries
    starts = range(0, num_queries, QUERIES_PER_BLOCK)
    ends = [min(start + QUERIES_PER_BLOCK, num_queries) for start in starts]
    return [(slice(start, end), slice(0, before + end)) for start, end in zip(starts, ends, strict=True)]


class _BlockwiseCope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor,
        gate_keys: Tensor | None,
        bias: Tensor | None,
        table_scale: float,
        dropout: float,
        seed: int,
    ) -> Tensor:
        output = q.new_empty(*q.shape[:-1], v.shape[-1])
        for queries, keys in _blocks(q.shape[-2], k.shape[-2]):
            block = _Block(
                q[..., queries, :],
                k[..., keys, :],
                table,
                None if gate_keys is None else gate_keys[..., keys, :],
                None if bias is None else bias[..., queries, :],
                table_scale,
            )
            attention = block.attention
            if dropout > 0:
                attention = attention * _dropout_mask(attention, dropout, seed + queries.start)
            output[..., queries, :] = attention @ v[..., keys, :]
        ctx.save_for_backward(q, k, v, table, gate_keys, bias)
        ctx.settings = (table_scale, dropout, seed)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, table, gate_keys, bias = ctx.saved_tensors
        table_scale, dropout, seed = ctx.settings
        inverse_sqrt_dim = 1.0 / math.sqrt(q.shape[-1])
        dq, dk, dv, dtable = (torch.zeros_like(tensor) for tensor in (q, k, v, table))
        dgate_keys = None if gate_keys is None else torch.zeros_like(gate_keys)
        dbias = None if bias is None else torch.zeros_like(bias)
        for queries, keys in _blocks(q.shape[-2], k.shape[-2]):
            block_q, block_k, block_v = q[..., queries, :], k[..., keys, :], v[..., keys, :]
            block_gate_keys = None if gate_keys is None else gate_keys[..., keys, :]
            block_bias = None if bias is None else bias[..., queries, :]
            block = _Block(block_q, block_k, table, block_gate_keys, block_bias, table_scale)
            do = grad_output[..., queries, :]

            da = do @ block_v.transpose(-1, -2)
            if dropout > 0:
                mask = _dropout_mask(block.attention, dropout, seed + queries.start)
                dv[..., keys, :] += (block.attention * mask).transpose(-1, -2) @ do
                da = da * mask
            else:
                dv[..., keys, :] += block.attention.transpose(-1, -2) @ do
            ds = block.attention * (da - (da * block.attention).sum(-1, keepdim=True))

            dlogits = ds
            dz = ds.new_zeros(*ds.shape[:-1], table.shape[0])
            if block.below is None or block.weight is None or block.slope is None:
                dz += ds.sum(-1, keepdim=True)
            else:
                above = ds * block.weight
                dz.scatter_add_(-1, block.below, ds - above)
                dz.scatter_add_(-1, block.below + 1, above)
                dgates = (ds * block.slope).mul_(block.free).cumsum_(-1)
                dgate_logits = dgates.mul_(block.gates).mul_(1.0 - block.gates)
                if block_gate_keys is None or dgate_keys is None:
                    dlogits = ds + dgate_logits
                else:
                    dq[..., queries, :] += dgate_logits @ block_gate_keys * inverse_sqrt_dim
                    dgate_keys[..., keys, :] += dgate_logits.transpose(-1, -2) @ block_q * inverse_sqrt_dim
            dq[..., queries, :] += dlogits @ block_k * inverse_sqrt_dim + dz @ table * table_scale
            dk[..., keys, :] += dlogits.transpose(-1, -2) @ block_q * inverse_sqrt_dim
            dtable += (dz.flatten(0, -2).transpose(0, 1) @ block_q.flatten(0, -2)) * table_scale
            if dbias is not None and bias is not None:
                dbias[..., queries, :] += _to_distance(ds, bias[..., queries, :])
        return dq, dk, dv, dtable, dgate_keys, dbias, None, None, None


def _to_distance(ds: Tensor, bias: Tensor) -> Tensor:
    """The gradient of :func:`by_distance`: (..., query, key) -> the shape of ``bias``, summed where bias was broadcast."""
    num_queries, num_keys = ds.shape[-2:]
    query_index = torch.arange(num_keys - num_queries, num_keys, device=ds.device)[:, None]
    distance = query_index - torch.arange(num_keys, device=ds.device)
    gradient = ds.new_zeros(*ds.shape[:-1], bias.shape[-1])
    # ds is 0 where a key comes after its query, so that those pairs add nothing to distance 0.
    gradient.scatter_add_(-1, distance.clamp(min=0).expand_as(ds), ds)
    return gradient.sum_to_size(bias.shape)
