"""The second step of a preparation: shards of text to shards of tokens in several processes, then to one array a split.

A shard is encoded by itself, so the result does not depend on the number of processes, and what was encoded before an
interruption is not encoded again.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from cope.corpora.base import SPLITS
from cope.corpora.storage import write, write_array_header
from cope.corpora.text_shards import TextShards, read_shard, text_path
from cope.corpora.tokenizer import Tokenizer, TokenizerSettings, load_tokenizer

SHARDS_WORTH_A_PROCESS = 3  # starting a process takes about as long as encoding this many
ARRAYS = ("tokens", "starts", "num_words", "num_bytes")


@dataclass(frozen=True)
class SplitSizes:
    """What one split came to."""

    num_documents: int
    num_tokens: int
    num_words: int
    num_bytes: int
    seconds: float  # of processor time spent encoding


def array_path(folder: Path, split: str, array: str) -> Path:
    """The file of one array of a split."""
    return folder / f"{split}.{array}.npy"


def token_type(vocab_size: int) -> np.dtype:
    """The smallest type that holds every token id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def encode_shards(folder: Path, shards: TextShards, settings: TokenizerSettings, model: bytes) -> None:
    """Encode what is not encoded yet, in as many processes as there are cores and work for."""
    pending = [
        text_path(folder, split, number)
        for split in SPLITS
        for number in range(shards.num_shards[split])
        if not _encoded(text_path(folder, split, number)).exists()
    ]
    processes = max(1, min(len(os.sched_getaffinity(0)), len(pending) // SHARDS_WORTH_A_PROCESS))
    done = Parallel(n_jobs=processes, return_as="generator_unordered")(
        delayed(_encode_shard)(path, settings, model) for path in pending
    )
    for _ in tqdm(done, total=len(pending), desc="encoding", unit=" shards", leave=False, disable=not sys.stderr.isatty()):
        pass


def _encoded(text: Path) -> Path:
    return text.with_suffix(".npz")


@lru_cache(maxsize=1)
def _tokenizer(settings: TokenizerSettings, model: bytes) -> Tokenizer:
    """Loaded once a process."""
    return load_tokenizer(settings, model)


def _encode_shard(path: Path, settings: TokenizerSettings, model: bytes) -> None:
    tokenizer = _tokenizer(settings, model)
    start = time.process_time()
    documents = read_shard(path)
    encoded = [np.array([*tokenizer.encode(text), tokenizer.separator], token_type(tokenizer.vocab_size)) for text in documents]
    tokens = np.concatenate(encoded)
    lengths = np.array([len(document) for document in encoded], np.int64)
    num_words = np.array([len(text.split()) for text in documents], np.int64)
    num_bytes = np.array([len(text.encode()) for text in documents], np.int64)
    seconds = time.process_time() - start

    def fill(file: IO[bytes]) -> None:
        np.savez(file, tokens=tokens, lengths=lengths, num_words=num_words, num_bytes=num_bytes, seconds=np.array(seconds))

    write(_encoded(path), fill)


def join_shards(folder: Path, shards: TextShards, split: str, target: Path, vocab_size: int) -> SplitSizes:
    """Put the shards of ``split`` one after another into the arrays of ``target``; memory holds the tokens of one shard."""
    paths = [_encoded(text_path(folder, split, number)) for number in range(shards.num_shards[split])]
    lengths, words, num_bytes, seconds = [], [], [], 0.0
    for path in paths:
        with np.load(path, allow_pickle=False) as shard:
            lengths.append(shard["lengths"])
            words.append(shard["num_words"])
            num_bytes.append(shard["num_bytes"])
            seconds += float(shard["seconds"])
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    arrays = {"starts": starts, "num_words": np.concatenate(words), "num_bytes": np.concatenate(num_bytes)}
    for name, values in arrays.items():

        def fill(file: IO[bytes], values: np.ndarray = values) -> None:
            write_array_header(file, len(values), values.dtype)
            file.write(values.tobytes())

        write(array_path(target, split, name), fill)

    def fill_tokens(file: IO[bytes]) -> None:
        write_array_header(file, int(starts[-1]), token_type(vocab_size))
        for path in paths:
            with np.load(path, allow_pickle=False) as shard:
                file.write(shard["tokens"].tobytes())

    write(array_path(target, split, "tokens"), fill_tokens)
    return SplitSizes(
        len(starts) - 1, int(starts[-1]), int(arrays["num_words"].sum()), int(arrays["num_bytes"].sum()), round(seconds, 3)
    )
