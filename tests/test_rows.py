"""What rows compose to is kept between commands, and never told of anything else than what is there now."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CONFIGS, composed_in
from omegaconf import DictConfig

from cope.errors import UserError
from cope.sweep import plan, rows
from cope.sweep.plan import composed_now, read_plan
from cope.sweep.rows import Row, kept_rows

OVERRIDES = ("task=counting", "scale=smoke", "logger=none")
Compose = Callable[[Path, tuple[str, ...]], DictConfig]


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the configs, and an empty cache."""
    monkeypatch.setenv("COPE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(CONFIGS, tmp_path / "configs"))


def ready(configs: Path, overrides: tuple[str, ...]) -> DictConfig:
    """What other tests compose as well, where it does not matter which configs it is of."""
    config = composed_in(configs.parent, *(override for override in overrides if not override.startswith("hydra")))
    config.output_dir = "outputs"
    return config


def not_again(configs: Path, overrides: tuple[str, ...]) -> DictConfig:
    raise AssertionError(f"{overrides} were composed")


def row(configs: Path, *overrides: str, compose: Compose = ready) -> Row:
    """As a command has it."""
    with kept_rows(configs, lambda all_of_them: compose(configs, all_of_them)) as row_of:
        return row_of((*OVERRIDES, *overrides))


def is_kept(configs: Path, *overrides: str) -> bool:
    row(configs, *overrides)
    try:
        row(configs, *overrides, compose=not_again)
    except AssertionError:
        return False
    return True


def test_the_next_command_composes_nothing_and_has_the_same_runs(configs, monkeypatch):
    first = read_plan(configs, "table4", ["scale=smoke"], (1, 2))
    monkeypatch.setattr(plan, "composed_now", not_again)
    again = read_plan(configs, "table4", ["scale=smoke"], (1, 2))
    assert [(run.overrides, run.folder.path) for run in again.runs] == [(run.overrides, run.folder.path) for run in first.runs]
    assert len({run.folder.path for run in again.runs}) == len(again.runs)


def test_files_are_put_together_once_for_rows_that_differ_in_settings(configs):
    of_rows = [("pe=cope", f"pe.num_positions={number}", "output_dir=elsewhere", "model.dropout=0.1") for number in (8, 9)]
    asked = []

    def noted(_: Path, overrides: tuple[str, ...]) -> DictConfig:
        asked.append(overrides)
        return composed_now(configs, overrides)

    found = [row(configs, *overrides, compose=noted) for overrides in of_rows]
    assert asked == [(*OVERRIDES, "pe=cope")]
    assert found == [Row.of(composed_now(configs, (*OVERRIDES, *overrides))) for overrides in of_rows]


@pytest.mark.parametrize("wrong", ["model.dept=2", "pe.num_positions=1,2"])
def test_what_cannot_be_set_is_told_of_the_whole_row(configs, wrong):
    with pytest.raises(UserError) as whole:
        composed_now(configs, (*OVERRIDES, wrong))
    with pytest.raises(UserError, match=re.escape(str(whole.value))):
        row(configs, wrong, compose=composed_now)


@pytest.mark.parametrize("through_a_link", [False, True])
def test_what_was_kept_of_other_configs_is_not_taken(configs, through_a_link):
    if through_a_link:
        (configs / "recipe").rename(configs.parent / "elsewhere")
        (configs / "recipe").symlink_to(configs.parent / "elsewhere")
    before = row(configs, "pe=alibi", compose=composed_now)
    recipe = configs / "recipe" / "smoke" / "counting.yaml"
    recipe.write_text(re.sub(r"\bsteps: \d+", "steps: 7", recipe.read_text()))
    after = row(configs, "pe=alibi", compose=composed_now)
    assert after.defined["trainer"]["steps"] == 7 != before.defined["trainer"]["steps"]
    assert after.folder(1).path != before.folder(1).path


def test_what_is_composed_while_a_file_changes_is_not_kept(configs):
    def edited_meanwhile(_: Path, overrides: tuple[str, ...]) -> DictConfig:
        (configs / "plan.yaml").write_text(f"{(configs / 'plan.yaml').read_text()}\n")
        return ready(configs, overrides)

    row(configs, compose=edited_meanwhile)
    with pytest.raises(AssertionError, match="were composed"):
        row(configs, compose=not_again)


def test_what_was_kept_by_other_code_is_not_taken(configs, monkeypatch):
    assert is_kept(configs)
    monkeypatch.setattr(rows, "version", lambda package: "0.0")
    with pytest.raises(AssertionError, match="were composed"):
        row(configs, compose=not_again)


@pytest.mark.parametrize(
    "override",
    ["hydra.searchpath=[]", "hydra/launcher=basic", "output_dir=${oc.env:HOME}", "data_dir=${user_path:here}", "pe=../pe/rope",
     "+pe._target_=other.Encoding", r"output_dir=/tmp/a\${b}"],
)  # fmt: skip
def test_rows_that_may_hang_on_more_are_composed_each_time(configs, override):
    def composed_without_it(_: Path, overrides: tuple[str, ...]) -> DictConfig:
        return ready(configs, OVERRIDES)

    row(configs, override, compose=composed_without_it)
    with pytest.raises(AssertionError, match="were composed"):
        row(configs, override, compose=not_again)


def test_rows_that_hang_on_their_config_alone_are_kept(configs):
    assert is_kept(configs, "trainer.batch_size=${trainer.log_every}", "pe=cope", "pe.num_positions=4", "output_dir=/a/hydra_b")


@pytest.mark.parametrize(
    "added", ["\nhydra: {searchpath: [file:///tmp]}\n", "\ndata_dir: ${oc.env:HOME}\n", "\ndata_dir: ${ now:%Y }\n"]
)
def test_nothing_is_kept_of_configs_that_hang_on_more(configs, added):
    (configs / "train.yaml").write_text((configs / "train.yaml").read_text() + added)
    assert not is_kept(configs)


def test_nothing_is_kept_beside_other_packages(configs, monkeypatch):
    monkeypatch.setenv("COPE_PACKAGES", "mine")
    assert not is_kept(configs)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"state": 1}', "[" * 100_000, "rows"])
