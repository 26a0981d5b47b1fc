"""Runs the native kernel under sanitizers of memory, undefined behaviour and
threads.

    make sanitize
    python scripts/sanitize.py
    python scripts/sanitize.py tool=threads

AddressSanitizer and UndefinedBehaviorSanitizer, for every kind of processor
this one can be; ThreadSanitizer with two threads. Python itself is not
instrumented, so the sanitizers' libraries are loaded before it. ThreadSanitizer
knows nothing of OpenMP's barriers, so that for it the kernel starts threads of
C++ instead (``in_parallel`` in attention.cpp): it sees all that they do with
one another's memory, and what two calls from two threads of Python do; not
OpenMP itself.

    tool=            memory or threads: one of the two alone
    instructions=    of one kind of processor, in a process that has the
                     sanitizers loaded: asked by the command itself
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__)  # before anything slow is imported

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import torch

from cope.cli import read_settings, run_command
from cope.errors import UserError, check_choice
from cope.kernels import native
from cope.kernels.native.build import find_compiler, library

# -O1, as the sanitizers' own documentation has it: with -O3 the compiler takes several times as long for portable code.
FLAGS = {
    "memory": ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "threads": ("-O1", "-g", "-fsanitize=thread"),
}
LIBRARIES = {"memory": ("asan", "ubsan", "stdc++"), "threads": ("tsan", "stdc++")}
OPTIONS = {
    # Python and PyTorch never free what lives as long as the process: leaks cannot be told from that.
    "memory": {"ASAN_OPTIONS": "detect_leaks=0"},
    # What PyTorch's own threads hand to one another goes by OpenMP, see above.
    "threads": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1"},
}


def exercise(tool: str, instructions: str) -> None:
    """Every argument; by two threads of Python at once too, each of which calls a kernel of two threads, where these are it."""
    built = native.load(library(instructions, FLAGS[tool]))
    native._loaded = lambda: built
    if tool == "memory":
        count = passes()
    else:
        torch.set_num_threads(2)
        count = passes()
        with ThreadPoolExecutor(2) as pool:
            count += sum(pool.map(lambda _: passes(), range(2)))
    print(f"{tool}, {built.cope_instructions().decode()}: {count} forward and backward passes, nothing found", flush=True)


def passes() -> int:
    """Forward and backward, at sizes on both sides of the kernel's vectors, panels and strips; how many."""
    torch.manual_seed(0)
    count = 0
    for num_keys, size, num_positions in product([1, 16, 63, 65, 130], [3, 40], [1, 64, 200]):
        for num_queries in {1, num_keys // 2 + 1, num_keys}:
            for extras in (False, True):
                tensors = [torch.randn(1, 2, n, size) for n in (num_queries, num_keys, num_keys)]
                tensors.append(torch.randn(num_positions, size))
                if extras:
                    tensors += [torch.randn(1, 2, num_keys, size), torch.randn(20, size), torch.randn(2, 9)]
                tensors = [tensor.requires_grad_() for tensor in tensors]
                q, k, v, table, *others = tensors
                names = ("gate_keys", "relative", "bias")
                output = native.attention(q, k, v, table, **dict(zip(names, others, strict=False)), dropout=0.1 * extras)
                output.sum().backward()
                count += 1
    return count


@dataclass(frozen=True)
class SanitizeSettings:
    tool: str = ""  # both
    instructions: str = ""  # of one kind of processor, in a process that has the sanitizers loaded

    def __post_init__(self) -> None:
        if self.tool or self.instructions:  # which has to be told which of the two
            check_choice("tool", self.tool, FLAGS)


def main(arguments: list[str]) -> None:
    """Start Python again for each kind of processor, with the sanitizers loaded."""
    settings = read_settings(arguments, SanitizeSettings, "python scripts/sanitize.py")
    if settings.instructions:
        exercise(settings.tool, settings.instructions)
        return
    own = torch.backends.cpu.get_cpu_capability()
    kinds = [*dict.fromkeys([own, *(["AVX2"] if own == "AVX512" else []), "portable"])]
    for tool in [settings.tool] if settings.tool else FLAGS:
        for kind in kinds:
            environment = {**os.environ, "LD_PRELOAD": " ".join(map(found, LIBRARIES[tool])), **OPTIONS[tool]}
            # ThreadSanitizer's own memory has a place of its own, where a shuffled address space may put something else.
            fixed = ["setarch", "--addr-no-randomize"] if tool == "threads" and shutil.which("setarch") else []
            command = [*fixed, sys.executable, __file__, f"tool={tool}", f"instructions={kind}"]
            if subprocess.run(command, env=environment).returncode != 0:
                raise UserError(f"tool={tool} failed, or found something, in instructions={kind}: see above.")


def found(name: str) -> str:
    """The compiler's library of this name."""
    told = subprocess.run([*find_compiler(), f"-print-file-name=lib{name}.so"], check=True, capture_output=True, text=True)
    return told.stdout.strip()


if __name__ == "__main__":
    run_command(main, __doc__)
