"""MiB that one forward and backward pass of attention adds to this process at its
peak, one thread; ``attention.py`` asks.

python benchmarks/peak_memory.py candidate=native length=1024

candidate=    of attention.py's table
length=       tokens of the one sequence
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__)  # before anything slow is imported

from dataclasses import dataclass
from pathlib import Path

import torch
from candidates import Attention, candidates, draw
from torch import Tensor

from cope.cli import read_settings, run_command
from cope.errors import check_at_least, check_choice


@dataclass(frozen=True)
class MemorySettings:
    candidate: str
    length: int

    def __post_init__(self) -> None:
        check_at_least("length", self.length, 1)


def step(attend: Attention, tensors: list[Tensor], gradient: Tensor) -> None:
    attend(*tensors).backward(gradient)
    for tensor in tensors:
        tensor.grad = None


def peak_memory(candidate: str, length: int) -> float:
    torch.set_num_threads(1)
    found = candidates("cpu")
    check_choice("candidate", candidate, found)
    attend = found[candidate]
    small = draw(4, 64, 64, 0.5, "cpu")
    step(attend, small, torch.randn_like(small[0]))  # libraries are loaded
    tensors = draw(4, length, 64, 0.5, "cpu")
    gradient = torch.randn_like(tensors[0])

    def read(key: str) -> float:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = read("VmRSS")
    output = attend(*tensors)
    output.backward(gradient)
    return read("VmHWM") - before


def main(arguments: list[str]) -> None:
    settings = read_settings(arguments, MemorySettings, "python benchmarks/peak_memory.py candidate=native length=1024")
    print(peak_memory(settings.candidate, settings.length))


if __name__ == "__main__":
    run_command(main, __doc__)
