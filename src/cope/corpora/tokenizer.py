"""Text to token ids and back: what a tokenizer offers, and its settings.

Why: perplexities are only comparable between models that read the same text, so a tokenizer here loses nothing:
``decode(encode(text)) == text`` for every string that UTF-8 can hold (with ``byte_fallback``, the default). The separator
that follows every document cannot be produced by any text.

``bpe`` and ``unigram`` are trained on a corpus's training split (:mod:`cope.corpora.subwords`), ``gpt2`` is the published
vocabulary (:mod:`cope.corpora.gpt2`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cope.errors import UserError, check_at_least, check_choice

KINDS = ("bpe", "unigram", "gpt2")
GPT2_VOCAB_SIZE = 50257
NUM_SPECIAL = 4  # the unknown token, the separator, newline and tab: in every trained vocabulary
NUM_BYTES = 256


@dataclass(frozen=True)
class TokenizerSettings:
    """The keys of ``task.tokenizer``. The size of the vocabulary is exact, and known before any text is read.

    Raises:
        UserError: a value that cannot be.
    """

    kind: str  # bpe, unigram or gpt2
    vocab_size: int  # token ids, the separator and the 256 bytes included
    byte_fallback: bool  # spell characters that are not in the vocabulary as bytes; else they become one unknown token

    def __post_init__(self) -> None:
        check_choice("task.tokenizer.kind", self.kind, KINDS)
        if self.kind == "gpt2":
            if self.vocab_size != GPT2_VOCAB_SIZE:
                raise UserError(
                    f"task.tokenizer.vocab_size={self.vocab_size} is not GPT-2's; allowed with task.tokenizer.kind=gpt2: "
                    f"{GPT2_VOCAB_SIZE}."
                )
            if not self.byte_fallback:
                raise UserError(
                    "task.tokenizer.byte_fallback=false is not possible with task.tokenizer.kind=gpt2, whose vocabulary is "
                    "one of bytes; allowed: true."
                )
        check_at_least("task.tokenizer.vocab_size", self.vocab_size, NUM_SPECIAL + 1 + NUM_BYTES * self.byte_fallback)

    def fitting(self, num_bytes: int, num_characters: int) -> TokenizerSettings:
        """With a vocabulary that so small a text can fill: a piece for about each 40 bytes, beside the single characters."""
        most = NUM_SPECIAL + NUM_BYTES * self.byte_fallback + num_characters + 20 + num_bytes // 40
        return self if self.kind == "gpt2" else replace(self, vocab_size=min(self.vocab_size, most))


class Tokenizer(ABC):
    """What every tokenizer offers."""

    vocab_size: int
    separator: int  # the id that ends a document; no text contains it

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The token ids of ``text``, without separator.

        Raises:
            UserError: a lone surrogate, which is half a character and has no UTF-8.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``; bytes that are not UTF-8, and unknown tokens, become U+FFFD. Separators are left out."""

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """What to print for each token: ``␣`` for a space, ``↵`` for a newline, ``⇥`` for a tab, ``<0xE2>`` for a byte."""
        return [self.piece(int(token)) for token in tokens]

    @abstractmethod
    def piece(self, token: int) -> str:
        """What to print for one of them."""


def check_encodable(text: str) -> None:
    """Raise UserError if ``text`` holds a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds half a character, U+{ord(text[error.start]):04X} at character {error.start}: it cannot be encoded."
        ) from error


def printable(text: str) -> str:
    """``text`` with spaces, newlines and tabs as signs, and other characters that do not print escaped."""
    signs = {" ": "␣", "\n": "↵", "\t": "⇥"}
    return "".join(signs.get(letter) or (letter if letter.isprintable() else ascii(letter)[1:-1]) for letter in text)
