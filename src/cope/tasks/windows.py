"""Windows on a stream of tokens: what a language model trains on and is scored on.

Training cuts the stream, documents joined by a separator, into windows of ``context`` tokens and the one after them. Scoring
never leaves a document: the first window begins at the separator before it and scores ``context`` tokens; each further one
moves by ``stride`` and scores the ``stride`` tokens that are new, so that each token is scored once and, but for a document's
beginning, sees at least ``context - stride`` tokens. Picture, with context 4 and stride 2, over a document of 7 tokens

    | a b c d e f g |        the separators before and after it; the last one is predicted too
    | a b c  -> a b c d      scores a b c d
      b c d e -> e f         (inputs b c d e) scores e f after c d
          d e f g -> g |     scores g |
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from cope.tasks.base import IGNORE


class Windows:
    """Windows of a stream, read when a batch asks for them.

    Args:
        stream: (num_tokens,) ids, usually memory-mapped.
        starts: (num,) where each window begins in the stream; -1 is a separator before its first token.
        lengths: (num,) tokens of each window, the last of which is only predicted.
        first_scored: (num,) places in each window before which no loss is due; 1 or more.
        separator: the id that stands at -1.
    """

    num_cut = 0  # nothing is ever left out

    def __init__(
        self, stream: np.ndarray, starts: np.ndarray, lengths: np.ndarray, first_scored: np.ndarray, separator: int
    ) -> None:
        self.stream = stream
        self.starts = starts
        self.lengths = lengths
        self.first_scored = first_scored
        self.separator = separator

    def __len__(self) -> int:
        return len(self.starts)

    def some(self, num: int) -> Windows:
        """At most ``num`` of them, evenly spread."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(num, len(self))).round().astype(np.int64))
        return Windows(self.stream, self.starts[chosen], self.lengths[chosen], self.first_scored[chosen], self.separator)

    def batch(self, indices: np.ndarray, *, loss: str = "answers") -> tuple[Tensor, Tensor]:
        """``(inputs, targets)``, both (batch, time) int64, padded on the right; every scored token is an answer."""
        places_in_window = np.arange(int(self.lengths[indices].max()))
        places = self.starts[indices, None] + places_in_window
        inside = places_in_window < self.lengths[indices, None]
        tokens = self.stream[places.clip(0, len(self.stream) - 1)].astype(np.int64)
        tokens[places < 0] = self.separator
        targets = np.where(inside & (places_in_window >= self.first_scored[indices, None]), tokens, IGNORE)
        return torch.from_numpy(np.where(inside, tokens, 0)[:, :-1]), torch.from_numpy(targets[:, 1:])


def training_windows(stream: np.ndarray, context: int, offset: int, separator: int) -> Windows:
    """Windows side by side from ``offset`` (0 to ``context - 1``) on: as many of them whatever the offset."""
    num = (len(stream) - context) // context
    starts = offset + context * np.arange(num, dtype=np.int64)
    return Windows(stream, starts, np.full(num, context + 1), np.ones(num, dtype=np.int64), separator)


def scoring_windows(
    stream: np.ndarray, documents: Iterable[tuple[int, int]], context: int, stride: int, separator: int
) -> Windows:
    """Windows that score every token of each document once.

    Args:
        documents: where each begins in the stream, and where the separator that closes it ends.
        context: tokens that the model reads at once.
        stride: 1 to ``context``; ``context`` makes windows side by side. A document's last window ends with it, and reads back
            as far as the context reaches.
    """
    starts, lengths, first_scored = [], [], []
    for begin, end in documents:
        num_scored = end - begin
        ends = np.append(np.arange(min(context, num_scored), num_scored, stride), num_scored)
        window_starts = np.maximum(ends - context, 0)
        starts.append(begin - 1 + window_starts)
        lengths.append(ends - window_starts + 1)
        first_scored.append(np.append(0, ends[:-1]) + 1 - window_starts)
    return Windows(stream, np.concatenate(starts), np.concatenate(lengths), np.concatenate(first_scored), separator)
