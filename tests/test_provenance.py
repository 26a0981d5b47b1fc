"""What a result says of its code, its kernel and its commit is true, and changes when they do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from runs import run

from cope.kernels.triton import compiler_options
from cope.model.transformer import Transformer
from cope.run import provenance
from cope.run.provenance import PACKAGE, code_fingerprint, commit, kernel


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, whose fingerprint and commit are asked for afresh."""
    copy = tmp_path / "src" / "cope"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", copy)
    return copy


COUNTED = ("kernels/native/csrc/attention.cpp", "kernels/native/csrc/simd.h", "run/loop.py", "tasks/counting.py", "seeding.py")
NOT_COUNTED = ("report/claims.py", "report/claims.yaml", "heads/measure.py", "sweep/launcher.py", "cli.py")


def test_the_fingerprint_is_of_all_code_that_can_change_numbers(package: Path) -> None:
    for file in (*COUNTED, *NOT_COUNTED):
        before = code_fingerprint.__wrapped__()
        with (package / file).open("a") as opened:
            opened.write("\n")
        assert (code_fingerprint.__wrapped__() != before) == (file in COUNTED), file


def test_the_commit_says_whether_code_or_configs_were_changed(package: Path) -> None:
    root = package.parent.parent

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *who, *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    assert commit.__wrapped__() is None
    git("init", "-q")
    (root / "README").write_text("1")
    git("add", ".")
    git("commit", "-qm", "all")
    revision = git("rev-parse", "--short=12", "HEAD")
    (root / "notes").write_text("added outside of src and configs")
    assert commit.__wrapped__() == revision
    (root / "configs").mkdir()
    (root / "configs" / "new.yaml").write_text("added")
    assert commit.__wrapped__() == f"{revision}+changes"
    (root / "configs" / "new.yaml").unlink()
    (root / "README").write_text("2")
    assert commit.__wrapped__() == f"{revision}+changes"


def test_the_kernel_that_runs_is_named_with_its_compiler(make_model: Callable[..., Transformer]) -> None:
    def named(*overrides: str) -> str:
        return kernel(make_model(*overrides).encoding, torch.device("cpu"))

    assert named("pe=rope") == "PyTorch's scaled_dot_product_attention"
    assert named("pe=cope", "pe.backend=blockwise") == "blockwise"
    assert named("pe=cope").startswith("native (")
    assert named("pe=cope_alibi") == named("pe=cope_mlp") == "plain PyTorch"
    assert named("pe=cope_mlp", "pe.first_layer_only=true", "model.num_layers=2").startswith("native (")


def test_the_compiler_of_a_triton_kernel_is_named(make_model: Callable[..., Transformer]) -> None:
    triton = pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    encoding = make_model("pe=cope", "pe.backend=triton").encoding
    assert kernel(encoding, torch.device("cpu")) == f"triton (Triton {triton.__version__})"


def test_a_result_tells_the_options_of_kernels_that_were_tried(
    compose: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "kernel_options" not in run(compose("pe=none", "trainer.steps=1", "trainer.eval_every=1"))[1]
    taken = {"forward, bfloat16": "num_stages=2, maxnreg=128"}
    monkeypatch.setattr(compiler_options, "taken", lambda: taken)
    assert run(compose("pe=none", "trainer.steps=1", "trainer.eval_every=1", "seed=2"))[1]["kernel_options"] == taken


def test_a_finished_run_of_other_code_is_shown_with_a_word(
    compose: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = compose("pe=none", "trainer.steps=2", "trainer.eval_every=2")
    folder, result = run(config)
    assert (result["code"], result["kernel"]) == (code_fingerprint(), "PyTorch's scaled_dot_product_attention")
    with caplog.at_level("INFO"):
        assert run(config)[1] == result
    assert "This run is finished already; force=true" in caplog.text
    monkeypatch.setattr("cope.run.experiment.code_fingerprint", lambda: "other")
    with caplog.at_level("INFO"):
        assert run(config)[1] == folder.read_result()
    assert f"This run is finished already by other code (commit {result['commit']}); force=true" in caplog.text
