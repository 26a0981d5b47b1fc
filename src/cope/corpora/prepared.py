"""A corpus as memory-mapped token ids, prepared once and read in milliseconds from then on.

Why: text is read, cleaned and encoded in seconds to hours; a training run only ever needs the ids. They are kept in
``<data_dir>/corpora/<corpus name>/<hash>/``, where the hash covers everything that determines them: the corpus's identity, the
tokenizer's settings and the version of this code. Several runs that start at once prepare once: the others wait.

    manifest.json       written last: sizes, settings, and the length of every file
    tokenizer.model     what SentencePiece learned from the training split
    train.tokens.npy    the ids of all documents one after another, each document followed by the separator
    train.starts.npy    where each document begins; train.num_words.npy and train.num_bytes.npy: its size as text

and likewise for validation and test. The folder is made under another name (``<hash>.partial``) and moved into place when it is
complete. An interrupted preparation goes on there, with the splits that were read or encoded to the end; one that found the
disk full leaves nothing.

Picture: the documents ``ab`` and ``c`` become

    tokens    a  b  </s>  c  </s>
    starts    0           3       5
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cope.corpora.base import SPLITS, Corpus
from cope.corpora.documents import read_texts, sample_lines
from cope.corpora.encoding import ARRAYS, array_path, encode, load_tokenizer, token_type, train_tokenizer, write_arrays
from cope.corpora.tokenizer import Tokenizer, TokenizerSettings
from cope.errors import UserError, counted
from cope.files import digest_of, lock, user_path

log = logging.getLogger(__name__)

VERSION = 1  # of the preparation: another one is another folder
MANIFEST, MODEL = "manifest.json", "tokenizer.model"


@dataclass(frozen=True)
class Documents:
    """One split, memory-mapped and read-only. Document ``i`` is ``tokens[starts[i]:starts[i + 1]]``."""

    tokens: np.ndarray  # (num_tokens,) uint16 or uint32; the last token of every document is the separator
    starts: np.ndarray  # (num_documents + 1,) int64
    num_words: np.ndarray  # (num_documents,) int64: words of the text, as whitespace parts them
    num_bytes: np.ndarray  # (num_documents,) int64: bytes of the text in UTF-8

    def __len__(self) -> int:
        return len(self.num_words)


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus's three splits, and the tokenizer that made them."""

    tokenizer: Tokenizer
    train: Documents
    validation: Documents
    test: Documents
    fingerprint: str  # 16 hexadecimal digits for the documents and the tokenizer, by content
    folder: Path  # where it is kept


def prepare(
    corpus: Corpus, tokenizer: TokenizerSettings, data_dir: str | Path, max_documents: int | None = None
) -> PreparedCorpus:
    """``corpus`` in tokens: what is stored in ``data_dir``, and on the first call what is made and stored now.

    Args:
        max_documents: the most that are taken of each split, its first ones; None takes all.

    Raises:
        UserError: the text cannot be had, a split is empty, the vocabulary does not fit the text, or ``data_dir`` cannot be
            written.
    """
    key = {"version": VERSION, "corpus": corpus.name, "identity": corpus.identity(), "tokenizer": asdict(tokenizer)}
    if max_documents is not None:
        key["max_documents"] = max_documents
    folder = user_path("data_dir", data_dir) / "corpora" / corpus.name / digest_of(key, 20)
    manifest, _ = _complete(folder)
    if manifest is None:
        with _alone(folder):
            manifest, damage = _complete(folder)  # perhaps made while we waited
            if manifest is None:
                if damage:
                    log.warning("Cannot use %s (%s): preparing it again.", folder, damage)
                log.info(
                    "preparing corpus %s: reading, learning a vocabulary of %s tokens, encoding",
                    corpus.name,
                    f"{tokenizer.vocab_size:,}",
                )
                manifest = _make(corpus, tokenizer, max_documents, key, folder)
    log.info(_summary(corpus, manifest))
    return PreparedCorpus(
        tokenizer=load_tokenizer(tokenizer, (folder / MODEL).read_bytes()),
        train=_documents(folder, "train"),
        validation=_documents(folder, "validation"),
        test=_documents(folder, "test"),
        fingerprint=manifest["fingerprint"],
        folder=folder,
    )


