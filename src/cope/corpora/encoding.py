"""The second step of a preparation: a vocabulary, and documents to token ids, in several processes and then one array a split.

A document is encoded by itself, so the result does not depend on the number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from cope.corpora import gpt2, subwords
from cope.corpora.documents import DOCUMENTS_AT_ONCE
from cope.corpora.tokenizer import Tokenizer, TokenizerSettings
from cope.threads import num_cores

CHARACTERS_WORTH_A_PROCESS = 12_000_000  # starting a process takes about as long as encoding this much
ARRAYS = ("tokens", "starts", "num_words", "num_bytes")


def train_tokenizer(settings: TokenizerSettings, lines: Iterable[str], source: str) -> bytes:
    """What :func:`load_tokenizer` takes: a function of the settings and the lines alone.

    Args:
        settings: what to train.
        lines: the text to learn from, without newlines, at most ``documents.LONGEST_LINE`` characters each.
        source: the corpus, for messages.

    Raises:
        UserError: there is too little text for the vocabulary, or too much variety.
    """
    return b"" if settings.kind == "gpt2" else subwords.train(settings, lines, source)


@lru_cache(maxsize=1)
def load_tokenizer(settings: TokenizerSettings, model: bytes) -> Tokenizer:
    """The tokenizer of what :func:`train_tokenizer` returned.

    Raises:
        UserError: GPT-2's vocabulary is not at hand.
    """
    return gpt2.Gpt2Tokenizer() if settings.kind == "gpt2" else subwords.SubwordTokenizer(model)


def token_type(vocab_size: int) -> np.dtype:
    """The smallest type that holds every token id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def array_path(folder: Path, split: str, array: str) -> Path:
    """The file of one array of a split."""
    return folder / f"{split}.{array}.npy"


def encode(texts: Any, settings: TokenizerSettings, model: bytes) -> Any:
    """The ``datasets.Dataset`` of token ids and sizes that belongs to one of texts."""
    import datasets  # a second to import

    num_characters = int(np.sum(texts["num_characters"]))
    processes = min(num_cores(), len(texts), num_characters // CHARACTERS_WORTH_A_PROCESS)
    numbers = {name: datasets.Value("int64") for name in ("num_tokens", "num_words", "num_bytes")}
    tokens = datasets.List(datasets.Value(token_type(settings.vocab_size).name))
    return texts.map(
        _encode,
        batched=True,
        batch_size=DOCUMENTS_AT_ONCE,
        writer_batch_size=DOCUMENTS_AT_ONCE,
        remove_columns=texts.column_names,
        features=datasets.Features({"tokens": tokens, "seconds": datasets.Value("float64"), **numbers}),
        fn_kwargs={"settings": settings, "model": model},
        num_proc=processes if processes > 1 else None,
        new_fingerprint="tokens",
        desc="encoding",
    )


def _encode(batch: dict[str, list[str]], settings: TokenizerSettings, model: bytes) -> dict[str, list[Any]]:
    tokenizer = load_tokenizer(settings, model)
    columns: dict[str, list[Any]] = {name: [] for name in ("tokens", "seconds", "num_tokens", "num_words", "num_bytes")}
    for text in batch["text"]:
        start = time.process_time()
        tokens = np.array([*tokenizer.encode(text), tokenizer.separator], token_type(tokenizer.vocab_size))
        columns["seconds"].append(time.process_time() - start)
        columns["tokens"].append(tokens)
        columns["num_tokens"].append(len(tokens))
        columns["num_words"].append(len(text.split()))
        columns["num_bytes"].append(len(text.encode()))
    return columns


def write_arrays(encoded: Any, folder: Path, split: str, dtype: np.dtype) -> dict[str, int | float]:
    """Write the arrays of a split, the documents' tokens one after another; returns what it came to."""
    numbers = {name: np.array(encoded[name], np.int64) for name in ("num_tokens", "num_words", "num_bytes")}
    starts = np.concatenate([[0], np.cumsum(numbers["num_tokens"])])
    for name, values in (("starts", starts), ("num_words", numbers["num_words"]), ("num_bytes", numbers["num_bytes"])):
        np.save(array_path(folder, split, name), values)
    with array_path(folder, split, "tokens").open("wb") as file:
        _write_header(file, int(starts[-1]), dtype)
        for table in encoded.with_format("arrow").iter(DOCUMENTS_AT_ONCE):
            for chunk in table["tokens"].chunks:
                file.write(chunk.flatten().to_numpy().tobytes())
    totals = {name: int(values.sum()) for name, values in numbers.items()}
    return {"num_documents": len(encoded), **totals, "seconds": round(sum(encoded["seconds"]), 3)}  # of a processor, encoding


def _write_header(file: IO[bytes], length: int, dtype: np.dtype) -> None:
    """The first part of a ``.npy`` file for ``length`` numbers, which are to follow as plain bytes.

    A file made this way reports a full disk as an error; one written through a memory map kills the process.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)
