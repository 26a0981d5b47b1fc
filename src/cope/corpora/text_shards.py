"""The first step of a preparation: a corpus read once, without its duplicates, into files of some megabytes.

Why files: a corpus of any size passes through memory a shard at a time, the vocabulary is learned from the same text that is
encoded afterwards, several processes can encode at once, and a preparation that was interrupted need not read again.

Duplicates are exact copies. Within a split the first one is kept. A text of the test split is left out of validation and
training, one of validation is left out of training: what is scored stays as it was published, and was never trained on.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from cope.corpora.base import SPLITS, Corpus
from cope.corpora.storage import write_bytes
from cope.corpora.subwords import LONGEST_LINE
from cope.errors import UserError

SHARD_CHARACTERS = 4_000_000
# A vocabulary learned from this much text hardly changes with more; it takes a minute.
SAMPLE_CHARACTERS = 64_000_000
INDEX = "texts.json"


@dataclass(frozen=True)
class TextShards:
    """What was read: how many shards a split has, and what there is to say of them."""

    num_shards: dict[str, int]
    num_characters: dict[str, int]
    left_out: dict[str, int]  # reason -> documents
    digest: str  # of every document, in order

    @classmethod
    def read(cls, folder: Path) -> TextShards | None:
        """What an earlier preparation read into ``folder``; None if it did not come to the end."""
        try:
            return cls(**json.loads((folder / INDEX).read_text()))
        except FileNotFoundError:
            return None


def text_path(folder: Path, split: str, shard: int) -> Path:
    """The file of one shard: a JSON list of documents."""
    return folder / f"{split}-{shard:05d}.json"


def read_shard(path: Path) -> list[str]:
    """The documents of one shard."""
    documents: list[str] = json.loads(path.read_bytes())
    return documents


def write_text_shards(corpus: Corpus, folder: Path, max_documents: int | None = None) -> TextShards:
    """Read ``corpus``, or the first ``max_documents`` of each of its splits, into ``folder``.

    Raises:
        UserError: a split is empty, a text is not valid Unicode, or the corpus changed while it was read.
        CannotWrite: see :mod:`cope.corpora.storage`.
    """
    before = corpus.identity()
    corpus.left_out.clear()
    left_out: Counter[str] = Counter()
    seen: dict[str, set[bytes]] = {}
    digests, num_shards, num_characters = {}, {}, {}
    for split in ("test", "validation", "train"):
        total = hashlib.sha256()
        shard: list[str] = []
        num_shards[split] = num_characters[split] = waiting = 0
        own: set[bytes] = set()
        documents = islice(corpus.documents(split), max_documents)
        for number, text in enumerate(_with_progress(documents, f"{corpus.name}: {split}")):
            digest = _digest(corpus, split, number, text)
            if reason := _reason_to_leave_out(text, digest, split, own, seen):
                left_out[reason] += 1
                continue
            own.add(digest)
            total.update(digest)
            shard.append(text)
            waiting += len(text)
            num_characters[split] += len(text)
            if waiting >= SHARD_CHARACTERS:
                _write_shard(folder, split, num_shards[split], shard)
                num_shards[split] += 1
                shard, waiting = [], 0
        if shard:
            _write_shard(folder, split, num_shards[split], shard)
            num_shards[split] += 1
        if not own:
            way_out = corpus.if_empty.format(split=split)
            raise UserError(f"corpus={corpus.name}: the split {split!r} has no documents. {way_out}")
        seen[split], digests[split] = own, total.hexdigest()
    if corpus.identity() != before:
        raise UserError(f"corpus={corpus.name} changed while it was read. Run the same command again.")
    digest_of_all = hashlib.sha256("".join(digests[split] for split in SPLITS).encode()).hexdigest()
    shards = TextShards(num_shards, num_characters, dict(left_out + corpus.left_out), digest_of_all)
    write_bytes(folder / INDEX, json.dumps(asdict(shards)).encode())
    return shards


def _digest(corpus: Corpus, split: str, number: int, text: str) -> bytes:
    try:
        return hashlib.blake2b(text.encode(), digest_size=16).digest()
    except UnicodeEncodeError as error:
        raise UserError(
            f"corpus={corpus.name}: document {number} of {split} holds half a character, U+{ord(text[error.start]):04X} at "
            f"character {error.start}, and cannot be encoded. Mend or remove it."
        ) from error


def _reason_to_leave_out(text: str, digest: bytes, split: str, own: set[bytes], seen: dict[str, set[bytes]]) -> str:
    if not text or text.isspace():
        return f"without text, in {split}"
    if digest in own:
        return f"duplicates within {split}"
    return next((f"in {split}, but also in {other}" for other, digests in seen.items() if digest in digests), "")


def _with_progress(documents: Iterator[str], what: str) -> Iterator[str]:
    return iter(tqdm(documents, desc=what, unit=" documents", leave=False, disable=not sys.stderr.isatty()))


def _write_shard(folder: Path, split: str, number: int, documents: list[str]) -> None:
    write_bytes(text_path(folder, split, number), json.dumps(documents, ensure_ascii=False).encode())


def sample_lines(folder: Path, shards: TextShards) -> Iterator[str]:
    """Lines of the training split to learn a vocabulary from: all, or as many as SAMPLE_CHARACTERS allows, evenly spread."""
    share = min(1.0, SAMPLE_CHARACTERS / shards.num_characters["train"])
    passed = taken = 0
    for number in range(shards.num_shards["train"]):
        for text in read_shard(text_path(folder, "train", number)):
            for line in text.split("\n"):
                for start in range(0, len(line), LONGEST_LINE):
                    part = line[start : start + LONGEST_LINE]
                    passed += len(part)
                    if taken <= passed * share:
                        taken += len(part)
                        yield part
