"""From documents to tokens: what is stored, what is left out, and into which split a document goes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from listed_corpus import SETTINGS, SPLITS, Listed, arrays, folders, made_up, texts_of

from cope.corpora import documents, encoding, prepared
from cope.corpora.base import HashedCorpus, LeftOut, split_by_hash
from cope.corpora.documents import sample_lines
from cope.corpora.encoding import token_type
from cope.corpora.prepared import prepare
from cope.corpora.tokenizer import TokenizerSettings
from cope.errors import UserError


def test_every_document_is_there_with_its_separator_and_sizes(tmp_path: Path) -> None:
    listed = Listed(tmp_path)
    corpus = prepare(listed, SETTINGS, tmp_path)
    for split in SPLITS:
        documents = getattr(corpus, split)
        assert texts_of(corpus, split) == listed.texts[split]
        expected = [[*corpus.tokenizer.encode(text), corpus.tokenizer.separator] for text in listed.texts[split]]
        assert documents.tokens.tolist() == [token for tokens in expected for token in tokens]
        assert np.diff(documents.starts).tolist() == [len(tokens) for tokens in expected]
        assert documents.num_words.tolist() == [len(text.split()) for text in listed.texts[split]]
        assert documents.num_bytes.tolist() == [len(text.encode()) for text in listed.texts[split]]


def test_arrays_are_memory_mapped_read_only_and_small(tmp_path: Path) -> None:
    tokens = prepare(Listed(tmp_path), SETTINGS, tmp_path).train.tokens
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1
    assert token_type(1 << 16) == np.uint16 and token_type((1 << 16) + 1) == np.uint32


def test_the_vocabulary_is_learned_from_the_training_split_alone(tmp_path: Path) -> None:
    texts = {"train": made_up("train", 40), "validation": ["zygote " * 99], "test": ["zebra " * 99]}
    tokenizer = prepare(Listed(tmp_path, texts), SETTINGS, tmp_path).tokenizer
    assert len(tokenizer.encode("dog")) < 3 and len(tokenizer.encode("zygote")) >= 6


def test_a_prepared_corpus_is_not_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed = Listed(tmp_path)
    first = prepare(listed, SETTINGS, tmp_path)
    assert listed.num_readings == 3
    with caplog.at_level(logging.INFO):
        second = prepare(listed, SETTINGS, tmp_path)
    assert listed.num_readings == 3
    assert arrays(first) == arrays(second) and first.fingerprint == second.fingerprint
    assert len(caplog.records) == 1  # once, with sizes and licence
    assert "train: 40 documents" in caplog.text and "Licence: none" in caplog.text
    assert folders(tmp_path) == [second.folder.name]  # nothing half made is left


def test_a_prepared_corpus_can_be_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(Listed(tmp_path), SETTINGS, tmp_path)
    monkeypatch.setattr(prepared, "lock", None)
    prepare(Listed(tmp_path), SETTINGS, tmp_path)


def test_other_settings_are_another_folder(tmp_path: Path) -> None:
    kept = [
        prepare(Listed(tmp_path), SETTINGS, tmp_path),
        prepare(Listed(tmp_path), TokenizerSettings("bpe", 301, True), tmp_path),
        prepare(Listed(tmp_path, version=2), SETTINGS, tmp_path),
    ]
    assert len({corpus.folder for corpus in kept}) == 3


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first = prepare(Listed(tmp_path), SETTINGS, tmp_path)
    touched = prepare(Listed(tmp_path, changed_at=1), SETTINGS, tmp_path / "elsewhere")
    assert touched.fingerprint == first.fingerprint and len(first.fingerprint) == 16
    other_vocabulary = prepare(Listed(tmp_path), TokenizerSettings("bpe", 301, True), tmp_path)
    texts = {"train": made_up("train", 40), "validation": made_up("validation", 5), "test": [*made_up("test", 3), "other"]}
    other_text = prepare(Listed(tmp_path, texts, changed_at=2), SETTINGS, tmp_path)
    assert len({first.fingerprint, other_vocabulary.fingerprint, other_text.fingerprint}) == 3


@pytest.mark.parametrize("cores", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_and_processes_change_nothing(cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(Listed(tmp_path), SETTINGS, tmp_path / "whole")
    monkeypatch.setattr(documents, "DOCUMENTS_AT_ONCE", 3)
    monkeypatch.setattr(encoding, "DOCUMENTS_AT_ONCE", 3)
    monkeypatch.setattr(encoding, "CHARACTERS_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    parted = prepare(Listed(tmp_path), SETTINGS, tmp_path / "parted")
    assert arrays(parted) == arrays(whole) and parted.fingerprint == whole.fingerprint


def test_duplicates_are_left_out_of_what_is_trained_on_and_counted(tmp_path: Path) -> None:
    texts = {
        "train": [*made_up("train", 30), "in test", "in validation", "train 1: the dog and\n\tthe fox é jump ", "\n "],
        "validation": ["in validation", "in test", "valid"],
        "test": ["in test", "test", "test", ""],
    }
    corpus = prepare(Listed(tmp_path, texts), SETTINGS, tmp_path)
    assert texts_of(corpus, "test") == ["in test", "test"]
    assert texts_of(corpus, "validation") == ["in validation", "valid"]
    assert texts_of(corpus, "train") == made_up("train", 30)
    left_out = json.loads((corpus.folder / "manifest.json").read_text())["left_out"]
    assert left_out == {
        "duplicates within train": 1,
        "duplicates within test": 1,
        "in train, but also in test": 1,
        "in train, but also in validation": 1,
        "in validation, but also in test": 1,
        "without text, in train": 1,
        "without text, in test": 1,
    }


def test_a_split_that_holds_only_what_another_holds_is_explained(tmp_path: Path) -> None:
    texts = {"train": made_up("train", 40), "validation": made_up("the same", 3), "test": made_up("the same", 3)}
    told = (
        "corpus=listed: the split 'validation' has no documents. All that it had were left out: 3 in validation, but also in "
        "test. Give it a larger share: corpus.validation_fraction."
    )
    with pytest.raises(UserError) as error:
        prepare(Listed(tmp_path, texts), SETTINGS, tmp_path)
    assert str(error.value) == told


def test_what_a_corpus_leaves_out_itself_is_counted(tmp_path: Path) -> None:
    class Choosy(Listed):
        def documents(self, split: str) -> Iterator[str | LeftOut]:
            yield LeftOut("too old")
            yield from super().documents(split)

    corpus = prepare(Choosy(tmp_path), SETTINGS, tmp_path, max_documents=4)
    assert [len(getattr(corpus, split)) for split in SPLITS] == [4, 4, 4]  # what is left out does not count
    assert json.loads((corpus.folder / "manifest.json").read_text())["left_out"] == {"too old": 3}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("texts_there", [[""], []])  # an empty one; none at all, as when few documents are split by hash
def test_an_empty_split_is_told(tmp_path: Path, split: str, texts_there: list[str]) -> None:
    texts = {"train": ["one"], "validation": ["two"], "test": ["three"], split: texts_there}
    with pytest.raises(UserError, match=rf"corpus=listed: the split '{split}' has no documents.*corpus\.{split}_fraction"):
        prepare(Listed(tmp_path, texts), SETTINGS, tmp_path)


def test_too_little_text_for_the_vocabulary_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.tokenizer\.vocab_size=4096 is too large for corpus=listed.*up to \d+"):
        prepare(Listed(tmp_path), TokenizerSettings("bpe", 4096, True), tmp_path)
    prepare(Listed(tmp_path), SETTINGS, tmp_path)


def test_a_tokenizer_that_cannot_be_had_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    listed = Listed(tmp_path)
    with pytest.raises(UserError, match=r"task\.tokenizer\.kind=gpt2 needs the package tiktoken: pip install -e '\.\[paper\]'"):
        prepare(listed, TokenizerSettings("gpt2", 50257, True), tmp_path)
    assert listed.num_readings == 0


def test_half_a_surrogate_pair_is_told_with_its_place(tmp_path: Path) -> None:
    texts = {"train": ["one", "tw\ud800"], "validation": ["two"], "test": ["three"]}
    with pytest.raises(UserError, match=r"corpus=listed: document 1 of train .* U\+D800 at character 2"):
        prepare(Listed(tmp_path, texts), SETTINGS, tmp_path)


def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    class Changing(Listed):
        def identity(self) -> dict[str, Any]:
            return {"readings": self.num_readings}

    with pytest.raises(UserError, match="corpus=listed changed while it was read"):
        prepare(Changing(tmp_path), SETTINGS, tmp_path)


def test_a_document_of_one_endless_line_is_prepared(tmp_path: Path) -> None:
    endless = "ab c" * 300_000
    texts = {"train": made_up("train", 40), "validation": [endless], "test": ["test"]}
    assert texts_of(prepare(Listed(tmp_path, texts), SETTINGS, tmp_path), "validation") == [endless]


def test_a_sample_is_spread_over_the_text_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{number:04d}\n" * 2 for number in range(1000)]
    read = datasets.Dataset.from_dict({"text": texts, "num_characters": [len(text) for text in texts]})
    assert [line for line in sample_lines(read) if line] == [text[:4] for text in texts for _ in range(2)]
    monkeypatch.setattr(documents, "SAMPLE_CHARACTERS", 1000)
    sample = [int(line) for line in sample_lines(read) if line]
    assert 750 <= 4 * len(sample) <= 1000
    assert all(140 <= sum(low <= number < low + 200 for number in sample) * 4 <= 180 for low in range(0, 1000, 200))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """A corpus of 400 MB, of which no more is ever held than a few documents."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from listed_corpus import Listed
