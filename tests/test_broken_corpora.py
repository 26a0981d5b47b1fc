"""Preparing a corpus is made once, goes on where it stopped, and nothing half made or damaged is ever used."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from listed_corpus import SETTINGS, Listed, arrays, folders, made_up

from cope.corpora import encoding, prepared
from cope.corpora.prepared import prepare
from cope.errors import UserError


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


def test_a_folder_left_by_a_killed_process_is_used(tmp_path: Path) -> None:
    first = prepare(Listed(tmp_path), SETTINGS, tmp_path)
    expected = arrays(first)
    partial = first.folder.with_name(f"{first.folder.name}.partial")
    partial.mkdir()
    (partial / "texts").mkdir()
    (partial / "texts" / "train.arrow").write_text("half a ta")
    shutil.rmtree(first.folder)
    assert arrays(prepare(Listed(tmp_path), SETTINGS, tmp_path)) == expected
