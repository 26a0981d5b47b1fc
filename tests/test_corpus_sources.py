"""Each corpus on small local files in its own format: which documents, in which split, and what is said of bad ones."""

from __future__ import annotations

import bz2
import gzip
import json
import re
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from conftest import CONFIGS
from omegaconf import DictConfig, OmegaConf
from runs import command_here

from cope.building import build
from cope.corpora import hub, python_stdlib
from cope.corpora.base import Corpus, LeftOut, split_by_hash
from cope.corpora.tokenizer import TokenizerSettings
from cope.corpora.wiki_markup import plain_text
from cope.corpora.wikitext103 import articles
from cope.errors import UserError

SPLITS = ("train", "validation", "test")
CORPORA = sorted(path.stem for path in (CONFIGS / "corpus").glob("*.yaml"))


def made(name: str, **changes: Any) -> Any:
    """The corpus as its file in configs/corpus has it, with ``changes``."""
    node = OmegaConf.load(CONFIGS / "corpus" / f"{name}.yaml")
    assert isinstance(node, DictConfig)
    for key, value in changes.items():
        node[key] = value
    return build(node, "corpus")


def all_documents(corpus: Corpus) -> dict[str, list[str]]:
    return {split: [text for text in corpus.documents(split) if isinstance(text, str)] for split in SPLITS}


def left_out(corpus: Corpus) -> list[str]:
    return [text.reason for split in SPLITS for text in corpus.documents(split) if isinstance(text, LeftOut)]


def flat(corpus: Corpus) -> list[str]:
    return sorted(text for texts in all_documents(corpus).values() for text in texts)


