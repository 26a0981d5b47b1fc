"""What CoPE attention costs beside ordinary attention, measured in one process, in
turn, on this machine.

    # time and memory of every backend that can be had
    python benchmarks/attention.py
    # with one thread, then with two
    python benchmarks/attention.py threads=1,2
    # leaves out the slow ones
    python benchmarks/attention.py candidates=native,blockwise
    # and the authors' code, a copy of their context_position.py
    python benchmarks/attention.py released=PATH

Ratios count, not times: machines differ and are shared. Each figure is the
median of ``repeats`` (7) rounds, in each of which every candidate runs once.
Writes ``outputs/benchmark/attention.json`` and a picture beside it.

    repeats=7        rounds
    threads=1        numbers of threads, with commas between
    candidates=      only these, with commas between; none: all
    released=        the authors' context_position.py
    device=          cpu or cuda; a GPU where there is one
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__)  # before anything slow is imported

import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from candidates import Attention, candidates, draw
from peak_memory import step
from timing import OUTPUT, medians, synchronize, write_result

from cope.cli import read_settings, run_command
from cope.errors import check_at_least, check_choice

SHAPES = [(64, 128, 32), (64, 256, 32), (64, 512, 64), (16, 1024, 64), (4, 2048, 64)]  # batch x heads, time, head_dim
DENSITIES = {"dense": 0.5, "sparse": 0.02}  # mean gate
MEMORY_LENGTHS = [1024, 2048, 4096, 8192, 16384]


@dataclass(frozen=True)
class AttentionSettings:
    repeats: int = 7
    threads: tuple[int, ...] = (1,)
    candidates: tuple[str, ...] = ()  # () takes all
    released: str = ""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"

    def __post_init__(self) -> None:
        check_at_least("repeats", self.repeats, 1)
        check_at_least("threads", min(self.threads), 1)
        check_choice("device", self.device, ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])


def measured(settings: AttentionSettings) -> dict[str, Any]:
    rows = []
    wanted, threads, device = settings.candidates, settings.threads, settings.device
    found = candidates(device, settings.released)
    for name in wanted:
        check_choice("candidates", name, found)
    found = {name: attend for name, attend in found.items() if name == "sdpa" or not wanted or name in wanted}
    for name, density in DENSITIES.items():
        for shape in SHAPES:
            tensors = draw(*shape, density, device)
            gradient = torch.randn_like(tensors[0])
            steps = {}
            for num_threads, (label, attend) in product(threads, found.items()):
                # Taking turns over the numbers of threads too: what others do on a shared machine changes within minutes.
                def run(num_threads: int = num_threads, attend: Attention = attend) -> None:
                    torch.set_num_threads(num_threads)
                    step(attend, tensors, gradient)  # noqa: B023  # run before the next shape's are drawn
                    synchronize(device)

                steps[num_threads, label] = run
            seconds = medians(steps, settings.repeats)
            for num_threads in threads:
                own = {label: seconds[num_threads, label] for label in found}
                ratios = {label: value / own["sdpa"] for label, value in own.items()}
                rows.append({"threads": num_threads, "gates": name, "shape": shape, "seconds": own, "over_sdpa": ratios})
                said = ", ".join(f"{label} {ratio:.2f}" for label, ratio in ratios.items())
                print(f"{num_threads} thread(s), {name}, {shape}: {said}", flush=True)
    memory = []
    if device == "cpu" and Path("/proc/self/clear_refs").exists():
        for length in MEMORY_LENGTHS:
            for label in ("sdpa", "native", "blockwise"):
                script = str(Path(__file__).with_name("peak_memory.py"))
                command = [sys.executable, script, f"candidate={label}", f"length={length}"]
                mebibytes = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
                memory.append({"time": length, "candidate": label, "mib": mebibytes})
                print(f"peak memory of a step, 4 heads, head_dim 64, T {length}: {label} {mebibytes:.0f} MiB", flush=True)
    return {"rows": rows, "memory": memory}


def draw_picture(result: dict[str, Any], path: Path) -> None:
    """Time over SDPA at each shape, and peak memory over length."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    rows = [row for row in result["rows"] if row["threads"] == result["rows"][0]["threads"]]
    for gates, line in zip(DENSITIES, ("-", "--"), strict=True):
        chosen = [row for row in rows if row["gates"] == gates]
        for index, label in enumerate(name for name in chosen[0]["over_sdpa"] if name != "sdpa"):
            values = [row["over_sdpa"][label] for row in chosen]
            left.plot(range(len(chosen)), values, line, marker="o", color=f"C{index}", label=f"{label}, {gates} gates")
    left.axhline(1.0, color="black", linewidth=0.8)
    left.set_xticks(range(len(SHAPES)), [f"{h} x T{t} x d{d}" for h, t, d in SHAPES], rotation=20)
    left.set_yscale("log")
    left.set_ylabel("time of forward + backward, over SDPA's")
    left.legend(fontsize=7)
    for label in dict.fromkeys(entry["candidate"] for entry in result["memory"]):
        entries = [entry for entry in result["memory"] if entry["candidate"] == label]
        right.plot([e["time"] for e in entries], [e["mib"] for e in entries], marker="o", label=label)
    right.set(xscale="log", yscale="log", xlabel="tokens", ylabel="MiB", title="peak memory of a step, 4 heads of 64")
    if result["memory"]:
        right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str]) -> None:
    settings = read_settings(arguments, AttentionSettings, "python benchmarks/attention.py threads=1,2")
    result = measured(settings)
    write_result("attention", result, settings.repeats, settings.device)
    draw_picture(result, OUTPUT / "attention.png")


if __name__ == "__main__":
    run_command(main, __doc__)
