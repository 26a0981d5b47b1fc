"""Files of other people's making: named, nothing in them executed, nothing else touched."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from runs import completed, folder_of, release, run

from cope.building import build, built_as_declared
from cope.errors import UserError
from cope.run.checkpoint import load_checkpoint
from cope.run.folder import RunFolder

Compose = Callable[..., DictConfig]
SMALL = ["pe=none", "trainer.steps=2", "trainer.eval_every=2"]


class Payload:
    """A pickle that leaves a sign when it is read."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.sign,))


@pytest.mark.parametrize(
    "target",
    ["os.system", "subprocess.Popen", "builtins.eval", "pathlib.Path", "hydra.utils.instantiate", "cope.", "", ".cope.x"],
)
@pytest.mark.parametrize("key", ["pe", "task", "logger"])
def test_a_configuration_cannot_name_what_it_likes(target: str, key: str) -> None:
    node = OmegaConf.create({"_target_": target, "args": "true"})
    with pytest.raises(UserError, match=rf"{key}\._target_="):
        build(node, key)
    assert built_as_declared({"_target_": target}) == {"_target_": target}


def test_a_package_is_let_in_by_its_whole_name(monkeypatch: pytest.MonkeyPatch) -> None:
    node = OmegaConf.create({"_target_": "pathlib.PurePath"})
    monkeypatch.setenv("COPE_PACKAGES", "path, pathlib2")
    with pytest.raises(UserError, match="COPE_PACKAGES"):
        build(node, "pe")
    monkeypatch.setenv("COPE_PACKAGES", "other, pathlib")
    build(node, "pe")


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path, compose: Compose) -> None:
    config = compose(*SMALL)
    folder, _ = run(config)
    folder.result.unlink()
    kept = folder.best_checkpoint.read_bytes()
    sign = tmp_path / "sign"
    for content in (Payload(sign), {"model": Payload(sign), "step": 1, "code": "", "data": ""}):
        torch.save(content, folder.last_checkpoint)
        with pytest.raises(UserError, match=r"last\.pt cannot be read"):
            run(config)
        folder.last_checkpoint.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=r"last\.pt cannot be read"):
            load_checkpoint(folder.last_checkpoint)
    assert not sign.exists()
    assert folder.best_checkpoint.read_bytes() == kept


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 5000, "-1", '"0"', "[0]", "null"])
@pytest.mark.parametrize("key", ["error", "time_s"])
def test_a_result_with_impossible_numbers_is_damaged(tmp_path: Path, number: str, key: str) -> None:
    folder = RunFolder(tmp_path)
    text = completed({"splits": {"test": {"error": 0.125}}, "time_s": 0.125})
    folder.result.write_text(text.replace(f'"{key}": 0.125', f'"{key}": {number}'))
    assert folder.result.read_text() != text
    with pytest.raises(UserError, match=r"result\.json"):
        folder.read_result()
    assert folder.sound_result() is None


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${oc.decode:'1'}", "${seed}"])
def test_a_runs_settings_hold_no_instructions(tmp_path: Path, text: str) -> None:
    """What a run writes is resolved; an interpolation would read the environment of whoever looks at it."""
    folder = RunFolder(tmp_path)
    folder.config.write_text(json.dumps({"seed": 1, "pe": {"name": [text]}}))
    with pytest.raises(UserError, match=r"config\.yaml .*pe\.name"):
        folder.read_config()


def test_links_out_of_a_runs_folder_change_nothing_there(tmp_path: Path, compose: Compose) -> None:
    outside = tmp_path / "precious.txt"
    outside.write_text("precious")
    config = compose(*SMALL)
    folder = folder_of(config)
    folder.path.mkdir(parents=True)
    for path in (folder.metrics, folder.path / ".lock"):
        path.symlink_to(outside)
    try:
        run(config)
    except UserError:
        pass
    finally:
        release(folder)
    assert outside.read_text() == "precious"


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "checkpoints/last.pt", "checkpoints/best.pt", "checkpoints"])
def test_starting_over_deletes_nothing_behind_a_link(tmp_path: Path, compose: Compose, name: str) -> None:
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "text").write_text("precious")
    config = compose(*SMALL)
    folder = folder_of(config)
    link = folder.path / name
    link.parent.mkdir(parents=True)
    link.symlink_to(outside if name == "checkpoints" else outside / "text")
    config.force = True
    with suppress(UserError):
        run(config)
    release(folder)
    assert (outside / "text").read_text() == "precious"  # new checkpoints may go where the user's link leads


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(
    tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = tmp_path / "bomb.parquet"
    text = "a" * 2**20
    pq.write_table(pa.table({"text": pa.array([text] * 64)}), bomb, use_dictionary=False, compression="zstd")
    assert bomb.stat().st_size < 2**20
    monkeypatch.setattr("cope.corpora.rows.machine_bytes", lambda: 16 * 2**20)
    config = compose(
        "task=wikipedia", "corpus=files", f"corpus.train={bomb}", f"corpus.validation={bomb}", f"corpus.test={bomb}"
    )
    with pytest.raises(UserError, match=r"bomb\.parquet .*unpacks to"):
        run(config)


def test_arrays_of_objects_are_not_drawn(tmp_path: Path, compose: Compose) -> None:
    from cope.report.figures import draw_run

    folder, _ = run(compose("pe=cope", *SMALL[1:]))
    sign = tmp_path / "sign"
    np.savez(folder.figures / "gates.npz", gates=np.array([Payload(sign)], dtype=object))
    with suppress(UserError, ValueError):
        draw_run(folder)
    assert not sign.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no arrays", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00", pickle.dumps([1]), b"\x89PNG\r\n\x1a\n"],
)
def test_damaged_arrays_of_gates_are_named(tmp_path: Path, content: bytes) -> None:
    from cope.report.figures import gates_figure

    folder = RunFolder(tmp_path)
    folder.figures.mkdir()
    folder.gates.write_bytes(content)
    with pytest.raises(UserError, match=r"gates\.npz cannot be read .*delete it.*force=true"):
        gates_figure(folder)


@pytest.mark.slow
def test_nothing_is_asked_of_a_network_on_import() -> None:
    program = """
import importlib, pkgutil, socket
def refuse(*_): raise AssertionError("a connection on import")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import cope
for module in pkgutil.walk_packages(cope.__path__, "cope."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print("imported")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr
