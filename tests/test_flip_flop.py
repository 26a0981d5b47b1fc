"""The flip-flop task's generator against an interpreter, and its published data set, read from local copies of its layout."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tasks import configured, words

from cope.corpora import hub
from cope.errors import UserError
from cope.tasks import flip_flop_files
from cope.tasks.base import Examples
from cope.tasks.flip_flop import FlipFlop
from cope.tasks.flip_flop_files import FlipFlopFiles


def read_out(sequence: list[str]) -> list[int]:
    """Run a flip-flop sequence; the positions of the bits that were read, which must be right."""
    memory, reads = "", []
    assert sequence[0] == "w"
    assert sequence[-2] == "r"
    for position in range(0, len(sequence), 2):
        instruction, bit = sequence[position : position + 2]
        assert instruction in ("w", "r", "i")
        assert bit in ("0", "1")
        if instruction == "w":
            memory = bit
        if instruction == "r":
            assert bit == memory
            reads.append(position + 1)
    return reads


@pytest.mark.parametrize("p_ignore", [0.0, 0.1, 0.8, 1.0])
def test_flip_flop_reads_what_was_written(p_ignore: float) -> None:
    task = configured(FlipFlop, num_pairs=30, p_ignore=p_ignore)
    examples = task.generate(400, np.random.default_rng(0))
    instructions: Counter[str] = Counter()
    bits: dict[str, list[int]] = {"w": [], "i": [], "r": []}
    for sequence, answers in zip(words(task, examples), examples.answers, strict=True):
        assert answers.nonzero()[0].tolist() == read_out(sequence)
        instructions.update(sequence[2:-2:2])
        for instruction, bit in zip(sequence[::2], sequence[1::2], strict=True):
            bits[instruction].append(int(bit))
    total = 400 * 28
    for instruction, share in (("i", p_ignore), ("w", (1 - p_ignore) / 2), ("r", (1 - p_ignore) / 2)):
        assert abs(instructions[instruction] - total * share) <= 5 * math.sqrt(total * share * (1 - share)), instruction
    for instruction in ("w", "i"):
        drawn = bits[instruction]
        assert abs(sum(drawn) - len(drawn) / 2) <= 5 * math.sqrt(len(drawn)) / 2


def texts(num: int, seed: int, num_pairs: int = 10) -> list[str]:
    task = configured(FlipFlop, num_pairs=num_pairs)
    return ["".join(row) for row in words(task, task.generate(num, np.random.default_rng(seed)))]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """A folder laid out as the released data set: training in two parts, the others in one."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("released")
    (folder / "data").mkdir()
    rows = {"train": texts(100, 0), "val": texts(40, 1), "val_dense": texts(20, 2), "val_sparse": texts(20, 3)}
    for name, part in (
        ("train-00000-of-00002", rows["train"][:60]),
        ("train-00001-of-00002", rows["train"][60:]),
        ("val-00000-of-00001", rows["val"]),
        ("val_dense-00000-of-00001", rows["val_dense"]),
        ("val_sparse-00000-of-00001", rows["val_sparse"]),
    ):
        pandas.DataFrame({"text": part}).to_parquet(folder / "data" / f"{name}.parquet")
    return folder, rows


def from_files(source: Path | str, **changes: Any) -> FlipFlop:
    return configured(FlipFlop, **({"source": str(source), "num_pairs": 10, "num_validation": 20, "num_test": 20} | changes))


def joined(task: FlipFlop, examples: Examples) -> list[str]:
    return ["".join(row) for row in words(task, examples)]


@pytest.mark.parametrize("saved", [False, True])
def test_flip_flop_from_a_local_copy(released: tuple[Path, dict[str, list[str]]], saved: bool, tmp_path: Path) -> None:
    source, rows = released
    if saved:
        import datasets

        source = tmp_path / "saved"
        datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": part}) for name, part in rows.items()}).save_to_disk(
            str(source)
        )
    task = from_files(source, num_train=100)
    for split, expected in (
        ("validation", rows["val"][20:]),
        ("test", rows["val"][:20]),
        ("ood_sparse", rows["val_sparse"]),
        ("ood_dense", rows["val_dense"]),
    ):
        examples = task.evaluation_examples(split)
        assert joined(task, examples) == expected
        for sequence, answers in zip(words(task, examples), examples.answers, strict=True):
            assert answers.nonzero()[0].tolist() == read_out(sequence)
    assert joined(task, task.training_examples(1, 0)) == joined(task, task.training_examples(1, 5)) == rows["train"]
    with pytest.raises(UserError, match=r"task\.num_test=21 is too large.*allowed: 1 to 20"):
        from_files(source, num_test=21).evaluation_examples("test")