def _complete(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The manifest, if every file that it names has its length; else None, and what is wrong with what is there."""
    if not folder.exists():
        return None, ""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        for name, size in manifest["file_sizes"].items():
            found = (folder / name).stat().st_size
            if found != size:
                raise ValueError(f"{name} has {found} bytes instead of {size}")
        if hashlib.sha256((folder / MODEL).read_bytes()).hexdigest() != manifest["model_sha256"]:
            raise ValueError(f"{MODEL} is not the one that made the tokens")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, str(error) or type(error).__name__
    return manifest, ""


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from preparing ``folder``; waits for one that is at it, and says so."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        held = lock(path, wait=f"Another process is preparing {folder}: waiting for it.")
    except OSError as error:
        raise _cannot_write(folder.parent, error) from error
    try:
        yield
    finally:
        held.release()


def _make(
    corpus: Corpus, settings: TokenizerSettings, max_documents: int | None, key: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Prepare ``folder``, going on where an interrupted preparation stopped; returns the manifest."""
    import datasets  # a second to import
    import pyarrow

    if settings.kind == "gpt2":
        load_tokenizer(settings, b"")  # if it is missing, better said before a corpus is read
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        manifest = _fill(partial, corpus, settings, max_documents, key)
        if folder.exists():
            shutil.rmtree(folder)  # damaged, or we would not be here
        (partial / "complete").rename(folder)
    except datasets.exceptions.DatasetGenerationError as error:  # of reading the corpus
        cause = error.__cause__ or error
        if isinstance(cause, (OSError, pyarrow.ArrowException)):
            shutil.rmtree(partial, ignore_errors=True)
            raise _cannot_write(partial, cause) from error
        raise cause from None
    except (OSError, pyarrow.ArrowException) as error:
        shutil.rmtree(partial, ignore_errors=True)  # gives back the room
        raise _cannot_write(partial, error) from error
    shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _fill(
    partial: Path, corpus: Corpus, settings: TokenizerSettings, max_documents: int | None, key: dict[str, Any]
) -> dict[str, Any]:
    """Read, learn, encode; all that is kept goes to ``partial/complete``, the manifest last."""
    texts = read_texts(corpus, partial / "texts", max_documents)
    complete = partial / "complete"
    complete.mkdir(exist_ok=True)
    model = train_tokenizer(settings, sample_lines(texts.by_split["train"]), f"corpus={corpus.name}")
    (complete / MODEL).write_bytes(model)
    dtype = token_type(settings.vocab_size)
    sizes = {split: write_arrays(encode(texts.by_split[split], settings, model), complete, split, dtype) for split in SPLITS}
    files = [complete / MODEL, *(array_path(complete, split, array) for split in SPLITS for array in ARRAYS)]
    model_digest = hashlib.sha256(model).hexdigest()
    manifest = key | {
        "fingerprint": digest_of([texts.digest, model_digest, settings.kind, VERSION], 16),
        "splits": sizes,
        "left_out": texts.left_out,
        "model_sha256": model_digest,
        "file_sizes": {path.name: path.stat().st_size for path in files},
    }
    (complete / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _cannot_write(path: Path, error: BaseException) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(
        f"data_dir: cannot write {path} ({reason}). Make room or get write permission there, or choose another folder: "
        "data_dir=/another/folder"
    )


def _documents(folder: Path, split: str) -> Documents:
    arrays = {array: np.load(array_path(folder, split, array), mmap_mode="r", allow_pickle=False) for array in ARRAYS}
    return Documents(**arrays)


def _summary(corpus: Corpus, manifest: dict[str, Any]) -> str:
    """Sizes, what was left out, and the licence, as lines to print."""
    lines = [f"corpus {corpus.name}, fingerprint {manifest['fingerprint']}. Licence: {corpus.license}"]
    lines += [f"  {corpus.note}"] if corpus.note else []
    for split in SPLITS:
        sizes = manifest["splits"][split]
        lines.append(
            f"  {split}: {counted(sizes['num_documents'], 'document')}, {sizes['num_tokens']:,} tokens, "
            f"{sizes['num_words']:,} words, {sizes['num_bytes']:,} bytes"
        )
    lines += [f"  left out: {number:,} {reason}" for reason, number in sorted(manifest["left_out"].items())]
    return "\n".join(lines)
