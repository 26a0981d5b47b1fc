"""What the heads of a model do on one sequence, as arrays: gates, positions, and what they attend to by position alone.

Attention by position alone (arXiv 2405.18719, Figures 4 and 6) is the softmax, over the keys up to the query, of what the
encoding adds to the logits, without the product q.k: for CoPE of q_i . e[p_ij], for relative positions of q_i . e[i - j].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cope.errors import UserError
from cope.kernels.reference import causal_mask
from cope.meter import PositionUse, position_use
from cope.model.transformer import Layer, Transformer
from cope.positions.base import QUERIES_PER_BLOCK, Heads
from cope.positions.contextual import Contextual


class LayerPositions(NamedTuple):
    """One layer's arrays, each (heads, query, key) float32 and 0 for keys after the query; None for what there is not."""

    gates: np.ndarray | None
    positions: np.ndarray | None
    attention: np.ndarray | None  # by position alone: each query's sums to 1


@torch.no_grad()
def gates_and_positions(model: Transformer, tokens: Tensor) -> dict[str, np.ndarray] | None:
    """Gates and positions of every layer and head.

    Args:
        tokens: (time,) ids.

    Returns:
        ``gates`` and ``positions``, both (layers, heads, query, key) float32; None if the encoding has no gates.
    """
    layers = list(positions_by_layer(model, tokens))
    if layers[0].gates is None:
        return None
    return {name: np.stack([getattr(layer, name) for layer in layers]) for name in ("gates", "positions")}


@torch.no_grad()
def positions_by_layer(model: Transformer, tokens: Tensor) -> Iterator[LayerPositions]:
    """Gates, positions and attention by position alone, a layer at a time, since those of all layers together may be large.

    Gates and positions are None for an encoding without gates, attention for one that adds nothing to the logits.

    Args:
        tokens: (time,) ids.

    Raises:
        UserError: more tokens than the encoding has positions for.
    """
    for heads in _heads_by_layer(model, tokens):
        yield _layer_positions(model, heads)


@torch.no_grad()
def position_use_by_layer(model: Transformer, tokens: Tensor) -> list[PositionUse]:
    """How much each layer's attention uses its table of counted positions.

    Args:
        tokens: (batch, time) ids.

    Raises:
        UserError: the encoding has no such table.
    """
    encoding = model.encoding
    if not isinstance(encoding, Contextual):
        raise UserError(
            f"{type(encoding).__name__} has no table of counted positions; allowed: cope and its relatives with one."
        )
    return [
        position_use(heads.q, heads.k, encoding.table(heads.layer), gate_keys=encoding.gate_keys(heads), scale=encoding.scale)
        for heads in _heads_by_layer(model, tokens)
    ]


def _heads_by_layer(model: Transformer, tokens: Tensor) -> Iterator[Heads]:
    model.eval()
    x = model.encoding.embed(model.embedding(tokens if tokens.dim() == 2 else tokens[None]), 0)
    for layer in model.layers:
        assert isinstance(layer, Layer)
        yield layer.attention.heads(layer.attention_input(x), model.encoding)
        x = layer(x, model.encoding, 0, None)


def _layer_positions(model: Transformer, heads: Heads) -> LayerPositions:
    num_tokens = heads.q.shape[-2]
    blocks = [
        _block(model, heads.block(start, min(start + QUERIES_PER_BLOCK, num_tokens)), num_tokens)
        for start in range(0, num_tokens, QUERIES_PER_BLOCK)
    ]
    return LayerPositions(*(_joined(list(parts)) for parts in zip(*blocks, strict=True)))


def _block(model: Transformer, heads: Heads, num_tokens: int) -> tuple[np.ndarray | None, ...]:
    """Gates, positions and attention of some queries, with zeros for the keys after the last of them."""
    found = model.encoding.gates_and_positions(heads)
    gates, positions = (None, None) if found is None else found
    # ``bias`` may look at the logits, so it gets those that it gets when the model attends.
    logits = heads.q @ heads.k.transpose(-1, -2) / math.sqrt(heads.q.shape[-1])
    bias = model.encoding.bias(heads, logits)
    attention = None
    if bias is not None:
        visible = causal_mask(logits.shape[-2], logits.shape[-1], logits.device)
        attention = bias.expand_as(logits).float().masked_fill(~visible, -math.inf).softmax(-1)
    return tuple(
        None if part is None else np.pad(part[0].float().cpu().numpy(), ((0, 0), (0, 0), (0, num_tokens - part.shape[-1])))
        for part in (gates, positions, attention)
    )


def _joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present, axis=1) if present else None
