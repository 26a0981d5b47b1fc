"""``cope_attention``: CoPE for anybody's model, in the manner of ``torch.nn.functional.scaled_dot_product_attention``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from cope.errors import UserError, check_at_least, check_between, check_choice
from cope.kernels import blockwise, reference

BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": reference.cope_attention,
    "blockwise": blockwise.cope_attention,
}
SCALES = ("released", "paper")

log = logging.getLogger(__name__)


@cache
def _fastest() -> str:
    """The backend that ``auto`` stands for; says so once a process."""
    log.info("cope_attention: backend=auto takes blockwise (plain PyTorch, runs everywhere, memory linear in time)")
    return "blockwise"


def cope_attention(
    q: Float[Tensor, "batch heads query head_dim"],
    k: Float[Tensor, "batch heads key head_dim"],
    v: Float[Tensor, "batch heads key value_dim"],
    table: Float[Tensor, "num_positions head_dim"],
    *,
    gate_keys: Float[Tensor, "batch heads key head_dim"] | None = None,
    scale: str = "released",
    bias: Float[Tensor, "#batch #heads query distance"] | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "batch heads query value_dim"]:
    """Causal attention whose positions are counted by gates (arXiv 2405.18719, Equations 3 to 6).

    Each query i opens a gate ``sigmoid(q_i . k_j / sqrt(head_dim))`` for every key j up to itself; the position of key j is the
    sum of the gates from j to i; the position's vector, read from ``table`` by interpolation, is multiplied with the query and
    added to the attention logit.

    Args:
        q: queries. With fewer queries than keys the last query stands at the last key, as in decoding with a cache.
        k: keys.
        v: values.
        table: position vectors e[0], ..., e[num_positions - 1]; positions beyond the last are clamped to it.
        gate_keys: keys for the gates alone ("sep-keys"); pass ``v`` for gates from the values ("val-gates").
        scale: ``released`` adds q.e / sqrt(head_dim), as the authors' code does by default; ``paper`` adds q.e undivided,
            as in the paper's listing. q.k is divided in both.
        bias: added to the logit of query i and key j: ``bias[..., i, distance of j from i]``; at least as many distances as
            keys.
        dropout: probability of dropping an attention weight. Pass 0 when not training.
        backend: ``auto``, ``blockwise`` or ``reference``.

    Returns:
        The attended values, of q's type. Half precision is computed in float32.

    Raises:
        UserError: an unknown scale or backend, an empty table, more queries than keys, or a bias of too few distances.
    """
    input_dtype = q.dtype
    check_choice("scale", scale, SCALES)
    check_choice("backend", backend, ["auto", *BACKENDS])
    check_at_least("num_positions", table.shape[0], 1)
    check_between("dropout", dropout, 0.0, 0.99)
    num_queries, num_keys = q.shape[-2], k.shape[-2]
    if num_queries > num_keys:
        raise UserError(
            f"q has {num_queries} queries for {num_keys} keys: the first would see no key; allowed: at most {num_keys}."
        )
    if bias is not None and bias.shape[-1] < num_keys:
        raise UserError(f"bias has {bias.shape[-1]} distances for {num_keys} keys; allowed: {num_keys} or more.")
    attend = BACKENDS[_fastest() if backend == "auto" else backend]
    dtype = torch.promote_types(q.dtype, torch.float32)
    # Positions are sums of many gates: half precision would lose whole positions, under autocast too.
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, table = (tensor.to(dtype) for tensor in (q, k, v, table))
        gate_keys, bias = (None if tensor is None else tensor.to(dtype) for tensor in (gate_keys, bias))
        output = attend(q, k, v, table, gate_keys=gate_keys, scale=scale, bias=bias, dropout=dropout)
    return output.to(input_dtype)
