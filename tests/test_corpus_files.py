"""A corpus of one's own files: every format and name, which documents, in which split, and what is said of bad ones."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from corpus_documents import SPLITS, all_documents, flat, made

from cope.corpora.base import split_by_hash
from cope.corpora.tokenizer import TokenizerSettings
from cope.errors import UserError


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "other": 1}) + "\n" for text in texts))
    return path


def write_jsonl_gz(path: Path, texts: list[str]) -> Path:
    packed = path.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(write_jsonl(path, texts).read_bytes()))
    return packed


def write_parquet(path: Path, texts: list[str]) -> Path:
    pandas.DataFrame({"other": 1, "text": texts}).to_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def write_saved(path: Path, texts: list[str]) -> Path:
    import datasets

    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(path))
    return path


def write_folder(path: Path, texts: list[str]) -> Path:
    for number, text in enumerate(texts):
        (path / "inner").mkdir(parents=True, exist_ok=True)
        (path / "inner" / f"{number:03d}.txt").write_bytes(text.encode())
    (path / ".hidden").write_bytes(b"\xff")
    return path


def write_glob(path: Path, texts: list[str]) -> Path:
    return write_folder(path, texts) / "**" / "*.txt"


@pytest.mark.parametrize("write", [write_jsonl, write_jsonl_gz, write_parquet, write_saved, write_folder, write_glob])
def test_your_files_in_every_format(write: Callable[[Path, list[str]], Path], tmp_path: Path) -> None:
    texts = [f"Text {number}\n\tof \0 two\r\nlines é " for number in range(30)]
    source = str(write(tmp_path / "texts.jsonl", texts))
    corpus = made("files", train=source, validation_fraction=0.3, test_fraction=0.2)
    documents = all_documents(corpus)
    for split in SPLITS:
        assert documents[split] == [text for text in texts if split_by_hash(text, 0.3, 0.2) == split]
    assert corpus.identity() == made("files", train=source, validation_fraction=0.3, test_fraction=0.2).identity()
    own = made("files", train=source, validation=source, test=source)
    assert all(texts == list(own.documents(split)) for split in SPLITS)


@pytest.mark.parametrize(("pattern", "num_files"), [("book0.txt", 1), ("*.txt", 3), ("", 3)])
def test_a_few_files_are_cut_by_position(pattern: str, num_files: int, tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number}.\nIt has two lines.\n\n" for number in range(100)]
    for number in range(3):
        (tmp_path / f"book{number}.txt").write_text("".join(paragraphs))
    corpus = made("files", train=str(tmp_path / pattern))
    documents = all_documents(corpus)
    assert {split: len(texts) for split, texts in documents.items()} == dict.fromkeys(SPLITS, num_files)
    for parts in zip(*(documents[split] for split in SPLITS), strict=True):
        assert "".join(parts) == "".join(paragraphs)
        assert all(part.startswith("Paragraph") for part in parts)
        assert [round(len(part) / len("".join(paragraphs)), 1) for part in parts] == [0.8, 0.1, 0.1]
    assert "by position" in corpus.note and ("each of 3 files" in corpus.note) == (num_files == 3)
    assert corpus.identity() != made("files", train=str(tmp_path / pattern), document="file").identity()
    own = made("files", train=str(tmp_path / pattern), validation=str(tmp_path), test=str(tmp_path))
    assert own.note == "" and len(all_documents(own)["train"]) == num_files


def test_a_tiny_text_gets_a_vocabulary_that_it_can_fill(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    (tmp_path / "large.txt").write_text("The quick brown fox jumps over the lazy dog. " * 9000)
    asked = TokenizerSettings("bpe", 2048, byte_fallback=True)
    size = made("files", train=str(tmp_path / "small.txt")).size_of_tiny()
    assert size == (900, 29) and asked.fitting(*size).vocab_size == 331
    assert made("files", train=str(tmp_path / "large.txt")).size_of_tiny() is None
    assert TokenizerSettings("bpe", 300, byte_fallback=True).fitting(*size).vocab_size == 300


def test_a_saved_data_set_brings_its_own_splits(tmp_path: Path) -> None:
    import datasets

    parts = {name: datasets.Dataset.from_dict({"content": [f"{name} {n}" for n in range(9)]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    corpus = made("files", train=str(tmp_path / "saved"), text_column="content", validation_fraction=0.3)
    documents = all_documents(corpus)
    assert documents["test"] == [f"test {n}" for n in range(9)]
    assert sorted(documents["train"] + documents["validation"]) == [f"train {n}" for n in range(9)]
    with pytest.raises(UserError, match=r"corpus\.text_column=contents: .* Did you mean 'content'"):
        list(made("files", train=str(tmp_path / "saved"), text_column="contents").documents("train"))
    with pytest.raises(UserError, match=r"has no split 'validation'; it has: train, test"):
        list(made("files", train=str(tmp_path / "saved"), validation=str(tmp_path / "saved")).documents("validation"))


def test_each_line_can_be_a_document(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_bytes("one\r\ntwo \u2028 é\n\nlast".encode())
    path = str(tmp_path / "lines.txt")
    assert list(made("files", train=path, validation=path, test=path, document="line").documents("train")) == [
        "one", "two \u2028 é", "", "last",
    ]  # fmt: skip


def test_a_line_of_any_length_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_bytes(b"x" * 20_000_000)
    path = str(tmp_path / "long.txt")
    assert [len(text) for text in made("files", train=path, test=path, validation=path, document="line").documents("test")] == [
        20_000_000
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nnot \xff fine", r"a\.txt is not UTF-8: byte 0xFF at offset 9"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"a\.jsonl is not UTF-8: byte 0xE9 at offset 24"),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"text": ',
            r"a\.jsonl cannot be read \(line 3 is not JSON.*allowed: one JSON object a line",
        ),
        ("a.json", b'[{"text": "a"}]', r"a\.json cannot be read \(line 1 is no object\); allowed: one JSON object a line"),
        (
            "a.txt",
            "text".encode("utf-16"),
            r"a\.txt is not UTF-8 but begins with the byte-order mark of UTF-16\. .*iconv -f UTF-16",
        ),
        ("a.txt", "text".encode("utf-32"), r"a\.txt is not UTF-8 but begins with the byte-order mark of UTF-32"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), r"a\.jsonl is not UTF-8 but begins with the byte-order mark of UTF-16"),
        ("a.txt.gz", b"not packed", r"a\.txt\.gz cannot be read"),
        ("a.txt.gz", gzip.compress(b"some text", mtime=0)[:-4], r"a\.txt\.gz cannot be read"),
        ("a.jsonl", b'{"texts": "a"}\n', r"corpus\.text_column=text: row 1 .* it has: texts\. Did you mean 'texts'"),
        ("a.jsonl", b'{"text": 7}\n', r"corpus\.text_column=text: row 1 .* holds int there; allowed: text"),
        ("a.jsonl.gz", b"not packed", r"a\.jsonl\.gz cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0)[:-4], r"a\.jsonl\.gz cannot be read"),
        ("a.parquet", b"not parquet", r"a\.parquet cannot be read .*not a parquet file"),
    ],
)
@pytest.mark.parametrize("document", ["file", "line"])
def test_bad_files_are_told_with_the_place(name: str, content: bytes, message: str, document: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        all_documents(made("files", train=str(tmp_path / name), document=document))


@pytest.mark.parametrize("name", ["a.JSONL", "a.Json", "a.ndjson", "a.jsonl.gz", "A.JSON.GZ", "a.NDJSON.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
def test_json_lines_by_any_name(name: str, mark: bytes, tmp_path: Path) -> None:
    content = mark + '{"text": "één"}\n\n{"text": "two"}'.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert flat(made("files", train=str(tmp_path / name))) == ["two", "één"]


@pytest.mark.parametrize("name", ["a.TXT", "a", "a.txt.gz", "A.MD.GZ", "a.gz", "a.py"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize(("document", "expected"), [("file", ["één\ntwo\n"]), ("line", ["two", "één"])])
def test_plain_text_by_any_name(name: str, mark: bytes, document: str, expected: list[str], tmp_path: Path) -> None:
    content = mark + "één\ntwo\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert flat(made("files", train=str(tmp_path / name), document=document)) == expected


@pytest.mark.parametrize(
    "name",
    [
        "a.csv",
        "a.TSV",
        "a.csv.gz",
        "a.parquet.gz",
        "a.zip",
        "a.txt.bz2",
        "a.zst",
        "a.pdf",
        "a.docx",
        "a.arrow",
        "a.png",
        "a.npy",
    ],
)
@pytest.mark.parametrize("document", ["file", "line"])
def test_what_is_neither_text_nor_rows_is_refused_by_name(name: str, document: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / name).write_text("text,label\nfine,1\n")
    for train in (tmp_path, tmp_path / name, tmp_path / "*"):
        with pytest.raises(UserError, match=rf"/{re.escape(name)} cannot be read, .*allowed: plain text .*glob"):
            made("files", train=str(train), document=document)
    assert flat(made("files", train=f"{tmp_path}/*.txt", document=document)) == ["text"]


def test_linked_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.txt").write_text("far")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "b.txt").write_text("near")
    (tmp_path / "near" / "linked").symlink_to(tmp_path / "far")
    assert flat(made("files", train=str(tmp_path / "near"), document="file")) == ["far", "near"]
    (tmp_path / "near" / "round").symlink_to(tmp_path / "near")
    with pytest.raises(UserError, match=r"round is a link to a folder that it lies in"):
        made("files", train=str(tmp_path / "near"))
    (tmp_path / "near" / "round").unlink()
    (tmp_path / "near" / "c.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"c\.txt is a link to .*gone\.txt, which does not exist"):
        made("files", train=str(tmp_path / "near"))


def test_the_home_folder_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    for train in ("~/a.txt", "~", "~/*.txt"):
        assert flat(made("files", train=train, document="file")) == ["text"]
    with pytest.raises(UserError, match=r"corpus\.train=~nobody-of-that-name/a.txt: there is no home folder"):
        made("files", train="~nobody-of-that-name/a.txt")


def test_a_parquet_column_of_another_name_is_told(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a", ["text"])
    with pytest.raises(UserError, match=r"corpus\.text_column=txt: .* it has: other, text\. Did you mean 'text'"):
        all_documents(made("files", train=str(path), text_column="txt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": "{folder}/bok.txt"}, r"corpus\.train=.*there is no such file.*Did you mean 'book\.txt'"),
        ({"train": "{folder}/*.parquet"}, r"corpus\.train=.*there is no such file"),
        ({"test": "{folder}/none"}, r"corpus\.test=.*there is no such file"),
        ({"train": ""}, r"corpus\.train= is empty"),
        ({"train": " "}, r"corpus\.train= is empty"),
        ({"validation": ""}, r"corpus\.validation= is empty"),
        ({"test": ""}, r"corpus\.test= is empty"),
        ({"document": "lines"}, r"corpus\.document=lines.*Did you mean 'line'"),
        ({"validation_fraction": 2.0}, r"corpus\.validation_fraction=2\.0 is out of range"),
    ],
)
def test_files_that_are_not_there_are_told_at_once(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("text")
    filled = {key: value.format(folder=tmp_path) if isinstance(value, str) else value for key, value in arguments.items()}
    with pytest.raises(UserError, match=message):
        made("files", **({"train": str(tmp_path / "book.txt")} | filled))
