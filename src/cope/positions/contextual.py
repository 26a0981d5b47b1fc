"""Contextual Position Encoding (CoPE; Golovneva et al. 2024, arXiv 2405.18719): positions counted by gates.

A token-based encoding numbers tokens 1, 2, 3, ... CoPE lets each query decide, key by key, what counts: a gate between 0 and 1
opens for the keys worth counting, and the position of a key is the sum of the gates from it to the query. With gates that open
for ``++`` alone, position 3 is "the third increment back", however many tokens lie between.

    g_ij = sigmoid(q_i . k_j / sqrt(d))                        Equation 3: does query i count key j?
    p_ij = g_ij + g_i,j+1 + ... + g_ii                         Equation 4: how many were counted from j to i
    a_ij = softmax_j((q_i . k_j + q_i . e[p_ij]) / sqrt(d))    Equations 5, 6: e[p] interpolated where p is not whole

The last division is the released code's; the paper's listing divides q.k alone (``scale="paper"``).

If every gate is 1, p_ij = i - j + 1: relative position is a special case.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cope.errors import check_at_least, check_between, check_choice
from cope.functional import SCALES, cope_attention
from cope.kernels.reference import contextual_positions, interpolate
from cope.positions.base import Heads, ModelShape, PositionEncoding
from cope.positions.relative import Relative
from cope.positions.rotary import Rotary


class Gated(PositionEncoding):
    """What every CoPE shares: gates, and the positions they add up to. Subclasses say what a position adds to the logits.

    Args:
        num_positions: positions are clamped to ``num_positions - 1`` (the paper's p_max); None leaves them free.
        gates: what opens a gate beside the query: ``keys`` (the paper's base model), ``separate_keys`` (a key projection of
            their own, "sep-keys") or ``values`` ("val-gates").
        gate_bias: where a number that each head of each layer learns to add to its gates' logits starts; the paper has none
            (null). Without one a gate starts half open, so that a few dozen tokens fill the table; with -3 it starts at 0.05.
    """

    def __init__(self, shape: ModelShape, *, num_positions: int | None, gates: str, gate_bias: float | None = None) -> None:
        super().__init__(shape)
        if num_positions is not None:
            check_at_least("pe.num_positions", num_positions, 1)
        check_choice("pe.gates", gates, ["keys", "separate_keys", "values"])
        self.num_positions = num_positions
        self.gates = gates
        if gate_bias is not None:
            check_between("pe.gate_bias", gate_bias, -100.0, 100.0)
        self.gate_biases = (
            None if gate_bias is None else nn.Parameter(torch.full((shape.num_layers, shape.num_heads), float(gate_bias)))
        )
        if gates == "separate_keys":
            self.gate_projections = nn.ModuleList(nn.Linear(shape.dim, shape.dim) for _ in range(shape.num_layers))

    def project(self, x: Tensor, layer: int) -> Tensor | None:
        if self.gates != "separate_keys":
            return None
        projected: Tensor = self.gate_projections[layer](x)
        return projected.unflatten(-1, (self.shape.num_heads, -1)).transpose(1, 2)

    def gate_keys(self, heads: Heads) -> Tensor | None:
        """The keys of the gates, (batch, heads, key, head_dim); None where they are attention's own."""
        return heads.v if self.gates == "values" else heads.projected

    def gate_bias(self, heads: Heads) -> Float[Tensor, " heads"] | None:
        """What is added to the gates' logits of each head; None where nothing is."""
        return None if self.gate_biases is None else self.gate_biases[heads.layer]

    def gates_and_positions(
        self, heads: Heads
    ) -> tuple[Float[Tensor, "batch heads query key"], Float[Tensor, "batch heads query key"]]:
        """Gates g_ij and positions p_ij, 0 for keys after the query."""
        gate_keys = self.gate_keys(heads)
        gate_logits = heads.q @ (heads.k if gate_keys is None else gate_keys).transpose(-1, -2)
        # In float32 under any precision: a position is a sum of many gates.
        gate_logits = gate_logits.to(torch.promote_types(gate_logits.dtype, torch.float32)) / math.sqrt(heads.q.shape[-1])
        bias = self.gate_bias(heads)
        return contextual_positions(gate_logits if bias is None else gate_logits + bias[:, None, None], self.num_positions)


class Contextual(Gated):
    """CoPE with a table of learned position vectors (``pe=cope``, ``cope_sep_keys``, ``cope_val_gates``).

    Args:
        num_positions: vectors in the table; one table serves all heads.
        scale: ``released`` divides q.e by sqrt(head_dim), as the authors' code does by default; ``paper`` does not, as in the
            paper's listing. The two are different models: say which one a result is from.
        share_layers: one table for all layers, or one a layer.
        init_std: standard deviation of the table's initial values; the paper starts from 0.
        gates: ``keys``, ``separate_keys`` or ``values``.
        gate_bias: where the gates' learned bias starts; null for none.
        backend: which implementation of :func:`cope.cope_attention` runs.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        num_positions: int,
        scale: str,
        share_layers: bool,
        init_std: float,
        gates: str,
        backend: str,
        gate_bias: float | None = None,
    ) -> None:
        super().__init__(shape, num_positions=num_positions, gates=gates, gate_bias=gate_bias)
        check_choice("pe.scale", scale, SCALES)
        check_at_least("pe.init_std", init_std, 0.0)
        self.scale = scale
        self.backend = backend
        num_tables = 1 if share_layers else shape.num_layers
        self.tables = nn.Parameter(torch.randn(num_tables, num_positions, shape.head_dim) * init_std)

    @property
    def kernel(self) -> str | None:
        return self.backend

    def table(self, layer: int) -> Float[Tensor, "num_positions head_dim"]:
        """The position vectors e[0], e[1], ... of a layer."""
        return self.tables[layer if len(self.tables) > 1 else 0]

    def relative_vectors(self, num_keys: int) -> Float[Tensor, "num_distances head_dim"] | None:
        """Vectors by distance of a further, token-based term of the logits; none here."""
        return None

    def bias(self, heads: Heads, logits: Tensor) -> Tensor:
        """q_i . e[p_ij], scaled: what attention adds for position alone."""
        _, positions = self.gates_and_positions(heads)
        z = heads.q @ self.table(heads.layer).transpose(0, 1)
        return interpolate(z / math.sqrt(heads.q.shape[-1]) if self.scale == "released" else z, positions)

    def attend(self, heads: Heads, dropout: float) -> Tensor:
        return cope_attention(
            heads.q,
            heads.k,
            heads.v,
            self.table(heads.layer),
            gate_keys=self.gate_keys(heads),
            gate_bias=self.gate_bias(heads),
            relative=self.relative_vectors(heads.k.shape[-2]),
            scale=self.scale,
            dropout=dropout,
            backend=self.backend,
        )


class ContextualRelative(Contextual):
    """CoPE and relative positions together: both terms are added to the logits (``pe=cope_relative``).

    Args:
        beyond: what the relative part does beyond the trained length, as in :class:`Relative`.
        **contextual: as in :class:`Contextual`.
    """

    def __init__(self, shape: ModelShape, *, beyond: str, **contextual: Any) -> None:
        super().__init__(shape, **contextual)
        self.relative = Relative(shape, beyond=beyond, backend=self.backend)
        self.max_tokens, self.num_untrained = self.relative.max_tokens, self.relative.num_untrained

    def relative_vectors(self, num_keys: int) -> Tensor:
        self.check_length(num_keys)
        return self.relative.vectors

    def bias(self, heads: Heads, logits: Tensor) -> Tensor:
        return super().bias(heads, logits) + self.relative.bias(heads, logits)


class ContextualRotary(Contextual):
    """CoPE over queries and keys that RoPE has turned first (``pe=cope_rope``).

    The paper does not say whether gates and q.e see the turned queries; here they do, so that the two encodings simply follow
    one another and the gates cost no second product.

    Args:
        base: as in :class:`Rotary`.
        **contextual: as in :class:`Contextual`.
    """

    def __init__(self, shape: ModelShape, *, base: float, **contextual: Any) -> None:
        super().__init__(shape, **contextual)
        self.rotary = Rotary(shape, base=base)

    def rotate(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        return self.rotary.rotate(q, k, start)
