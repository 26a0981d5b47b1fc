"""What several test files share: composed configurations, and the names of every encoding and every task.

What takes long to import is imported where it is used: the process that hands out tests to the others needs none of it.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

# Before Triton is imported: its kernels run on the CPU, in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from probe_server import Server

    from cope.model.transformer import Transformer
    from cope.positions.base import ModelShape

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"

# Whatever has a file in configs/ is tested: a new encoding or task needs no list to be extended.
ENCODINGS = sorted(path.stem for path in (CONFIGS / "pe").glob("*.yaml"))
TASKS = sorted(path.stem for path in (CONFIGS / "task").glob("*.yaml"))
GROUPS = {path.name for path in CONFIGS.iterdir() if path.is_dir()}

SLOW_ALONE = ("test_run_process", "test_command_line", "test_wandb")
texts: Path  # where corpora are prepared, once a session has begun
composed_before: Path | None = None  # what Hydra made of the configs, for all processes of a session that has begun

# Of tests with jobs: pytest's process has a server for them, which imports everything once.
WITH_JOBS = pytest.mark.xdist_group("jobs")

# Garbage is seldom looked for: to look among what imports and collection make takes a tenth of the time of all tests.
gc.set_threshold(50_000, 10, 10)

# No deadline, since machines differ; and the same examples everywhere, so that a red test is red on the next machine too.
settings.register_profile("cope", deadline=None, derandomize=True)
settings.load_profile("cope")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What pytest-xdist keeps in one process: a file, for its tests share what they have made, and all that read the tables.

    Tests that start processes of their own share nothing, unless they say what. They come first, since they take longest.
    """
    for item in items:
        if item.path.stem in SLOW_ALONE or item.get_closest_marker("xdist_group"):
            continue
        reads_tables = any(getattr(found, "__module__", None) == "plans" for found in vars(item.module).values())  # type: ignore[attr-defined]
        item.add_marker(pytest.mark.xdist_group("tables" if reads_tables else item.path.stem))
    items.sort(key=lambda item: item.path.stem not in SLOW_ALONE)


def pytest_collection_finish() -> None:
    """One thread, since the tensors here are too small to be shared out; and nothing that is there already becomes garbage."""
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    parse_each_yaml_once()
    put_files_together_once()
    seed_no_other_devices()


def parse_each_yaml_once() -> None:
    """Hydra reads some fifteen files for each composition, its own among them; to parse them is a quarter of its time."""
    from omegaconf import OmegaConf

    load = OmegaConf.load
    kept: dict[str, bytes] = {}

    def load_kept(file: Any) -> Any:
        text = Path(file).read_text("utf-8") if isinstance(file, str | Path) else file.read()
        if text not in kept:
            if not isinstance(file, str | Path):
                file.seek(0)
            kept[text] = pickle.dumps(load(file))
        return pickle.loads(kept[text])

    OmegaConf.load = staticmethod(load_kept)


def put_files_together_once() -> None:
    """Which files a choice means, and what they come to, is found once in a process: most of what Hydra does.

    What is typed besides is set by Hydra each time. Of this project's configs alone: those that a test makes may change.
    """
    from hydra._internal import config_loader_impl as hydra
    from hydra._internal.config_repository import ConfigRepository

    find, put_together = hydra.create_defaults_list, hydra.ConfigLoaderImpl._compose_config_from_defaults_list
    found: dict[Any, Any] = {}
    made: dict[Any, bytes] = {}

    def only_ours(repo: Any) -> bool:
        return [source.path for source in repo.get_sources() if source.scheme() == "file"] == [str(CONFIGS)]

    def find_once(repo: Any, config_name: str, overrides_list: list[Any], **others: Any) -> Any:
        choices = [override for override in overrides_list if repo.group_exists(override.key_or_group)]
        if not only_ours(repo) or any(
            override.is_sweep_override() or isinstance(override.value(), dict) for override in choices
        ):
            return find(repo=repo, config_name=config_name, overrides_list=overrides_list, **others)
        key = (config_name, *(override.input_line for override in choices), *others.items())
        if key not in found:
            found[key] = find(repo=repo, config_name=config_name, overrides_list=choices, **others)
        settings = [override for override in overrides_list if override not in choices and not override.is_sweep_override()]
        return replace(found[key], config_overrides=settings)

    def put_together_once(self: Any, defaults: list[Any], repo: Any) -> Any:
        key = repr(defaults)
        if not only_ours(repo):
            return put_together(self, defaults, repo)
        if key not in made:
            made[key] = pickle.dumps(put_together(self, defaults, repo))
        return pickle.loads(made[key])

    # Hydra copies what it looks for files in, and with it all of its own configs, before it reads anew where they are.
    ConfigRepository.__deepcopy__ = lambda self, memo: copy.copy(self)  # type: ignore[attr-defined]
    hydra.create_defaults_list = find_once
    hydra.ConfigLoaderImpl._compose_config_from_defaults_list = put_together_once  # type: ignore[method-assign]


