"""Language modelling: predicting each next token of a text corpus (arXiv 2405.18719, sections 5.4 and 5.5).

Reported are perplexity per token, which depends on the tokenizer, and per word and bits per byte of the raw text, which do
not. The separator that closes a document is predicted and counted as a token; words and bytes are the text's alone. A test
split is the same text read with another context, a multiple of the trained one, or with windows side by side.

    inputs   |  the  cat  sat          (| is the separator, after "the cat sat" of a document that ends there)
    labels  the cat  sat   |
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from cope.corpora.base import Corpus
from cope.corpora.prepared import Documents, PreparedCorpus, prepare
from cope.corpora.tokenizer import TokenizerSettings
from cope.errors import UserError, check_at_least, check_choice
from cope.seeding import numpy_stream
from cope.tasks.base import Specimen, Task
from cope.tasks.scores import LARGEST_EXPONENT, Score
from cope.tasks.synthetic import check_mapping, check_number, check_whole_number
from cope.tasks.windows import Windows, scoring_windows, training_windows

log = logging.getLogger(__name__)

SPLIT_KEYS = ("context_factor", "stride")


@dataclass(kw_only=True)
class Language(Task):
    """``task=wikipedia`` and ``task=code``.

    Args:
        corpus: the text, a choice of ``configs/corpus``.
        tokenizer: what to learn from it.
        context: tokens that the model reads at once.
        stride: tokens by which a scoring window moves: a number, ``half`` (of the context) or ``context`` (side by side).
        num_validation, num_test: tokens to be scored, in whole documents chosen at random but always the same; None: all.
        max_documents: the most that are read of each split of the corpus; None: all.
        splits: test splits by name, each with ``context_factor`` and ``stride`` where they differ from the task's.
        data_dir: where the prepared corpus is kept.
    """

    headline: ClassVar[str] = "perplexity"

    corpus: Corpus
    tokenizer: TokenizerSettings
    context: int
    stride: int | str
    num_validation: int | None
    num_test: int | None
    max_documents: int | None
    splits: Mapping[str, Mapping[str, Any]]
    data_dir: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("task.context", self.context, 2)
        for key in ("num_validation", "num_test", "max_documents"):
            if getattr(self, key) is not None:
                check_at_least(f"task.{key}", getattr(self, key), 1)
        asked = self.tokenizer.vocab_size
        if tiny := self.corpus.size_of_tiny():
            self.tokenizer = self.tokenizer.fitting(*tiny)
        self.smaller_vocabulary = (
            "" if self.vocab_size == asked else f"a vocabulary of {self.vocab_size} tokens instead of {asked}"
        )
        self.views = self._views()
        self._windows: dict[str, Windows] = {}

    def _views(self) -> dict[str, tuple[int, int]]:
        """(context, stride) of each split; ``validation`` and ``test`` are always there."""
        table = check_mapping("task.splits", self.splits)
        views = {"validation": (self.context, _tokens("task.stride", self.stride, self.context))}
        for split, changes in ({"test": {}} | table).items():
            where = f"task.splits.{split}"
            if split in ("train", "validation"):
                raise UserError(f"{where}: the name {split!r} is taken; choose another, such as test_{split}.")
            settings = {"context_factor": 1.0, "stride": self.stride} | check_mapping(where, changes, SPLIT_KEYS)
            check_number(f"{where}.context_factor", settings["context_factor"], 1 / self.context, 1e6)
            context = round(self.context * settings["context_factor"])
            views[split] = (context, _tokens(f"{where}.stride", settings["stride"], context))
        return views

    @cached_property
    def prepared(self) -> PreparedCorpus:
        """The corpus as tokens; made on first use, which may take minutes."""
        if self.smaller_vocabulary:
            log.info("corpus %s has little text: %s (task.tokenizer.vocab_size).", self.corpus.name, self.smaller_vocabulary)
        return prepare(self.corpus, self.tokenizer, self.data_dir, self.max_documents)

    @property
    def fingerprint(self) -> str:
        return self.prepared.fingerprint

    @property
    def separator(self) -> int:
        return self.prepared.tokenizer.separator

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return tuple(self.prepared.tokenizer.pieces(range(self.vocab_size)))

    def encode(self, text: str) -> list[int]:
        return self.prepared.tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.prepared.tokenizer.decode(tokens)

    @property
    def test_splits(self) -> tuple[str, ...]:
        return tuple(split for split in self.views if split != "validation")

    def context_of(self, split: str) -> int:
        return self.context if split == "train" else self.views[split][0]

    def training_examples(self, seed: int, epoch: int) -> Windows:
        stream = self.prepared.train.tokens
        if len(stream) < 2 * self.context:
            raise UserError(
                f"task.context={self.context} needs a training split of at least {2 * self.context} tokens; "
                f"corpus={self.corpus.name} has {len(stream)}. Take a smaller context or a larger corpus."
            )
        offset = int(numpy_stream(seed, "language/offset", epoch).integers(self.context))
        return training_windows(stream, self.context, offset, self.prepared.tokenizer.separator)

    def evaluation_examples(self, split: str) -> Windows:
        check_choice("evaluation split", split, self.views)
        if split not in self._windows:
            documents, chosen = self._chosen(split)
            spans = [(int(documents.starts[index]), int(documents.starts[index + 1])) for index in chosen]
            self._windows[split] = scoring_windows(
                documents.tokens, spans, *self.views[split], self.prepared.tokenizer.separator
            )
        return self._windows[split]

    @property
    def watched_splits(self) -> tuple[str, ...]:
        """Longer contexts."""
        return tuple(split for split, (context, _) in self.views.items() if context > self.context)

    def watched_examples(self, split: str, num: int) -> Windows:
        """Windows of such a context in the *validation* documents, evenly spread: the test documents are for the end."""
        documents, chosen = self._chosen("validation")
        spans = [(int(documents.starts[index]), int(documents.starts[index + 1])) for index in chosen]
        windows = scoring_windows(documents.tokens, spans, *self.views[split], self.prepared.tokenizer.separator)
        return windows.some(num)

    def _chosen(self, split: str) -> tuple[Documents, np.ndarray]:
        """The part of the corpus that ``split`` reads, and the documents of it that are scored."""
        part = "validation" if split == "validation" else "test"
        documents: Documents = getattr(self.prepared, part)
        order = numpy_stream(0, f"language/{part}").permutation(len(documents.num_words))
        limit = self.num_validation if part == "validation" else self.num_test
        if limit is not None:
            taken = np.diff(documents.starts)[order].cumsum()
            order = order[: int(np.searchsorted(taken, limit)) + 1]
        return documents, np.sort(order)

    def metrics(self, split: str, score: Score) -> dict[str, Any]:
        documents, chosen = self._chosen(split)
        num_words, num_bytes = int(documents.num_words[chosen].sum()), int(documents.num_bytes[chosen].sum())
        nats = score.loss * score.token_count
        return {
            "perplexity": score.perplexity,
            "word_perplexity": math.exp(min(nats / max(1, num_words), LARGEST_EXPONENT)),
            "bits_per_byte": nats / math.log(2) / max(1, num_bytes),
            "context": self.views[split][0],
            "stride": self.views[split][1],
            "num_documents": len(chosen),
            "num_words": num_words,
            "num_bytes": num_bytes,
        }

    def specimen(self, num_tokens: int) -> Specimen:
        """The beginning of the first document of the test split, with the separator before it."""
        documents, tokenizer = self.prepared.test, self.prepared.tokenizer
        tokens = np.append(tokenizer.separator, documents.tokens[: min(num_tokens - 1, documents.starts[1])].astype(np.int64))
        return Specimen(tokens, len(tokens) - 2, tuple(tokenizer.pieces(tokens.tolist())))


def _tokens(key: str, stride: object, context: int) -> int:
    """``stride`` in tokens, for windows of ``context``."""
    if isinstance(stride, str):
        if stride not in ("half", "context"):
            raise UserError(f"{key}={stride} is not known; allowed: half, context, or a number of tokens from 1 to {context}.")
        return context if stride == "context" else max(1, context // 2)
    check_whole_number(key, stride, 1, context)
    assert isinstance(stride, int)
    return stride
