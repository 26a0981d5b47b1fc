"""What the gates of a CoPE model do on one sequence, as arrays."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cope.model.transformer import Layer, Transformer


@torch.no_grad()
def gates_and_positions(model: Transformer, tokens: Tensor) -> dict[str, np.ndarray] | None:
    """Gates and positions of every layer and head.

    Args:
        tokens: (time,) ids.

    Returns:
        ``gates`` and ``positions``, both (layers, heads, query, key) float32; None if the encoding has no gates.
    """
    model.eval()
    x = model.encoding.embed(model.embedding(tokens[None]), 0)
    gates, positions = [], []
    for layer in model.layers:
        assert isinstance(layer, Layer)
        heads = layer.attention.heads(layer.attention_input(x), model.encoding)
        found = model.encoding.gates_and_positions(heads)
        if found is None:
            return None
        gates.append(found[0][0])
        positions.append(found[1][0])
        x = layer(x, model.encoding, 0, None)
    return {"gates": torch.stack(gates).cpu().float().numpy(), "positions": torch.stack(positions).cpu().float().numpy()}
