"""One rule for every path that is typed: ``~`` is the home folder; and what Hydra's grammar refuses comes with the quotes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import CONFIGS
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cope.cli import read_settings
from cope.errors import UserError
from cope.files import user_path
from cope.overrides import Composer
from cope.run.configuration import check_top_level, run_folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@dataclass(frozen=True)
class Settings:
    run: Path


@pytest.mark.parametrize(("typed", "inside"), [("~", ""), ("~/x", "x"), ("~/ä b=c/x", "ä b=c/x")])
def test_a_tilde_is_the_home_folder(typed: str, inside: str, home: Path, compose: Callable[..., DictConfig]) -> None:
    assert user_path("key", typed) == home / inside
    assert read_settings([f"run={typed}"], Settings, "").run == home / inside
    config = compose()
    config.output_dir = typed
    assert run_folder(config).path.parents[3] == home / inside


def test_a_sweep_makes_no_folder_of_that_name(home: Path) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=["output_dir='~/x'"], return_hydra_config=True)
    assert OmegaConf.select(config, "hydra.sweep.dir") == str(home / "x")


@pytest.mark.parametrize("typed", ["~no-user-of-that-name/x", "", " "])
def test_no_such_home(typed: str, compose: Callable[..., DictConfig]) -> None:
    for key in ("output_dir", "data_dir"):
        config = compose()
        config[key] = typed
        with pytest.raises(UserError, match=rf"^{key}="):
            check_top_level(config)
    with pytest.raises(UserError, match=r"^run="):
        read_settings([f"run={typed}"], Settings, "")


@pytest.mark.parametrize("value", ["~/x", "/tmp/ü", "/tmp/a=b", "/tmp/(x)", "{x", "a;b"])
@pytest.mark.parametrize("key", ["output_dir", "data_dir", "+corpus.train"])
def test_values_that_need_quotes_are_told_with_them(key: str, value: str) -> None:
    (problem,) = Composer(CONFIGS).problems(["pe=none", f"{key}={value}"])
    assert problem.startswith(f"{key}={value} cannot be read") and problem.endswith(f"\"{key}='{value}'\"")


@pytest.mark.parametrize("argument", ["output_dir='~/x'", "output_dir=/tmp/x", "seed=1", "output_dir='/tmp/ü'"])
def test_values_that_need_none_are_left_alone(argument: str) -> None:
    assert Composer(CONFIGS).problems([argument]) == []
