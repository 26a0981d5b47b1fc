"""A run is what its settings mean, however they were typed, and is found again where an earlier version put it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from omegaconf import DictConfig, OmegaConf
from runs import folder_of, run

from cope.run.configuration import _hash, _part_of_the_run, definition, resolved, run_folder

Compose = Callable[..., DictConfig]
PUBLISHED = [*(ROOT / "docs").glob("*/runs/*/*/*/seed=*/config.yaml"), *(ROOT / "docs").glob("*/runs/*/*/*/seed=*/result.json")]


@pytest.mark.parametrize(
    ("typed", "same"),
    [
        ("model.dropout=0", "model.dropout=0.0"),
        ("model.dropout=-0.0", "model.dropout=0.0"),
        ("model.dropout='0'", "model.dropout=0.0"),
        ("model.dim='16'", "model.dim=16"),
        ("model.biases='yes'", "model.biases=true"),
        ("optimizer.lr='1e-3'", "optimizer.lr=0.001"),
        ("optimizer.clip_norm=1", "optimizer.clip_norm=1.0"),
        ("recipe.lr='1e-3'", "recipe.lr=0.001"),
        ("trainer.compile=0", "trainer.compile=false"),
        ("trainer.steps='4'", "trainer.steps=4"),
        ("task.num_train='64'", "task.num_train=64"),
        ("task.weights.pass=50.0", "task.weights.pass=50"),
        ("task.splits.ood_longer.pass_weight=100.0", "task.splits.ood_longer.pass_weight=100"),
        ("pe.num_positions='16'", "pe.num_positions=16"),
        ("pe.init_std=1", "pe.init_std=1.0"),
        ("pe.name=1", "pe.name='1'"),
        ("~model.dropout", "model.dropout=0.0"),
        ("~task.splits.test", "task.splits.test={}"),
    ],
)
def test_spellings_of_one_setting_are_one_run(compose: Compose, typed: str, same: str) -> None:
    first, second = compose("pe=cope", typed), compose("pe=cope", same)
    assert definition(first) == definition(second)
    assert folder_of(first).path == folder_of(second).path
    assert folder_of(first).path != folder_of(compose("pe=cope", "seed=2")).path


@pytest.mark.parametrize(
    ("typed", "same"),
    [
        ("task.stride='64'", "task.stride=64"),
        ("task.tokenizer.vocab_size='512'", "task.tokenizer.vocab_size=512"),
        ("corpus.test_fraction='0.1'", "corpus.test_fraction=0.1"),
        ("task.splits.longer_2.context_factor=2.0", "task.splits.longer_2.context_factor=2"),
    ],
)
def test_spellings_of_one_setting_of_a_language_task(compose: Compose, typed: str, same: str) -> None:
    first, second = compose("task=wikipedia", "task.context=128", typed), compose("task=wikipedia", "task.context=128", same)
    assert folder_of(first).path == folder_of(second).path


@pytest.mark.parametrize("different", ["model.dropout=0.1", "optimizer.lr=0.5", "task.weights.pass=50.5", "pe.init_std=2"])
def test_another_value_is_another_run(compose: Compose, different: str) -> None:
    assert folder_of(compose("pe=cope", different)).path != folder_of(compose("pe=cope")).path


def test_every_published_run_keeps_its_name() -> None:
    configs = {path.parent: path.read_text() for path in PUBLISHED if path.suffix == ".yaml"}
    for path in PUBLISHED:
        if path.parent not in configs:
            configs[path.parent] = json.dumps(json.loads(path.read_text())["config"])  # which is YAML
    assert len(configs) > 40
    names = {text: _hash(definition(OmegaConf.create(text))) for text in set(configs.values())}  # many seeds share one
    assert {folder: names[text] for folder, text in configs.items()} == {folder: folder.parts[-2] for folder in configs}


def test_a_folder_that_was_named_for_a_spelling_is_found(compose: Compose) -> None:
    short = ("pe=none", "trainer.steps=2", "trainer.eval_every=2", "task.num_validation=16", "task.num_test=16")
    typed = compose(*short, "model.dropout=0")
    folder, result = run(typed)
    old = folder.path.parents[1] / _hash(_part_of_the_run(resolved(typed))) / folder.path.name
    assert old != folder.path
    old.parent.mkdir()
    folder.path.rename(old)
    for spelling in ("model.dropout=0", "model.dropout=0.0"):
        found, shown = run(compose(*short, spelling))
        assert found.path == old
        assert shown == result
    assert run_folder(compose(*short), seed=2).path.parent == folder.path.parent  # which has no run yet


def test_a_folder_whose_settings_were_changed_by_hand_is_no_other_runs(compose: Compose, tmp_path: Path) -> None:
    config = compose("pe=none", "optimizer.lr=0.5")
    folder = folder_of(config)
    changed = resolved(config) | {"optimizer": resolved(config)["optimizer"] | {"lr": 0.25}}
    folder.config.parent.mkdir(parents=True)
    folder.config.write_text(yaml.safe_dump(changed))
    assert folder_of(compose("pe=none", "optimizer.lr=0.25")).path != folder.path
