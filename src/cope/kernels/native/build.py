"""Compiles the C++ kernel for this machine's processor, once: the library is kept in a cache and found there afterwards.

The cache is ``$COPE_CACHE``, or ``cope-lab`` in the user's cache folder (``$XDG_CACHE_HOME``, ``~/.cache``). A library's
name holds a hash of the sources, the compiler, its flags and the kind of processor, so a change of any of them makes another.
Its checksum is kept beside it: loading a library that was cut short would end the process, so such a one is compiled again.
Several processes may start at once: one compiles, the others wait for it. ``make native`` does it ahead of time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from cope.errors import UserError
from cope.files import cache_folder, lock

SOURCES = Path(__file__).parent / "csrc"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-Wno-psabi")
# By the name PyTorch gives the processor's vector instructions; others are left to the compiler (NEON on ARM, SSE2 on x86).
INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}

log = logging.getLogger(__name__)


class CannotBuild(RuntimeError):
    """Why there is no native kernel on this machine; one clause, to be read after a colon."""


def find_compiler() -> list[str]:
    """The command that compiles C++: ``$CXX`` if set, else the first of the usual names."""
    named = os.environ.get("CXX", "").strip()
    if named:
        try:
            command = shlex.split(named)
        except ValueError as error:
            raise CannotBuild(f"the compiler CXX={named} cannot be read as a command ({error})") from error
        if shutil.which(command[0]) is None:
            raise CannotBuild(f"the compiler CXX={named} was not found")
        return command
    for name in COMPILERS:
        if shutil.which(name) is not None:
            return [name]
    raise CannotBuild(
        f"no C++ compiler was found (looked for $CXX, {', '.join(COMPILERS)}); install one (Debian, Ubuntu: apt install g++; "
        "macOS: xcode-select --install), and it is used from the next run on"
    )


def library(instructions: str | None = None, extra_flags: tuple[str, ...] = ()) -> Path:
    """The path of the compiled kernel, which is compiled first if need be (a few seconds).

    Args:
        instructions: a key of ``INSTRUCTIONS``, or any other name for the portable kernel; by default what PyTorch finds on
            this processor (which ``ATEN_CPU_CAPABILITY`` overrides, for PyTorch's own kernels alike).
        extra_flags: further compiler flags, such as ``-fsanitize=address``.

    Raises:
        CannotBuild: there is no compiler, it fails, or the cache cannot be written.
    """
    instructions = torch.backends.cpu.get_cpu_capability() if instructions is None else instructions
    compiler = find_compiler()
    flags = [*FLAGS, *INSTRUCTIONS.get(instructions, ()), *extra_flags]
    version = _run([*compiler, "--version"])
    if version.returncode != 0:
        raise CannotBuild(f"`{shlex.join(compiler)} --version` failed ({_first_error(version)}): is that a C++ compiler?")
    sources = sorted(SOURCES.iterdir())
    identity = "\n".join([version.stdout, *compiler, *flags, platform.machine(), *(source.read_text() for source in sources)])
    name = f"native-{instructions.lower()}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    try:
        path = cache_folder() / name
    except UserError as error:
        raise CannotBuild(str(error)) from error
    try:
        if not _is_whole(path):
            with lock(path.with_suffix(".lock"), wait=f"another process is compiling {path}: waiting for it"):
                if not _is_whole(path):  # another process may have compiled it while this one waited
                    _compile(compiler, flags, path)
    except OSError as error:
        raise CannotBuild(
            f"the compiled kernel cannot be kept in {path.parent} ({error}); set COPE_CACHE to another folder"
        ) from error
    return path


def _compile(compiler: list[str], flags: list[str], path: Path) -> None:
    log.info("compiling the native kernel (a few seconds, once): %s", path)
    # Not a temporary folder of the system's choice: what a killed process left is found here, and nobody else works in it.
    folder = path.with_suffix(".partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        made = folder / path.name
        command = [*compiler, *flags, str(SOURCES / "attention.cpp"), "-o", str(made)]
        result = _run([*command, "-fopenmp"], folder)
        if result.returncode != 0:
            if _run(command, folder).returncode != 0:
                path.with_suffix(".log").write_text(f"{shlex.join(command)}\n{result.stderr}", "utf-8")
                raise CannotBuild(f"the compiler failed ({_first_error(result)}); all it said is in {path.with_suffix('.log')}")
            log.warning("the compiler has no OpenMP (-fopenmp): the native kernel runs on one thread")
        # In a process of its own, which alone would end if the library were broken.
        trial = _run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(made)!r}).cope_backward"])
        if trial.returncode != 0:
            raise CannotBuild(
                f"what `{shlex.join(compiler)}` compiled cannot be loaded ({_last_line(trial.stderr)}): is that a C++ compiler?"
            )
        checksum = made.with_suffix(".sha256")
        checksum.write_text(_checksum(made))
        os.replace(checksum, path.with_suffix(".sha256"))
        os.replace(made, path)  # whole or not at all
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    """Whether the library is there, and as it was compiled."""
    checksum = path.with_suffix(".sha256")
    return path.is_file() and checksum.is_file() and checksum.read_text(errors="replace") == _checksum(path)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(command: list[str], temporary: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it, with its own temporary files in a folder of ours if one is given."""
    environment = os.environ if temporary is None else {**os.environ, "TMPDIR": str(temporary)}
    try:
        return subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, encoding="utf-8", errors="replace", env=environment
        )
    except OSError as error:
        raise CannotBuild(f"`{command[0]}` cannot be run ({error.strerror}): is that a C++ compiler?") from error


def _first_error(result: subprocess.CompletedProcess[str]) -> str:
    lines = result.stderr.strip().splitlines()
    return next((line.strip() for line in lines if "error" in line), lines[-1].strip() if lines else "it said nothing")


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "the process that tried ended at once"
