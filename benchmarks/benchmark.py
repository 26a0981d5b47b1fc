"""What CoPE attention costs beside ordinary attention, measured in one process, in turn, on this machine.

    python benchmarks/benchmark.py attention                    time and memory of every backend that can be had
    python benchmarks/benchmark.py attention threads=1,2        with one thread, then with two
    python benchmarks/benchmark.py attention candidates=native,blockwise   leaves out the slow ones
    python benchmarks/benchmark.py attention released=PATH      and the authors' code, a copy of their context_position.py
    python benchmarks/benchmark.py training                     a whole training step: cope beside rope
    python benchmarks/benchmark.py profile                      where a training step's time goes, for several recipes
    python benchmarks/benchmark.py profile recipes="task=counting pe=relative,task=code pe=cope"   for others

Ratios count, not times: machines differ and are shared. Each figure is the median of ``repeats`` rounds, in each of which every
candidate runs once. Writes ``outputs/benchmark/<name>.json`` and, for attention, a picture beside it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from candidates import NUM_POSITIONS, Attention, candidates, draw
from profiling import RECIPES, profiled
from timing import OUTPUT, large_matmul, matmul_rate, medians, write_result
from torch import Tensor

from cope.cli import key_values
from cope.errors import UserError, check_choice

SHAPES = [(64, 128, 32), (64, 256, 32), (64, 512, 64), (16, 1024, 64), (4, 2048, 64)]  # batch x heads, time, head_dim
DENSITIES = {"dense": 0.5, "sparse": 0.02}  # mean gate
MEMORY_LENGTHS = [1024, 2048, 4096, 8192, 16384]
# layers, dim, heads, time, batch. The last is the shape of the paper's flip-flop and counting models.
MODELS = {
    "laptop": (2, 64, 4, 128, 32),
    "dim 256, T 512, batch 4": (4, 256, 4, 512, 4),
    "dim 256, T 512, batch 64": (4, 256, 4, 512, 64),
}


def step(attend: Attention, tensors: list[Tensor], gradient: Tensor) -> None:
    attend(*tensors).backward(gradient)
    for tensor in tensors:
        tensor.grad = None
    if gradient.is_cuda:
        torch.cuda.synchronize()


def attention(repeats: int, threads: list[int], device: str, wanted: list[str], released: str) -> dict[str, Any]:
    rows = []
    found = candidates(device, released)
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

                steps[num_threads, label] = run
            seconds = medians(steps, repeats)
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
                command = [sys.executable, __file__, "memory", f"candidate={label}", f"length={length}"]
                mebibytes = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
                memory.append({"time": length, "candidate": label, "mib": mebibytes})
                print(f"peak memory of a step, 4 heads, head_dim 64, T {length}: {label} {mebibytes:.0f} MiB", flush=True)
    return {"rows": rows, "memory": memory}


def peak_memory(candidate: str, length: int) -> float:
    """MiB that one forward and backward pass adds to the process at its peak, one thread."""
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


def training(repeats: int, threads: list[int]) -> dict[str, Any]:
    """Forward, backward and optimizer step of the project's own model."""
    from cope.model.transformer import Transformer
    from cope.positions.base import ModelShape, PositionEncoding
    from cope.positions.contextual import Contextual
    from cope.positions.rotary import Rotary

    rows = []
    for num_threads in threads:
        torch.set_num_threads(num_threads)
        for name, (num_layers, dim, num_heads, length, batch) in MODELS.items():
            shape = ModelShape(dim, num_layers, num_heads, length, length)
            encodings: dict[str, Callable[[], PositionEncoding]] = {
                "rope": lambda shape=shape: Rotary(shape),
                "cope": lambda shape=shape: Contextual(shape, NUM_POSITIONS, init_std=1.0),
                "cope, blockwise": lambda shape=shape: Contextual(shape, NUM_POSITIONS, init_std=1.0, backend="blockwise"),
            }
            tokens = torch.randint(100, (batch, length))
            steps: dict[str, Callable[[], object]] = {}
            for label, make in encodings.items():
                torch.manual_seed(0)
                model = Transformer(vocab_size=100, encoding=make())
                optimizer = torch.optim.AdamW(model.parameters())

                def run(
                    model: Transformer = model, optimizer: torch.optim.Optimizer = optimizer, tokens: Tensor = tokens
                ) -> None:
                    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
                    optimizer.step()
                    optimizer.zero_grad()

                steps[label] = run
            # Its share of what the machine's matrix multiplication does, measured in the same minute.
            steps["matmul"] = large_matmul()
            seconds = medians(steps, repeats)
            parameters = sum(p.numel() for p in model.parameters())
            flops = 6 * parameters * batch * length + 6 * num_layers * batch * length**2 * dim  # causal attention, halved
            rate = matmul_rate(seconds.pop("matmul"))
            ratios = {label: value / seconds["rope"] for label, value in seconds.items()}
            share = {label: flops / value / rate for label, value in seconds.items()}
            rows.append(
                {"threads": num_threads, "model": name, "seconds": seconds, "over_rope": ratios, "share_of_matmul_rate": share}
            )
            parts = [f"{label} {ratio:.2f} x rope ({share[label]:.0%} of matmul)" for label, ratio in ratios.items()]
            print(f"{num_threads} thread(s), {name}: " + ", ".join(parts), flush=True)
    return {"rows": rows}


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


# The settings of each benchmark and their defaults; memory measures one candidate for attention, in a process of its own.
SETTINGS = {
    "attention": {
        "repeats": "7",
        "threads": "1",
        "candidates": "",
        "released": "",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    },
    "training": {"repeats": "7", "threads": "1"},
    "profile": {"repeats": "7", "recipes": ",".join(RECIPES)},
    "memory": {"candidate": "native", "length": "1024"},
}


def numbers(key: str, text: str) -> list[int]:
    """``1,2`` as a list."""
    if not all(part.isdecimal() and int(part) >= 1 for part in text.split(",")):
        raise UserError(f"{key}={text} has the wrong form; allowed: whole numbers from 1, with commas between.")
    return [int(part) for part in text.split(",")]


def number(key: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{key}={text} has the wrong form; allowed: a whole number from 1.")
    return int(text)


def main(name: str = "attention", *pairs: str) -> None:
    check_choice("benchmark", name, SETTINGS)
    settings = dict(SETTINGS[name])
    settings |= key_values(pairs, {key: (str, "text") for key in settings})
    if name == "memory":
        print(peak_memory(settings["candidate"], number("length", settings["length"])))
        return
    repeats = number("repeats", settings["repeats"])
    if name == "profile":
        write_result(name, profiled([recipe.strip() for recipe in settings["recipes"].split(",")], repeats), repeats)
        return
    threads = numbers("threads", settings["threads"])
    if name == "training":
        write_result(name, training(repeats, threads), repeats)
        return
    device = settings["device"]
    check_choice("device", device, ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
    result = attention(repeats, threads, device, list(filter(None, settings["candidates"].split(","))), settings["released"])
    write_result(name, result, repeats, device)
    draw_picture(result, OUTPUT / f"{name}.png")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (UserError, ValueError) as error:
        sys.exit(f"error: {error}")