def test_a_damaged_file_is_written_anew(configs, damage):
    expected = row(configs)
    (file,) = (configs.parent / "cache").glob("rows-*.json")
    content = json.loads(file.read_text())
    file.write_text(
        json.dumps(content | {"rows": {key: {"defined": {}} for key in content["rows"]}}) if damage == "rows" else damage
    )
    assert row(configs) == expected
    assert row(configs, compose=not_again) == expected


def test_an_editors_lock_is_no_file(configs):
    (configs / "pe" / ".#cope.yaml").symlink_to("somebody@machine.4711")
    assert is_kept(configs)


@pytest.mark.parametrize("cache", ["file", "n" * 300])
def test_without_a_folder_to_keep_them_in_they_are_composed(configs, tmp_path, monkeypatch, cache):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COPE_CACHE", str(tmp_path / cache))
    assert row(configs).scale == "smoke"


def test_the_newest_are_kept(configs, monkeypatch):
    monkeypatch.setattr(rows, "MOST_KEPT", 2)
    for encoding in ("rope", "alibi", "cope"):
        row(configs, f"pe={encoding}")
    row(configs, "pe=cope", compose=not_again)
    row(configs, "pe=alibi", compose=not_again)
    with pytest.raises(AssertionError, match="were composed"):
        row(configs, "pe=rope", compose=not_again)


def test_what_is_wrong_is_not_kept(configs):
    for _ in range(2):
        with pytest.raises(UserError, match="seed=x has the wrong type"):
            row(configs, "seed=x")
    assert not (configs.parent / "cache").exists()
