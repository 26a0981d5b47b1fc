"""GPT-2's published vocabulary of 50,257 byte-level tokens, read with tiktoken.

Why: models trained elsewhere can be compared on the same tokens. The vocabulary is downloaded once by tiktoken, into
``$TIKTOKEN_CACHE_DIR`` if that is set; without a network it must be there already.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cope.corpora.hub import first_line, is_reachable
from cope.corpora.tokenizer import GPT2_VOCAB_SIZE, Tokenizer, check_encodable, printable
from cope.errors import UserError

HOST = "https://openaipublic.blob.core.windows.net"
FILES = (f"{HOST}/gpt-2/encodings/main/vocab.bpe", f"{HOST}/gpt-2/encodings/main/encoder.json")
INSTEAD = "A vocabulary can be trained instead: task.tokenizer.kind=bpe task.tokenizer.vocab_size=4096"


class Gpt2Tokenizer(Tokenizer):
    """GPT-2's tokens; the separator is its own ``<|endoftext|>``, which no text is turned into here."""

    def __init__(self) -> None:
        try:
            import tiktoken
        except ImportError as error:
            raise UserError(
                f"task.tokenizer.kind=gpt2 needs the package tiktoken: pip install -e '.[paper]'\n{INSTEAD}"
            ) from error
        if not _is_downloaded() and not is_reachable(HOST):  # tiktoken itself would wait without limit
            raise UserError(
                f"task.tokenizer.kind=gpt2: {HOST} cannot be reached, and the vocabulary was not downloaded before. {INSTEAD}"
            )
        try:
            self._encoding = tiktoken.get_encoding("gpt2")
        except Exception as error:  # those of requests, or a ValueError for a damaged file
            raise UserError(
                f"task.tokenizer.kind=gpt2: the vocabulary cannot be loaded ({first_line(error)}). {INSTEAD}"
            ) from error
        self.vocab_size = GPT2_VOCAB_SIZE
        self.separator = self._encoding.eot_token

    def encode(self, text: str) -> list[int]:
        check_encodable(text)
        return self._encoding.encode_ordinary(text)

    def decode(self, tokens: Sequence[int]) -> str:
        kept = [int(token) for token in tokens if token != self.separator]
        return self._encoding.decode_bytes(kept).decode(errors="replace")

    def piece(self, token: int) -> str:
        if token == self.separator:
            return "<|endoftext|>"
        content = self._encoding.decode_single_token_bytes(token)
        try:
            return printable(content.decode())
        except UnicodeDecodeError:  # part of a character
            return "".join(f"<0x{byte:02X}>" for byte in content)


def _is_downloaded() -> bool:
    """Whether tiktoken finds both files where it keeps them: by the SHA-1 of their addresses."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    cache = Path(tempfile.gettempdir(), "data-gym-cache") if folder is None else Path(folder)
    return all((cache / hashlib.sha1(url.encode()).hexdigest()).is_file() for url in FILES)