def test_flip_flop_passes_through_the_training_files(
    released: tuple[Path, dict[str, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlipFlop, "epoch_size", 30)
    source, rows = released
    task = from_files(source)
    seen = [row for epoch in range(10) for row in joined(task, task.training_examples(1, epoch))]
    assert Counter(seen) == Counter(rows["train"] * 3)  # 300 rows are three times round 100
    assert joined(task, task.training_examples(1, 4)) == seen[120:150]
    assert joined(task, task.training_examples(2, 4)) != seen[120:150]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("w0i1r1", "last written"),
        ("i0w1r1", "first instruction is w"),
        ("w0x1r0", "alternate"),
        ("w00ir0", "alternate"),
        ("w0i1r", "5 characters, not 6"),
        ("w0i1r0i1", "task.num_pairs=3"),
        ("w0ï1r0", "plain text"),
    ],
)
def test_flip_flop_refuses_malformed_text(text: str, reason: str, tmp_path: Path) -> None:
    task = from_files(tmp_path, num_pairs=3, num_validation=1, num_test=1)
    rows = ["w1i0r1", "w0i1r0"]
    task.files.first = lambda *_: rows  # type: ignore[union-attr, method-assign]
    assert joined(task, task.fixed_examples("test", 2, None)) == rows
    rows[1] = text
    with pytest.raises(UserError, match=reason):
        task.fixed_examples("test", 2, None)


def test_one_saved_split_is_not_every_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": texts(40, 0)}).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(UserError, match="was saved as one split, and would be every split"):
        from_files(tmp_path / "one").evaluation_examples("test")


def test_flip_flop_names_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    task = from_files(tmp_path)
    with pytest.raises(UserError, match=r"no file val\.parquet"):
        task.evaluation_examples("test")
    pandas.DataFrame({"sentence": texts(40, 0)}).to_parquet(tmp_path / "val.parquet")
    with pytest.raises(UserError, match=r"no column 'text'; it has: sentence"):
        task.evaluation_examples("test")
    (tmp_path / "val_dense.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"cannot load split 'val_dense'.*task\.source=generator"):
        task.evaluation_examples("ood_dense")


def test_flip_flop_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[str, str, bool]] = []

    def load_dataset(path: str, name: None, split: str, **_: Any) -> Any:
        asked.append((path, split, datasets.config.HF_HUB_OFFLINE))
        return datasets.Dataset.from_dict({"text": texts(40, 0)})

    before = datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for reachable in (True, False):  # not reachable: what an earlier run downloaded
        monkeypatch.setattr(hub, "is_reachable", lambda url, reachable=reachable: reachable)
        task = from_files("hub")
        first, second = (joined(task, task.evaluation_examples(split)) for split in ("test", "validation"))
        assert first + second == texts(40, 0)
        task.evaluation_examples("ood_dense")
    expected = [("synthseq/flipflop", "val"), ("synthseq/flipflop", "val_dense")]
    assert asked == [(*call, before) for call in expected] + [(*call, True) for call in expected]
    assert before == datasets.config.HF_HUB_OFFLINE


def test_flip_flop_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nothing listens there
    assert not hub.is_reachable(hub.endpoint())
    monkeypatch.setattr(flip_flop_files, "DATASET", "synthseq/never-downloaded")
    with pytest.raises(
        UserError,
        match=r"task\.source=hub: http://127\.0\.0\.1:1 cannot be reached.*task\.source=generator.*task\.source=/path",
    ):
        configured(FlipFlop, source="hub").evaluation_examples("test")


def test_flip_flop_refuses_settings_that_files_would_ignore(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.splits\.ood_sparse\.p_ignore=0\.9 .*0\.98"):
        configured(FlipFlop, source="hub", splits={"ood_sparse": {"p_ignore": 0.9}})
    with pytest.raises(UserError, match=r"task\.p_ignore=0\.5 "):
        configured(FlipFlop, source="hub", p_ignore=0.5)
    with pytest.raises(UserError, match="Did you mean 'ood_sparse'"):
        configured(FlipFlop, source=str(tmp_path), splits={"sparse": {}})


def test_files_are_opened_once(released: tuple[Path, dict[str, list[str]]], tmp_path: Path) -> None:
    files = FlipFlopFiles(str(released[0]))
    files.first("test", 1, "task.num_test")
    opened = files._opened["val"]
    files.first("validation", 1, "task.num_validation")
    assert files._opened["val"] is opened


def test_other_files_are_other_data(released: tuple[Path, dict[str, list[str]]], tmp_path: Path) -> None:
    before = from_files(released[0]).fingerprint
    copied = shutil.copytree(released[0], tmp_path / "copy")
    assert from_files(copied).fingerprint == before != configured(FlipFlop).fingerprint
    (copied / "data" / "val-00000-of-00001.parquet").write_bytes(b"other")
    assert from_files(copied).fingerprint != before
