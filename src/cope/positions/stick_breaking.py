"""Stick-breaking attention (Tan et al. 2024, arXiv 2410.17980): each query breaks a stick, the nearest key first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cope.positions.base import ModelShape, PositionEncoding


class StickBreaking(PositionEncoding):
    """a_ij = sigmoid(z_ij) prod_{j<k<i} (1 - sigmoid(z_ik)), z = q.k / sqrt(d), for j < i.

    From the token before the query back, each key takes its share of what the nearer ones left. What the last one leaves goes
    to nobody, so that weights may sum to less than 1, and the first token attends to nothing. Without parameters; nearness
    counts by order alone, at any length.

    Cost: plain PyTorch, several query x key tensors for a block of queries, made again in the backward pass.

    Args:
        attend_current: whether a query may also attend to its own token, first of all; the paper's does not.
    """

    def __init__(self, shape: ModelShape, *, attend_current: bool) -> None:
        super().__init__(shape)
        self.attend_current = attend_current

    def weights(self, logits: Tensor, visible: Tensor) -> Tensor:
        num_queries, num_keys = visible.shape
        taken = visible if self.attend_current else visible.tril(num_keys - num_queries - 1)
        z = logits.to(torch.promote_types(logits.dtype, torch.float32))
        left = F.logsigmoid(-z).masked_fill(~taken, 0.0)  # log(1 - sigmoid)
        left_by_nearer = left.flip(-1).cumsum(-1).flip(-1) - left
        return (F.logsigmoid(z) + left_by_nearer).exp().masked_fill(~taken, 0.0).to(logits.dtype)
