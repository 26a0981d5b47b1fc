"""Runs the native kernel under AddressSanitizer and UndefinedBehaviorSanitizer, for every kind of processor this one can be.

    make sanitize
    python scripts/sanitize.py

Python itself is not instrumented, so the sanitizers' libraries are loaded before it.

    instructions=    of one kind of processor, in a process that has the sanitizers loaded: asked by the command itself
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.start import start

    start(__doc__)  # before anything is imported that takes seconds

import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import product

import torch

from cope.cli import read_settings, run_command
from cope.kernels import native
from cope.kernels.native.build import find_compiler, library

FLAGS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


def exercise(instructions: str) -> None:
    """Every argument, at sizes on both sides of the kernel's vectors, panels and strips."""
    built = native.load(library(instructions, FLAGS))
    native._loaded = lambda: built
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
    print(f"{built.cope_instructions().decode()}: {count} forward and backward passes, nothing found")


@dataclass(frozen=True)
class SanitizeSettings:
    instructions: str = ""  # of one kind of processor, in a process that has the sanitizers loaded


def main(arguments: list[str]) -> None:
    """Start Python again for each kind of processor, with the sanitizers loaded."""
    settings = read_settings(arguments, SanitizeSettings, "python scripts/sanitize.py")
    if settings.instructions:
        exercise(settings.instructions)
        return
    own = torch.backends.cpu.get_cpu_capability()
    kinds = [*dict.fromkeys([own, *(["AVX2"] if own == "AVX512" else []), "portable"])]
    compiler = find_compiler()
    libraries = [
        subprocess.run([*compiler, f"-print-file-name=lib{name}.so"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("asan", "ubsan", "stdc++")
    ]
    # Python and PyTorch never free what lives as long as the process: leaks cannot be told from that.
    environment = {**os.environ, "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    for kind in kinds:
        subprocess.run([sys.executable, __file__, f"instructions={kind}"], check=True, env=environment)


if __name__ == "__main__":
    run_command(main, __doc__)