@pytest.mark.parametrize("name", CORPORA)
def test_every_configured_corpus_can_be_built(name: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    node = OmegaConf.load(CONFIGS / "corpus" / f"{name}.yaml")
    assert isinstance(node, type(OmegaConf.create({})))
    if OmegaConf.missing_keys(node):
        with pytest.raises(UserError, match=r"corpus\.train must be set"):
            build(node, "corpus")
        node.train = str(tmp_path / "text")
    corpus = build(node, "corpus")
    assert corpus.name == name == node.name and corpus.license
    start = time.perf_counter()
    assert json.loads(json.dumps(corpus.identity())) == corpus.identity()
    assert time.perf_counter() - start < 5  # cheap: no text is read


# Wikipedia


MARKUP = """{{Infobox|name=[[Gone]]}}
'''Anarchism''' ({{IPA|x}}; from Greek) is a [[some thought|philosophy]]<ref name="a">{{cite|b}}</ref> of [[state]]s&nbsp;here.
[[File:Picture.jpg|thumb|A [[linked]] caption]]
<!-- a comment -->
== History ==
{| class="wikitable"
! a cell
|}
=== Early ===
* one [http://example.org entry]
# another , <math>x^2</math>entry
: it was {{convert|3|m}}
<gallery>
File:A.jpg
</gallery>
== References ==
{{reflist}}
[[Category:Politics]] [[de:Anarchismus]]
"""


def test_markup_becomes_plain_text() -> None:
    assert plain_text("Anarchism", MARKUP) == (
        " = Anarchism = \n\n"
        "Anarchism (from Greek) is a philosophy of states here.\n"
        "\n = = History = = \n\n"
        "\n = = = Early = = = \n\n"
        "one entry\nanother, entry\nit was\n"
    )


def page(title: str, text: str, namespace: int = 0, redirect: str = "") -> str:
    inner = f"<title>{title}</title><ns>{namespace}</ns>{redirect}<revision><text>{text}</text></revision>"
    return f"<page>{inner}</page>"


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    pages = [page(f"Title {number}", f"'''Text''' {number} &lt;ref&gt;gone&lt;/ref&gt;") for number in range(40)]
    pages += [page("Talk:A", "talk", 1), page("Old", "#REDIRECT [[New]]", redirect='<redirect title="New" />')]
    path = tmp_path / "dump.xml"
    namespace = "http://www.mediawiki.org/xml/export-0.10/"
    path.write_text(f'<mediawiki xmlns="{namespace}"><siteinfo/>{"".join(pages)}</mediawiki>')
    return path


@pytest.mark.parametrize("suffix", [".xml", ".xml.bz2", ".whl"])
def test_a_dump_is_split_by_title(dump: Path, suffix: str) -> None:
    path = dump.with_name(f"source{suffix}")
    if suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            member = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
            wheel.writestr(member, bz2.compress(dump.read_bytes()))
    else:
        path.write_bytes(bz2.compress(dump.read_bytes()) if suffix == ".xml.bz2" else dump.read_bytes())
    corpus = made("enwiki_sample", source=str(path), validation_fraction=0.2, test_fraction=0.2)
    documents = all_documents(corpus)
    assert sum(map(len, documents.values())) == 40  # no redirects, no talk
    for split, texts in documents.items():
        titles = [text.split(" = ")[1] for text in texts]
        assert titles == [f"Title {n}" for n in range(40) if split_by_hash(f"Title {n}", 0.2, 0.2) == split]
    assert " = Title 7 = \n\nText 7\n" in flat(corpus)


def test_damaged_and_missing_dumps_are_told(dump: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.source=.*there is no file.*allowed: gensim"):
        made("enwiki_sample", source="/nowhere/dump.xml")
    dump.write_bytes(dump.read_bytes()[:1000])
    with pytest.raises(UserError, match="is not a Wikipedia dump, or damaged"):
        list(made("enwiki_sample", source=str(dump)).documents("train"))
    packed = dump.with_suffix(".bz2")
    packed.write_bytes(b"not packed")
    with pytest.raises(UserError, match="is not a Wikipedia dump, or damaged"):
        list(made("enwiki_sample", source=str(packed)).documents("train"))


def test_the_installed_sample_is_found_without_importing_gensim() -> None:
    first = next(made("enwiki_sample").documents("test"))
    assert first.startswith(" = ") and len(first) > 500
    assert "gensim" not in sys.modules


# Python's own sources


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "python3.99"
    content = {
        "a.py": b"if True:\r\n\tprint()\x0c\n",
        "package/b.py": "name = 'é'\n".encode(),
        "package/tests/c.py": b"a test",
        "test/d.py": b"a test",
        "site-packages/e.py": b"not ours",
        "encodings/f.py": b"a generated table",
        "latin.py": b"# -*- coding: latin-1 -*-\n# \xe9\n",
        "notes.txt": b"no source",
    }
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    monkeypatch.setattr(python_stdlib.sysconfig, "get_path", lambda name: str(folder))
    return folder


def test_sources_are_read_exactly(library: Path) -> None:
    corpus = made("python_stdlib", packages=[])
    assert flat(corpus) == ["if True:\r\n\tprint()\f\n", "name = 'é'\n"]
    assert len(left_out(corpus)) == 1 and "not UTF-8" in left_out(corpus)[0]
    assert flat(made("python_stdlib", packages=[], tests=True)) == [
        "a test",
        "a test",
        "if True:\r\n\tprint()\f\n",
        "name = 'é'\n",
    ]


def test_packages_are_added_by_name(library: Path) -> None:
    import yaml

    texts = flat(made("python_stdlib", packages=["yaml"]))
    assert Path(str(yaml.__file__)).read_text() in texts and len(texts) > 5
    with pytest.raises(UserError, match=r"corpus\.packages: 'no_such_package'"):
        made("python_stdlib", packages=["no_such_package"])


def test_a_changed_source_is_another_corpus(library: Path) -> None:
    before = made("python_stdlib", packages=[]).identity()
    (library / "a.py").write_text("changed")
    assert made("python_stdlib", packages=[]).identity() != before


def test_the_running_pythons_sources_are_there() -> None:
    sizes = {split: sum(1 for _ in made("python_stdlib", packages=[]).documents(split)) for split in SPLITS}
    assert sizes["train"] > 300 and min(sizes.values()) > 20


# Your own files


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


# Wikitext-103


def test_articles_begin_at_titles_after_an_empty_line() -> None:
    lines = [
        "",
        " = First = \n",
        "",
        " Text \n",
        " = not a title = \n",
        "",
        " = = Section = = \n",
        "",
        " = Second = One = \n",
        "",
    ]
    assert list(articles(lines)) == [
        " = First = \n\n Text \n = not a title = \n\n = = Section = = \n\n",
        " = Second = One = \n\n",
    ]


@pytest.fixture
def wikitext(tmp_path: Path) -> Path:
    for variant in ("wikitext-103-raw-v1", "wikitext-103-v1"):
        folder = tmp_path / "wikitext" / variant
        folder.mkdir(parents=True)
        for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"):
            rows = ["", f" = {name} = \n", "", f" {variant} \n", "", " = = Section = = \n"]
            pandas.DataFrame({"text": rows}).to_parquet(folder / f"{name}.parquet")
    return tmp_path / "wikitext"


@pytest.mark.parametrize("variant", ["raw", "tokenised"])
def test_wikitext_keeps_its_own_splits(variant: str, wikitext: Path) -> None:
    documents = all_documents(made("wikitext103", source=str(wikitext), variant=variant))
    assert [len(documents[split]) for split in SPLITS] == [2, 1, 1]
    folder = "wikitext-103-raw-v1" if variant == "raw" else "wikitext-103-v1"
    assert documents["test"] == [f" = test-00000-of-00001 = \n\n {folder} \n\n = = Section = = \n"]
    assert documents["train"][1].startswith(" = train-00001-of-00002 = \n")
    assert (
        made("wikitext103", source=str(wikitext), variant="raw").identity()
        != made("wikitext103", source=str(wikitext), variant="tokenised").identity()
    )


def test_wikitext_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.variant=raww.*Did you mean 'raw'"):
        made("wikitext103", variant="raww")
    with pytest.raises(UserError, match=r"corpus\.source=hubb is not a folder.*Did you mean 'hub'"):
        made("wikitext103", source="hubb")
    with pytest.raises(UserError, match=r"there is no file train\.parquet or train-\*\.parquet"):
        list(made("wikitext103", source=str(tmp_path)).documents("train"))


# CodeParrot


@pytest.fixture
def parrot(tmp_path: Path) -> Path:
    folder = tmp_path / "parrot"
    folder.mkdir()
    rows = [
        {"repo_name": f"owner/{n % 20}", "path": f"{n}.py", "content": f"n = {n}\n", "license": "mit" if n % 3 else "gpl-3.0"}
        for n in range(120)
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "file-000000000001.json.gz").write_bytes(gzip.compress("".join(lines[:60]).encode()))
    pandas.DataFrame(rows[60:]).to_parquet(folder / "file-000000000002.parquet")
    (folder / "README.md").write_text("not data")
    return folder


def test_codeparrot_takes_permissive_files_and_splits_by_repository(parrot: Path) -> None:
    corpus = made(
        "codeparrot", source=str(parrot), licenses=["mit"], num_documents=None, validation_fraction=0.2, test_fraction=0.2
    )
    documents = all_documents(corpus)
    wanted = [n for n in range(120) if n % 3]
    for split in SPLITS:
        assert documents[split] == [f"n = {n}\n" for n in wanted if split_by_hash(f"owner/{n % 20}", 0.2, 0.2) == split]
        assert documents[split]
    assert len(left_out(corpus)) == 40 and "mit" in corpus.license


def test_codeparrot_stops_after_num_documents(parrot: Path) -> None:
    corpus = made("codeparrot", source=str(parrot), licenses=["mit"], num_documents=10)
    assert sorted(int(text[4:]) for text in flat(corpus)) == [n for n in range(120) if n % 3][:10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"licenses": ["mitt"]}, r"corpus\.licenses=mitt.*Did you mean 'mit'"),
        ({"licenses": []}, r"corpus\.licenses is empty"),
        ({"num_documents": 0}, r"corpus\.num_documents=0 is too small"),
        ({"source": "/nowhere"}, r"corpus\.source=/nowhere is not a folder"),
    ],
)
def test_codeparrot_settings_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made("codeparrot", **({"licenses": ["mit"]} | arguments))


