"""What rows compose to is kept between commands, and never told of anything else than what is there now."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import CONFIGS, composed_in
from omegaconf import DictConfig

from cope.errors import UserError
from cope.sweep import rows
from cope.sweep.plan import composed, read_plan
from cope.sweep.rows import Row, kept_rows

OVERRIDES = ("task=counting", "scale=smoke", "logger=none")


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the configs, and an empty cache."""
    monkeypatch.setenv("COPE_CACHE", str(tmp_path / "cache"))
    copied = tmp_path / "configs"
    shutil.copytree(CONFIGS, copied)
    next_command()
    yield copied
    next_command()


def next_command() -> None:
    """Forget what this process knows."""
    for known in (rows._read, rows._state, composed):
        known.cache_clear()


def ready(configs: Path, overrides: tuple[str, ...]) -> DictConfig:
    """What other tests compose as well, where it does not matter which configs it is of."""
    return composed_in(configs.parent, *(override for override in overrides if not override.startswith("hydra")))


def row(configs: Path, *overrides: str, compose: Callable[[Path, tuple[str, ...]], DictConfig] = ready) -> Row:
    with kept_rows(configs, lambda all_of_them: compose(configs, all_of_them)) as row_of:
        return row_of((*OVERRIDES, *overrides))


def not_again(configs: Path, overrides: tuple[str, ...]) -> DictConfig:
    raise AssertionError(f"{overrides} were composed")


def test_the_next_command_composes_nothing_and_has_the_same_runs(configs, monkeypatch):
    first = read_plan(configs, "table4", ["scale=smoke"], (1, 2))
    next_command()
    monkeypatch.setattr("cope.sweep.plan.composed", not_again)
    again = read_plan(configs, "table4", ["scale=smoke"], (1, 2))
    assert [(run.overrides, run.folder.path) for run in again.runs] == [(run.overrides, run.folder.path) for run in first.runs]
    assert len({run.folder.path for run in again.runs}) == len(again.runs)


def test_what_was_kept_of_other_configs_is_not_taken(configs):
    before = row(configs, "pe=alibi", compose=composed)
    recipe = configs / "recipe" / "smoke" / "counting.yaml"
    recipe.write_text(re.sub(r"\bsteps: \d+", "steps: 7", recipe.read_text()))
    next_command()
    after = row(configs, "pe=alibi", compose=composed)
    assert after.defined["trainer"]["steps"] == 7 != before.defined["trainer"]["steps"]
    assert after.folder(1).path != before.folder(1).path


def test_what_was_kept_by_other_code_is_not_taken(configs, monkeypatch):
    row(configs)
    next_command()
    monkeypatch.setattr(rows, "version", lambda package: "0.0")
    with pytest.raises(AssertionError, match="were composed"):
        row(configs, compose=not_again)


@pytest.mark.parametrize(
    "override", ["hydra.searchpath=[]", "hydra/launcher=basic", "output_dir=${oc.env:HOME}", "data_dir=${user_path:here}"]
)
def test_rows_with_something_from_outside_are_composed_each_time(configs, override):
    row(configs, override)
    next_command()
    with pytest.raises(AssertionError, match="were composed"):
        row(configs, override, compose=not_again)
    row(configs, "trainer.batch_size=${trainer.log_every}")  # from the config itself
    next_command()
    row(configs, "trainer.batch_size=${trainer.log_every}", compose=not_again)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"state": 1}', "rows"])
def test_a_damaged_file_is_written_anew(configs, damage):
    expected = row(configs)
    (file,) = (configs.parent / "cache").glob("rows-*.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"rows": {key: 5 for key in content["rows"]}}) if damage == "rows" else damage)
    next_command()
    assert row(configs) == expected
    next_command()
    assert row(configs, compose=not_again) == expected


def test_without_a_folder_to_keep_them_in_they_are_composed(configs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COPE_CACHE", str(tmp_path / "file"))
    assert row(configs).scale == "smoke"


def test_what_is_wrong_is_not_kept(configs):
    for _ in range(2):
        next_command()
        with pytest.raises(UserError, match="seed=x has the wrong type"):
            row(configs, "seed=x")
    assert not (configs.parent / "cache").exists()
