"""What each head of a language model counts: the tokens that open its gates, on average over the queries that see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from cope.model.inspection import LayerPositions

NUM_TOKENS = 5
LEAST_COUNT = 20  # occurrences of a token: the mean gate of a rarer one says little


class CountedTokens:
    """Sums the gates of every token of the vocabulary, by head, over windows of text."""

    def __init__(self, num_layers: int, num_heads: int, vocab_size: int) -> None:
        self.gate_sums = np.zeros((num_layers, num_heads, vocab_size))
        self.num_pairs = np.zeros(vocab_size)  # of a query and this key
        self.num_keys = np.zeros(vocab_size)

    def add(self, tokens: np.ndarray, layers: Iterable[LayerPositions]) -> None:
        """One window: its tokens and every layer's gates, (heads, query, key)."""
        np.add.at(self.num_pairs, tokens, np.arange(len(tokens), 0, -1))
        np.add.at(self.num_keys, tokens, 1)
        for sums, layer in zip(self.gate_sums, layers, strict=True):
            if layer.gates is not None:
                np.add.at(sums.T, tokens, layer.gates.sum(1).T)

    def described(self, pieces: Callable[[list[int]], list[str]]) -> list[dict[str, Any]]:
        """For each head its mean gate, and the tokens that open it most, as JSON; layers and heads count from 1.

        Args:
            pieces: makes readable pieces of token ids.
        """
        frequent = np.flatnonzero(self.num_keys >= LEAST_COUNT)
        heads = []
        for layer, by_head in enumerate(self.gate_sums, start=1):
            for head, sums in enumerate(by_head, start=1):
                means = sums[frequent] / self.num_pairs[frequent]
                most = np.argsort(-means, kind="stable")[:NUM_TOKENS]
                tokens = [
                    {"token": piece, "gate": float(means[index]), "count": int(self.num_keys[frequent[index]])}
                    for index, piece in zip(most, pieces(frequent[most].tolist()), strict=True)
                ]
                mean = float(sums.sum() / self.num_pairs.sum())
                heads.append({"layer": layer, "head": head, "mean_gate": mean, "tokens": tokens})
        return heads
