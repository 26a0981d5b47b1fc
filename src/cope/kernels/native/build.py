"""Compiles the C++ kernel for this machine's processor, once: the library is kept in a cache and found there afterwards.

The cache is ``$COPE_CACHE``, or ``cope-lab`` in the user's cache folder (``$XDG_CACHE_HOME``, ``~/.cache``). A library's
name holds a hash of the sources, the compiler, its flags and the kind of processor, so a change of any of them makes another.
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
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

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


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    if "COPE_CACHE" in os.environ:
        return Path(os.environ["COPE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cope-lab"


def find_compiler() -> list[str]:
    """The command that compiles C++: ``$CXX`` if set, else the first of the usual names."""
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])
        if shutil.which(command[0]) is None:
            raise CannotBuild(f"the compiler CXX={os.environ['CXX']} was not found")
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
    version = _output([*compiler, "--version"])
    sources = sorted(SOURCES.iterdir())
    identity = "\n".join([version, *compiler, *flags, platform.machine(), *(source.read_text() for source in sources)])
    name = f"native-{instructions.lower()}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    path = cache_folder() / name
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():  # another process may have compiled it while this one waited
                _compile(compiler, flags, path)
    except OSError as error:
        raise CannotBuild(
            f"the compiled kernel cannot be kept in {path.parent} ({error}); set COPE_CACHE to another folder"
        ) from error
    return path


def _compile(compiler: list[str], flags: list[str], path: Path) -> None:
    log.info("compiling the native kernel (a few seconds, once): %s", path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [*compiler, *flags, str(SOURCES / "attention.cpp"), "-o", str(made)]
        result = subprocess.run([*command, "-fopenmp"], capture_output=True, text=True)
        if result.returncode != 0:
            without_threads = subprocess.run(command, capture_output=True, text=True)
            if without_threads.returncode == 0:
                log.warning("the compiler has no OpenMP (-fopenmp): the native kernel runs on one thread")
            else:
                path.with_suffix(".log").write_text(f"{shlex.join(command)}\n{result.stderr}")
                first_error = next((line for line in result.stderr.splitlines() if "error" in line), "no message")
                raise CannotBuild(f"the compiler failed ({first_error.strip()}); all it said is in {path.with_suffix('.log')}")
        os.replace(made, path)  # whole or not at all


def _output(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise CannotBuild(f"`{shlex.join(command)}` failed: {result.stderr.strip().splitlines()[:1]}")
    return result.stdout