# The Hub


@pytest.mark.parametrize("corpus", [made("wikitext103"), made("codeparrot", licenses=["mit"])], ids=lambda corpus: corpus.name)
def test_an_unreachable_hub_is_told_at_once_with_the_ways_out(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    start = time.perf_counter()
    with pytest.raises(UserError, match=rf"corpus={corpus.name}: http://127\.0\.0\.1:9 cannot be reached") as told:
        next(corpus.documents("train"))
    assert time.perf_counter() - start < 15
    for way_out in ("corpus=enwiki_sample", "corpus=python_stdlib", "corpus=files corpus.train="):
        assert way_out in str(told.value)


def test_a_hub_that_can_be_reached_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(path: str, name: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((path, name, split, streaming))
        return datasets.Dataset.from_dict({"text": ["", " = Title = \n", " text \n"]})

    monkeypatch.setattr(hub, "is_reachable", lambda url: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(made("wikitext103").documents("validation")) == [" = Title = \n text \n"]
    assert asked == [("Salesforce/wikitext", "wikitext-103-raw-v1", "validation", False)]


def test_a_network_that_fails_on_the_way_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def rows() -> Any:
        yield {"repo_name": "a/b", "license": "mit", "content": "text"}
        raise ConnectionError("gone")

    monkeypatch.setattr(hub, "is_reachable", lambda url: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    with pytest.raises(UserError, match=r"corpus=codeparrot: .*cannot be read to the end \(ConnectionError: gone\)"):
        all_documents(made("codeparrot", licenses=["mit"]))


# The script


def test_the_script_prepares_and_tells_sizes(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("".join(f"line {number} of the text\n" for number in range(300)))
    settings = [f"corpus.train={tmp_path}/lines.txt", "tokenizer.vocab_size=300", f"data_dir={tmp_path}/data"]
    done = command_here("scripts/prepare_corpus.py", "corpus=files", "corpus.document=line", *settings)
    assert done.returncode == 0, done.stderr
    assert "Licence: that of your files" in done.stdout and "tokens/s a core" in done.stdout
    assert list((tmp_path / "data" / "corpora" / "files").glob("*/manifest.json"))