from cope.corpora.documents import read_texts, sample_lines

class Large(Listed):
    def documents(self, split):
        return (f"{{split}} {{number}} " + "x" * 200_000 for number in range(2000 if split == "train" else 2))

folder = Path({str(tmp_path)!r})
read_texts(Listed(folder), folder / "first")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = read_texts(Large(folder), folder / "texts")
assert sum(len(line) for line in sample_lines(found.by_split["train"])) > 50_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert grown.returncode == 0, grown.stderr
    assert int(grown.stdout) < 250_000, grown.stdout  # KiB


@given(key=st.text(), validation=st.floats(0, 0.4), test=st.floats(0, 0.4))
def test_a_larger_share_of_test_keeps_what_was_there(key: str, validation: float, test: float) -> None:
    if split_by_hash(key, validation, test) == "test":
        assert split_by_hash(key, validation, test + 0.1) == "test"


def test_shares_are_about_as_large_as_asked() -> None:
    splits = [split_by_hash(str(number), 0.2, 0.1) for number in range(2000)]
    assert [round(splits.count(split) / 2000, 1) for split in SPLITS] == [0.7, 0.2, 0.1]


class Halved(HashedCorpus):
    license = "none"
    documents = identity = None  # type: ignore[assignment]


@pytest.mark.parametrize("fractions", [(-0.1, 0.1), (0.1, 1.5), (0.5, 0.5), (float("nan"), 0.1)])
def test_shares_that_cannot_be(fractions: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"corpus\.(validation|test)_fraction="):
        Halved(name="halved", validation_fraction=fractions[0], test_fraction=fractions[1])
