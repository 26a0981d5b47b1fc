"""Corpora on small local files in their own format: which documents, in which split, and what is said of bad ones."""

from __future__ import annotations

import gzip
import json
import re
import time
from pathlib import Path
from typing import Any

import pandas
import pytest
from conftest import CONFIGS
from corpus_documents import SPLITS, all_documents, flat, left_out, made
from omegaconf import OmegaConf
from runs import command_here

from cope.building import build
from cope.corpora import hub, python_stdlib
from cope.corpora.base import Corpus, split_by_hash
from cope.errors import UserError

CORPORA = sorted(path.stem for path in (CONFIGS / "corpus").glob("*.yaml"))


@pytest.mark.parametrize("name", CORPORA)
def test_every_configured_corpus_can_be_built(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("text")
    node = OmegaConf.load(CONFIGS / "corpus" / f"{name}.yaml")
    assert isinstance(node, type(OmegaConf.create({})))
    if OmegaConf.missing_keys(node):
        with pytest.raises(UserError, match=r"corpus\.train must be set"):
            build(node, "corpus")
        node.train = str(tmp_path / "text")
    corpus = build(node, "corpus")
    assert corpus.name == name == node.name and corpus.license
    monkeypatch.setattr(corpus, "documents", lambda split: pytest.fail("an identity reads no text"))
    assert json.loads(json.dumps(corpus.identity())) == corpus.identity()


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
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("nothing waits for a second try"))
    with pytest.raises(UserError, match=rf"corpus={corpus.name}: http://127\.0\.0\.1:9 cannot be reached") as told:
        next(corpus.documents("train"))
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


def test_the_script_calls_its_keys_by_its_own_names(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a line\n")
    settings = [f"corpus.train={tmp_path}/lines.txt", "tokenizer.kind=gpt2", f"data_dir={tmp_path}/data"]
    done = command_here("scripts/prepare_corpus.py", "corpus=files", *settings)
    assert done.returncode == 1 and "task." not in done.stderr
    assert done.stderr.startswith("tokenizer.vocab_size=2048 is not GPT-2's; allowed with tokenizer.kind=gpt2: ")


def test_the_script_gives_a_tiny_text_a_vocabulary_that_it_can_fill(tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("".join(f"Sentence {number} of a short text. " for number in range(50)))
    done = command_here(
        "scripts/prepare_corpus.py", "corpus=files", f"corpus.train={tmp_path}/tiny.txt", f"data_dir={tmp_path}/data"
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    told = re.search(r"has little text: a vocabulary of (\d+) tokens instead of 2048 \(tokenizer\.vocab_size\)", said)
    assert told is not None and f"vocabulary: bpe, {told[1]} tokens" in said