def seed_no_other_devices() -> None:
    """Where there are none, PyTorch keeps each seed for them, with the stack it comes from: 2% of the time of all tests."""
    import torch

    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            device.manual_seed_all = lambda seed: None


@pytest.fixture(params=ENCODINGS)
def encoding_name(request: pytest.FixtureRequest) -> str:
    """Every choice of ``pe``."""
    return str(request.param)


@pytest.fixture(params=TASKS)
def task_name(request: pytest.FixtureRequest) -> str:
    """Every choice of ``task``."""
    return str(request.param)


@cache
def _composed(overrides: tuple[str, ...]) -> bytes:
    """What ``train.py`` would see, pickled: to copy a config takes seven times as long.

    To put files together takes Hydra most of a tenth of a second, to change settings little.
    """
    from hydra import compose, initialize_config_dir
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from cope.files import write_atomically

    choices = tuple(override for override in overrides if override.lstrip("+~").partition("=")[0].split("/")[0] in GROUPS)
    if choices == overrides:
        complete = ["scale=smoke", "logger=none", *overrides]
        kept = composed_before / hashlib.sha256(repr(complete).encode()).hexdigest() if composed_before else None
        if kept and kept.exists():
            return kept.read_bytes()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            found = pickle.dumps(compose("train", overrides=complete))
        if kept:
            write_atomically(kept, lambda file: file.write(found))
        return found
    config = pickle.loads(_composed(choices))
    settings = [override for override in overrides if override not in choices]
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(settings), config)
    return pickle.dumps(config)


def make_encoding(name: str, shape: ModelShape, **changes: Any) -> Any:
    """The encoding ``pe=name``, with ``changes``, for a model of another shape than the recipe's."""
    from cope.building import build

    config = pickle.loads(_composed((f"pe={name}",)))
    for key, value in changes.items():
        config.pe[key] = value
    return build(config.pe, "pe", shape=shape)


@pytest.fixture(scope="session", autouse=True)
def _texts_are_prepared_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All tests have one ``data_dir``, those of other processes too: to split a corpus into tokens takes a second."""
    from cope.files import cache_folder
    from cope.sweep import rows

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    global texts, composed_before
    texts, composed_before = shared / "texts", shared / "composed"
    # Rows of tables below folders of tests are nothing to the user's.
    rows.cache_folder = lambda: cache_folder() if "COPE_CACHE" in os.environ else shared


@pytest.fixture(autouse=True)
def _nothing_was_left_out_before() -> None:
    """It is said once of each path, and a test may have the folder that one before it had."""
    from cope import files

    files._left_out.clear()


def composed_in(folder: Path, *overrides: str) -> DictConfig:
    """What ``train.py`` would see, at scale=smoke, with its runs under ``folder`` and the texts that all tests share."""
    # These are set afterwards, so that one answer of Hydra's serves several tests.
    config: DictConfig = pickle.loads(_composed(overrides))
    config.output_dir, config.data_dir = str(folder / "outputs"), str(texts)
    return config


@pytest.fixture(name="compose")
def compose_fixture(tmp_path: Path) -> Callable[..., DictConfig]:
    """``compose(*overrides)``: :func:`composed_in` the test's own folder."""
    return partial(composed_in, tmp_path)


@pytest.fixture
def make_model(compose: Callable[..., DictConfig]) -> Callable[..., Transformer]:
    """``make_model(*overrides, seed=1)``: the model that ``train.py`` would build for task=counting, in evaluation mode."""
    from cope.building import build
    from cope.run.model_building import build_model

    def made(*overrides: str, seed: int = 1) -> Transformer:
        config = compose("task=counting", *overrides)
        config.seed = seed
        task = build(config.task, "task")
        return build_model(config, task).eval()

    return made


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from probe_server import Server

    from cope.probe.models import KEY_VARIABLE

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    running = Server()
    yield running
    running.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which are noted instead of made."""
    from openai import _base_client

    noted: list[float] = []
    monkeypatch.setattr(_base_client, "time", SimpleNamespace(**{**vars(time), "sleep": noted.append}))
    return noted


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without pictures, which take most of their time."""
    monkeypatch.setattr("cope.report.page._draw", lambda *_: [])
