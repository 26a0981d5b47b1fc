"""From documents to tokens: what is stored, that it is made once, and that nothing half made is ever used."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import shutil
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

from cope.corpora import documents, encoding, prepared
from cope.corpora.base import Corpus, HashedCorpus, LeftOut, split_by_hash
from cope.corpora.documents import sample_lines
from cope.corpora.encoding import token_type
from cope.corpora.prepared import Documents, PreparedCorpus, prepare
from cope.corpora.tokenizer import TokenizerSettings
from cope.errors import UserError

SETTINGS = TokenizerSettings("bpe", 300, True)
SPLITS = ("train", "validation", "test")
ARRAYS = ("tokens", "starts", "num_words", "num_bytes")


def made_up(split: str, number: int) -> list[str]:
    """Documents that differ, with what makes a tokenizer stumble."""
    return [f"{split} {index}: the dog and\n\tthe fox é {'jump ' * (index % 7)}" for index in range(number)]


class Listed(Corpus):
    """Documents from a dictionary; notes on disk each time they are read, so that other processes' readings count too."""

    name = "listed"
    license = "none"

    def __init__(self, folder: Path, texts: dict[str, list[str]] | None = None, **identity: Any) -> None:
        self.texts = texts or {
            "train": made_up("train", 40),
            "validation": made_up("validation", 5),
            "test": made_up("test", 4),
        }
        self.readings = folder / "readings"
        self.described = identity

    def documents(self, split: str) -> Iterator[str]:
        with self.readings.open("a") as file:
            file.write(f"{split}\n")
        yield from self.texts[split]

    def identity(self) -> dict[str, Any]:
        return {"documents": len(self.texts["train"]), **self.described}

    @property
    def num_readings(self) -> int:
        return len(self.readings.read_text().splitlines()) if self.readings.exists() else 0


def texts_of(corpus: PreparedCorpus, split: str) -> list[str]:
    documents: Documents = getattr(corpus, split)
    starts = documents.starts
    return [corpus.tokenizer.decode(documents.tokens[starts[i] : starts[i + 1]]) for i in range(len(documents))]


def arrays(corpus: PreparedCorpus) -> dict[str, list[int]]:
    return {f"{split}.{array}": getattr(getattr(corpus, split), array).tolist() for split in SPLITS for array in ARRAYS}


def folders(data_dir: Path) -> list[str]:
    return sorted(path.name for path in (data_dir / "corpora" / "listed").iterdir() if path.is_dir())


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


@pytest.mark.parametrize("stopped_at", ["reading validation", "reading train", "learning", "encoding validation"])
def test_an_interrupted_preparation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: str) -> None:
    expected = arrays(prepare(Listed(tmp_path), SETTINGS, tmp_path / "unbroken"))
    listed = Listed(tmp_path)
    listed.readings.unlink()
    deed, _, split = stopped_at.partition(" ")
    encoded: list[str] = []

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def encode(batch: dict[str, list[str]], **settings: Any) -> dict[str, list[Any]]:
        encoded.append(batch["text"][0].split()[0])  # the documents begin with the name of their split
        if deed == "encoding" and encoded[-1] == split:
            raise KeyboardInterrupt
        return genuine(batch, **settings)

    genuine = encoding._encode
    monkeypatch.setattr(encoding, "_encode", encode)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if deed == "reading":
            texts = listed.texts

            def documents_until_then(self: Listed, asked: str) -> Iterator[str]:
                with self.readings.open("a") as file:
                    file.write(f"{asked}\n")
                yield texts[asked][0]
                if asked == split:
                    raise KeyboardInterrupt
                yield from texts[asked][1:]

            patched.setattr(Listed, "documents", documents_until_then)
        if deed == "learning":
            patched.setattr(prepared, "train_tokenizer", interrupt)
        prepare(listed, SETTINGS, tmp_path / "broken")
    assert not list((tmp_path / "broken").rglob("manifest.json"))
    deed = ""
    assert arrays(prepare(listed, SETTINGS, tmp_path / "broken")) == expected
    # What was read, or encoded, to the end is not read or encoded again: a split that was stopped in its middle is.
    assert listed.num_readings == (4 if stopped_at.startswith("reading") else 3)
    assert sorted(encoded) == sorted(["train", "validation", "test", *(["validation"] if "encoding" in stopped_at else [])])


def damage_truncate(folder: Path) -> None:
    os.truncate(folder / "train.tokens.npy", (folder / "train.tokens.npy").stat().st_size - 1)


def damage_remove(folder: Path) -> None:
    (folder / "test.starts.npy").unlink()


def damage_model(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(bytes(len((folder / "tokenizer.model").read_bytes())))


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"file_sizes"')


def damage_manifest_content(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


@pytest.mark.parametrize("damage", [damage_truncate, damage_remove, damage_model, damage_manifest, damage_manifest_content])
def test_what_is_damaged_is_made_anew_with_a_warning(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    listed = Listed(tmp_path)
    first = prepare(listed, SETTINGS, tmp_path)
    expected = arrays(first)
    damage(first.folder)
    second = prepare(listed, SETTINGS, tmp_path)
    assert arrays(second) == expected and second.fingerprint == first.fingerprint
    assert caplog.text.count("preparing it again") == 1
    assert listed.num_readings == 6


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    listed = Listed(tmp_path, {"train": made_up("train", 4000), "validation": ["valid"], "test": ["test"]})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # no file may grow beyond: the same to us as a full disk
    try:
        with pytest.raises(UserError, match=r"data_dir: cannot write .*File too large.*data_dir=/another/folder"):
            prepare(listed, SETTINGS, tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folders(tmp_path / "data") == []
    prepare(listed, SETTINGS, tmp_path / "data")


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a folder")
    listed = Listed(tmp_path)
    with pytest.raises(UserError, match="data_dir: cannot write"):
        prepare(listed, SETTINGS, tmp_path / "data")
    assert listed.num_readings == 0


def prepare_elsewhere(folder: Path) -> None:
    prepare(Listed(folder), SETTINGS, folder)


def test_runs_that_start_at_once_prepare_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=prepare_elsewhere, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert Listed(tmp_path).num_readings == 3


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
from test_corpora import Listed
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


def test_a_folder_left_by_a_killed_process_is_used(tmp_path: Path) -> None:
    first = prepare(Listed(tmp_path), SETTINGS, tmp_path)
    expected = arrays(first)
    partial = first.folder.with_name(f"{first.folder.name}.partial")
    partial.mkdir()
    (partial / "texts").mkdir()
    (partial / "texts" / "train.arrow").write_text("half a ta")
    shutil.rmtree(first.folder)
    assert arrays(prepare(Listed(tmp_path), SETTINGS, tmp_path)) == expected
