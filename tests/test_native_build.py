"""Building the native kernel: what is said when it cannot be built, and that it is built once."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cope import cope_attention, functional
from cope.errors import UserError
from cope.kernels import native
from cope.kernels.native import build
from cope.kernels.native.build import CannotBuild, library


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A compiler that is a shell script: says its version, and does ``script`` for the rest; $output is what to write."""
    compiler = folder / "compiler"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo 1.0; exit; }\n'
        f'while [ $# -gt 0 ]; do [ "$1" = -o ] && output=$2; shift; done\n{script}\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))


def test_no_compiler_says_what_was_looked_for_and_how_to_get_one(cache, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotBuild, match=r"looked for \$CXX, c\+\+, g\+\+, clang\+\+\); install one .*apt install g\+\+"):
        library()
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(CannotBuild, match="CXX=no-such-compiler -O2 was not found"):
        library()


def test_a_failing_compiler_is_quoted_and_leaves_no_library(cache, tmp_path, monkeypatch):
    make_compiler(tmp_path, monkeypatch, "echo 'attention.cpp:1: error: no such luck' >&2; exit 1")
    with pytest.raises(CannotBuild, match=r"no such luck.*all it said is in"):
        library()
    assert not list(cache.glob("*.so"))
    assert "no such luck" in next(cache.glob("*.log")).read_text()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("COPE_CACHE", str(tmp_path / "file"))
    make_compiler(tmp_path, monkeypatch, 'touch "$output"')
    with pytest.raises(CannotBuild, match=r"cannot be kept in .*file.*set COPE_CACHE"):
        library()


def test_a_compiler_without_openmp_still_builds(cache, tmp_path, monkeypatch, caplog):
    make_compiler(tmp_path, monkeypatch, f'[ -e {tmp_path}/tried ] && touch "$output" && exit; touch {tmp_path}/tried; exit 1')
    assert library().exists()
    assert "runs on one thread" in caplog.text


def test_several_at_once_compile_once_and_a_change_compiles_anew(cache, tmp_path, monkeypatch):
    make_compiler(tmp_path, monkeypatch, f'echo ran >> {tmp_path}/runs; sleep 0.2; touch "$output"')
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: library(), range(4)))
    assert len(paths) == 1
    assert (tmp_path / "runs").read_text().count("ran") == 1
    assert library(extra_flags=("-g",)) not in paths
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "attention.cpp").write_text("// changed")
    monkeypatch.setattr(build, "SOURCES", sources)
    assert library() not in paths


def test_auto_falls_back_once_and_says_why(monkeypatch, caplog):
    monkeypatch.setattr(native, "missing", lambda device_type, dtype: "no compiler today")
    functional._choose_once.cache_clear()
    try:
        x, table = torch.randn(1, 1, 5, 4), torch.randn(3, 4)
        with caplog.at_level(logging.WARNING):
            found = cope_attention(x, x, x, table)
            cope_attention(x, x, x, table)
        assert torch.equal(found, cope_attention(x, x, x, table, backend="blockwise"))
        assert caplog.text.count("takes blockwise (plain PyTorch, slower), not native: no compiler today") == 1
        with pytest.raises(UserError, match="backend=native cannot be had: no compiler today"):
            cope_attention(x, x, x, table, backend="native")
    finally:
        functional._choose_once.cache_clear()
