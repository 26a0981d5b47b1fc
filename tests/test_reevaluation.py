"""``evaluate.py``: a run's best checkpoint on its own splits, on changed ones, and on what it cannot do."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from conftest import ROOT, composed_in
from runs import run

from cope.errors import UserError
from cope.run.folder import RunFolder
from cope.run.reevaluation import reevaluate

sys.path.insert(0, str(ROOT))
import evaluate as command


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return run(composed_in(tmp_path_factory.mktemp("finished"), "pe=absolute", "task=counting"))


@pytest.fixture
def finished(kept, tmp_path):
    """A run's folder, the test's own, and its result."""
    folder, result = kept
    return RunFolder(shutil.copytree(folder.path, tmp_path / "run")), result


def test_unchanged_settings_give_the_result_of_the_run(finished):
    folder, result = finished
    scores, path = reevaluate(folder, [])
    assert scores["splits"] == {split: found for split, found in result["splits"].items() if split != "validation"}
    assert json.loads(path.read_text()) == scores


def test_a_run_of_an_earlier_version_is_scored_too(finished):
    folder, result = finished
    config = folder.read_config()
    folder.write_config(config | {"task": config["task"] | {"data_dir": "data"}})
    assert reevaluate(folder, [])[0]["splits"]["test"] == result["splits"]["test"]


def test_splits_can_be_added_changed_and_removed(finished):
    folder, result = finished
    scores, _ = reevaluate(folder, ["+task.splits.rare={pass_weight: 1000}", "task.num_test=32", "~task.splits.ood_longer"])
    assert list(scores["splits"]) == ["test", "ood_shorter", "ood_more_operations", "rare"]
    assert all(found["count"] == 32 for found in scores["splits"].values())
    assert scores["splits"]["rare"]["error"] < result["splits"]["ood_shorter"]["error"]  # hardly anything to count
    assert folder.read_result() == result


def test_a_split_longer_than_the_encoding_is_defined_for_is_left_out_and_named(finished):
    folder, result = finished
    scores, _ = reevaluate(folder, ["+task.splits.ood_longer.context=400"])
    assert scores["left_out"] == {"ood_longer": 399}  # tokens to be read: the last one is only predicted
    assert set(scores["splits"]) == set(result["splits"]) - {"validation", "ood_longer"}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("task.num_tests=1", "Did you mean 'task.num_test'"),
        ("trainer.steps=1", "trainer.steps cannot be changed after training"),
        ("task.name=1e400", "task.name cannot be changed after training"),
        ("task.context=400", "399 tokens is longer than the"),
        ("task.splits.ood_longr={}", "Did you mean 'task.splits.ood_longer'"),
        ("task.overflow=panic", "allowed: cut_left, drop, error"),
        ("task.max_value=100000000000", "task.max_value=100000000000 is out of range; allowed: 1 to 32000"),
        ("task.num_test=100000000000", "task.num_test=100000000000 examples"),
    ],
)
def test_what_cannot_be_done_is_said(finished, argument, said):
    with pytest.raises(UserError, match=said):
        command.main([f"run={finished[0].path}", argument])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.yaml"):
        command.main([f"run={tmp_path}"])
    with pytest.raises(UserError, match=r"run=\.\.\. must be given: python evaluate\.py"):
        command.main(["task.num_test=1"])
