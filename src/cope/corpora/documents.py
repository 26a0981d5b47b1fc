"""The first step of a preparation: a corpus read once, into arrow files, and its duplicates left out.

Why arrow files of ``datasets``: a corpus of any size passes through memory a few documents at a time, the vocabulary is learned
from the same text that is encoded afterwards, several processes can encode at once, and a preparation that was interrupted
need not read again a split that it had read to the end.

Duplicates are exact copies. Within a split the first one is kept. A text of the test split is left out of validation and
training, one of validation is left out of training: what is scored stays as it was published, and was never trained on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cope.corpora.base import SPLITS, Corpus, LeftOut
from cope.errors import UserError

DOCUMENTS_AT_ONCE = 64
LONGEST_LINE = 1024  # characters of a line given to the learning of a vocabulary
# A vocabulary learned from this much text hardly changes with more; it takes a minute.
SAMPLE_CHARACTERS = 64_000_000


@dataclass(frozen=True)
class Texts:
    """What was read."""

    by_split: dict[str, Any]  # each a ``datasets.Dataset`` with the columns ``text`` and ``num_characters``
    left_out: dict[str, int]  # reason -> documents
    digest: str  # of every document, in order


def read_texts(corpus: Corpus, folder: Path, max_documents: int | None = None) -> Texts:
    """Read ``corpus``, or the first ``max_documents`` of each of its splits, into ``folder``.

    Raises:
        UserError: a split is empty, a text is not valid Unicode, or the corpus changed while it was read.
    """
    import datasets  # a second to import

    features = datasets.Features(
        {
            "text": datasets.Value("large_string"),
            "digest": datasets.Value("binary"),
            "num_characters": datasets.Value("int64"),
            "left_out": datasets.Value("string"),
        }
    )
    before = corpus.identity()
    texts: dict[str, Any] = {}
    left_out: Counter[str] = Counter()
    seen: dict[str, set[bytes]] = {}
    digests: dict[str, str] = {}
    for split in ("test", "validation", "train"):
        try:
            rows = datasets.Dataset.from_generator(
                _rows,
                features=features,
                cache_dir=str(folder),
                gen_kwargs={"corpus": corpus, "split": split, "max_documents": max_documents},
                fingerprint=split,
                split=datasets.NamedSplit(split),  # which its progress bar names
                writer_batch_size=DOCUMENTS_AT_ONCE,
            )
        except ValueError:  # also the library's word for no rows
            if next(_rows(corpus, split, max_documents), None) is None:
                raise _empty(corpus, split, Counter()) from None
            raise
        kept, reasons = _without_duplicates(rows, split, seen)
        left_out += reasons
        if not kept:
            raise _empty(corpus, split, reasons)
        digests[split] = hashlib.sha256(b"".join(kept)).hexdigest()
        texts[split] = rows.select(list(kept.values())).select_columns(["text", "num_characters"])
        seen[split] = set(kept)
    if corpus.identity() != before:
        raise UserError(f"corpus={corpus.name} changed while it was read. Run the same command again.")
    digest = hashlib.sha256("".join(digests[split] for split in SPLITS).encode()).hexdigest()
    return Texts(texts, dict(left_out), digest)


def _rows(corpus: Corpus, split: str, max_documents: int | None) -> Iterator[dict[str, Any]]:
    number = 0
    for text in corpus.documents(split):
        if isinstance(text, LeftOut):
            yield {"text": "", "digest": b"", "num_characters": 0, "left_out": text.reason}
            continue
        blank = not text or text.isspace()
        yield {
            "text": text,
            "digest": _digest(corpus, split, number, text),
            "num_characters": len(text),
            "left_out": f"without text, in {split}" if blank else None,
        }
        number += 1
        if number == max_documents:
            return


def _digest(corpus: Corpus, split: str, number: int, text: str) -> bytes:
    try:
        return hashlib.blake2b(text.encode(), digest_size=16).digest()
    except UnicodeEncodeError as error:
        raise UserError(
            f"corpus={corpus.name}: document {number} of {split} holds half a character, U+{ord(text[error.start]):04X} at "
            f"character {error.start}, and cannot be encoded. Mend or remove it."
        ) from error


def _without_duplicates(rows: Any, split: str, seen: dict[str, set[bytes]]) -> tuple[dict[bytes, int], Counter[str]]:
    """The documents to keep, digest -> row in order, and how many are left out for which reason."""
    kept: dict[bytes, int] = {}
    reasons: Counter[str] = Counter()
    for row, (digest, reason) in enumerate(zip(rows["digest"], rows["left_out"], strict=True)):
        if reason is None:
            reason = next((f"in {split}, but also in {other}" for other in seen if digest in seen[other]), None)
        if reason is None and digest in kept:
            reason = f"duplicates within {split}"
        if reason is None:
            kept[digest] = row
        else:
            reasons[reason] += 1
    return kept, reasons


def _empty(corpus: Corpus, split: str, reasons: Counter[str]) -> UserError:
    why = f" All that it had were left out: {', '.join(f'{number:,} {reason}' for reason, number in reasons.items())}."
    way_out = corpus.if_empty.format(split=split)
    return UserError(f"corpus={corpus.name}: the split {split!r} has no documents.{why if reasons else ''} {way_out}")


def sample_lines(texts: Any) -> Iterator[str]:
    """Lines of the training split to learn a vocabulary from: all, or as many as SAMPLE_CHARACTERS allows, evenly spread."""
    share = min(1.0, SAMPLE_CHARACTERS / int(np.sum(texts["num_characters"])))
    passed = taken = 0
    for batch in texts.iter(DOCUMENTS_AT_ONCE):
        for text in batch["text"]:
            for line in text.split("\n"):
                for start in range(0, len(line), LONGEST_LINE):
                    part = line[start : start + LONGEST_LINE]
                    passed += len(part)
                    if taken <= passed * share:
                        taken += len(part)
                        yield part
