"""Building the native kernel: what is said when it cannot be built, and that it is built once."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from kernel_marks import NEEDS_COMPILER

from cope import cope_attention, functional
from cope.errors import UserError
from cope.files import cache_folder
from cope.kernels import native
from cope.kernels.native import build
from cope.kernels.native.build import CannotBuild, library


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# A library that can be loaded, compiled in a moment: what a compiler that is a shell script makes.
COMPILE_NOTHING = 'echo "extern \\"C\\" void cope_backward() {}" | c++ -shared -fPIC -x c++ - -o "$output"'


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
    make_compiler(tmp_path, monkeypatch, "exit 1")
    with pytest.raises(CannotBuild, match=r"cannot be kept in .*file.*set COPE_CACHE"):
        library()


@NEEDS_COMPILER
def test_a_compiler_without_openmp_still_builds(cache, tmp_path, monkeypatch, caplog):
    make_compiler(
        tmp_path, monkeypatch, f"[ -e {tmp_path}/tried ] && {COMPILE_NOTHING} && exit; touch {tmp_path}/tried; exit 1"
    )
    assert library().exists()
    assert "runs on one thread" in caplog.text


@NEEDS_COMPILER
def test_several_at_once_compile_once_and_a_change_compiles_anew(cache, tmp_path, monkeypatch):
    make_compiler(tmp_path, monkeypatch, f"echo ran >> {tmp_path}/runs; sleep 0.2; {COMPILE_NOTHING}")
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


@NEEDS_COMPILER
@pytest.mark.parametrize("damage", ["cut short", "empty", "another", "no checksum"])
def test_a_damaged_library_is_compiled_again(cache, tmp_path, monkeypatch, damage):
    make_compiler(tmp_path, monkeypatch, f"echo ran >> {tmp_path}/runs; {COMPILE_NOTHING}")
    path = library()
    whole = path.read_bytes()
    assert library() == path
    assert (tmp_path / "runs").read_text().count("ran") == 1
    if damage == "no checksum":
        path.with_suffix(".sha256").unlink()
    else:
        path.write_bytes({"cut short": whole[: len(whole) // 2], "empty": b"", "another": whole[:-1] + b"x"}[damage])
    assert library() == path
    assert path.read_bytes() == whole
    assert (tmp_path / "runs").read_text().count("ran") == 2


@NEEDS_COMPILER
def test_a_cache_that_cannot_be_written_serves_what_is_in_it(cache, monkeypatch, tmp_path):
    make_compiler(tmp_path, monkeypatch, COMPILE_NOTHING)
    path = library()
    monkeypatch.setattr(build, "lock", lambda *_, **__: pytest.fail("a library that is whole needs no lock"))
    assert library() == path


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("'", "CXX=' cannot be read as a command .*No closing quotation"),
        ("true", "what `true` compiled cannot be loaded .*is that a C.. compiler"),
        ("false", "`false --version` failed .*is that a C.. compiler"),
        ("cat", "the compiler failed .*all it said is in"),
        ("/", "CXX=/ was not found"),
    ],
)
def test_a_strange_compiler_is_named(cache, monkeypatch, compiler, said):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(CannotBuild, match=said):
        library()
    assert not list(cache.glob("*.so"))


def test_compilers_that_cannot_run_or_make_something_else_are_named(cache, tmp_path, monkeypatch):
    no_program = tmp_path / "no-program"
    no_program.write_bytes(b"\x7fELF, but not really")
    no_program.chmod(0o755)
    monkeypatch.setenv("CXX", str(no_program))
    with pytest.raises(CannotBuild, match=r"no-program` cannot be run \(Exec format error\)"):
        library()
    make_compiler(tmp_path, monkeypatch, r"printf '\377 error \377' >&2; exit 1")  # not UTF-8
    with pytest.raises(CannotBuild, match="the compiler failed"):
        library()
    for script in ('touch "$output"', 'echo text > "$output"', f"cat {no_program} > $output"):
        make_compiler(tmp_path, monkeypatch, script)
        with pytest.raises(CannotBuild, match="compiled cannot be loaded"):
            library()
    assert not list(cache.glob("*.so"))


def test_the_cache_is_where_its_variables_say(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for value, wanted in (("~/kept", "kept"), ("", ".cache/cope-lab"), (str(tmp_path / "there"), "there")):
        monkeypatch.setenv("COPE_CACHE", value)
        assert cache_folder() == tmp_path / wanted
    monkeypatch.setattr(Path, "expanduser", lambda self: Path.home())
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory.")))
    monkeypatch.setenv("COPE_CACHE", "")
    with pytest.raises(CannotBuild, match=r"no home folder .*set COPE_CACHE"):
        library()


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
