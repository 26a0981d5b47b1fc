"""Subword vocabularies learned from text with SentencePiece (arXiv 1808.06226): BPE or a unigram language model.

SentencePiece is made for prose that may be tidied up; here nothing may change. So: no normalisation, no space in front, no
spaces removed. Newline and tab are tokens of their own, never merged, and runs of spaces are tokens, so that code keeps
its shape in few tokens. Two things it cannot do by itself:

- It writes a space as U+2581, so that it cannot tell a U+2581 of the text from a space. Text is cut there, and the character
  is spelled as its three bytes.
- Its time and memory grow faster than the text, so text is cut into pieces of some 64 thousand characters, after a newline
  where there is one. A newline is never merged, so this changes no token there.

Picture: ``if x:\\n    y\\n`` becomes

    if  ␣x  :  ↵  ␣␣␣␣  y  ↵
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import sentencepiece

from cope.corpora.documents import LONGEST_LINE
from cope.corpora.tokenizer import Tokenizer, TokenizerSettings, check_encodable, printable
from cope.errors import UserError

UNKNOWN, SEPARATOR = 0, 1
SPACE = "\u2581"  # how SentencePiece writes a space
NOT_LEARNED = str.maketrans(dict.fromkeys("\0\u2581\u2585"))  # characters SentencePiece gives a meaning of its own
SEGMENT = 1 << 16
# Sums are taken thread by thread, so that the number decides the last digits, and with them the vocabulary: it is fixed.
TRAINING_THREADS = 4


def train(settings: TokenizerSettings, lines: Iterable[str], source: str) -> bytes:
    """A SentencePiece model learned from ``lines``; see :func:`cope.corpora.encoding.train_tokenizer`."""
    learned = (line.translate(NOT_LEARNED) for line in lines)
    kept = (line for line in learned if line)
    first = next(kept, None)
    if first is None:
        raise UserError(f"{source} has no text to learn task.tokenizer.kind={settings.kind} from.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chain([first], kept),
            model_writer=model,
            model_type=settings.kind,
            vocab_size=settings.vocab_size,
            byte_fallback=settings.byte_fallback,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", "\t"],
            unk_id=UNKNOWN,
            eos_id=SEPARATOR,
            bos_id=-1,
            pad_id=-1,
            max_sentence_length=4 * LONGEST_LINE,  # in bytes; anything longer would be left out
            shuffle_input_sentence=False,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(settings, source, str(error)) from error
    return model.getvalue()


def _explained(settings: TokenizerSettings, source: str, message: str) -> Exception:
    """The UserError for what SentencePiece says of a vocabulary that the text cannot fill, or that cannot hold the text."""
    asked = f"task.tokenizer.vocab_size={settings.vocab_size}"
    if too_high := re.search(r"Vocabulary size too high.*<= (\d+)", message):
        return UserError(f"{asked} is too large for {source}, which has too little text; allowed: up to {too_high[1]}.")
    if too_low := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(f"{asked} is too small for the characters of {source}; allowed: {too_low[1]} or more.")
    return RuntimeError(message)


class SubwordTokenizer(Tokenizer):
    """A trained SentencePiece model."""

    def __init__(self, model: bytes) -> None:
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = int(self._model.get_piece_size())
        self.separator = SEPARATOR
        self._bytes = [self._bytes_of(token) for token in range(self.vocab_size)]
        spelled = {content: token for token, content in enumerate(self._bytes) if self._model.is_byte(token)}
        self._space_sign = [spelled.get(bytes([byte]), UNKNOWN) for byte in SPACE.encode()]
        if UNKNOWN in self._space_sign:
            self._space_sign = [UNKNOWN]

    def _bytes_of(self, token: int) -> bytes:
        piece = str(self._model.id_to_piece(token))
        if self._model.is_control(token):
            return b""
        if self._model.is_unknown(token):
            return "\ufffd".encode()
        return bytes([int(piece[1:-1], 16)]) if self._model.is_byte(token) else piece.replace(SPACE, " ").encode()

    def encode(self, text: str) -> list[int]:
        check_encodable(text)
        tokens: list[int] = []
        for number, part in enumerate(text.split(SPACE)):
            if number:
                tokens += self._space_sign
            for segment in segments(part, SEGMENT):
                tokens += self._model.encode(segment)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join([self._bytes[token] for token in tokens]).decode(errors="replace")

    def piece(self, token: int) -> str:
        if token in (UNKNOWN, SEPARATOR) or self._model.is_byte(token):
            return str(self._model.id_to_piece(token))
        return printable(self._bytes[token].decode())


def segments(text: str, longest: int) -> Iterator[str]:
    """``text`` in parts of at most ``longest`` characters, cut after a newline where there is one."""
    start = 0
    while len(text) - start > longest:
        newline = text.rfind("\n", start, start + longest)
        stop = newline + 1 if newline >= 0 else start + longest
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]
