"""What CoPE attention costs beside ordinary attention, measured in one process, in turn, on this machine.

    python scripts/benchmark.py attention                    time and memory of every backend that can be had
    python scripts/benchmark.py attention threads=1,2        with one thread, then with two
    python scripts/benchmark.py attention candidates=native,blockwise   leaves out the slow ones
    python scripts/benchmark.py attention released=PATH      and the class CoPE of a file, such as the paper's listing
    python scripts/benchmark.py training                     a whole training step: cope beside rope

Ratios count, not times: machines differ and are shared. Each figure is the median of ``repeats`` rounds, in each of which every
candidate runs once. Writes ``outputs/benchmark/<name>.json`` and, for attention, a picture beside it.
"""

from __future__ import annotations

import json
import math
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cope import cope_attention
from cope.errors import UserError, check_choice
from cope.kernels import native, triton
from cope.training.device import hardware

OUTPUT = Path("outputs/benchmark")
NUM_POSITIONS = 64
SHAPES = [(64, 128, 32), (64, 256, 32), (64, 512, 64), (16, 1024, 64), (4, 2048, 64)]  # batch x heads, time, head_dim
DENSITIES = {"dense": 0.5, "sparse": 0.02}  # mean gate
MEMORY_LENGTHS = [1024, 2048, 4096, 8192, 16384]
# layers, dim, heads, time, batch. The last is the shape of the paper's flip-flop and counting models.
MODELS = {
    "laptop": (2, 64, 4, 128, 32),
    "dim 256, T 512, batch 4": (4, 256, 4, 512, 4),
    "dim 256, T 512, batch 64": (4, 256, 4, 512, 64),
}


def draw(heads: int, time_steps: int, head_dim: int, density: float, device: str) -> list[Tensor]:
    """q, k, v and a table, so that gates are ``density`` open on average."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, time_steps, head_dim, device=device) for _ in range(3))
    q[..., 0] = 1.0
    k[..., 0] = math.log(density / (1 - density)) * math.sqrt(head_dim)
    table = 0.1 * torch.randn(NUM_POSITIONS, head_dim, device=device)
    return [tensor.requires_grad_() for tensor in (q, k, v, table)]


def candidates(device: str, released: str = "") -> dict[str, Callable[..., Tensor]]:
    """SDPA first, then every backend and public implementation that can be had; what is left out is said."""
    found: dict[str, Callable[..., Tensor]] = {
        "sdpa": lambda q, k, v, table: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    }
    for backend, module in (("native", native), ("triton", triton), ("blockwise", None), ("reference", None)):
        lacking = None if module is None else module.missing(device, torch.float32)
        if lacking is not None:
            print(f"left out: {backend} ({lacking})")
            continue
        found[backend] = lambda q, k, v, table, backend=backend: cope_attention(q, k, v, table, backend=backend)
    if find_spec("x_transformers") is not None:
        from x_transformers.x_transformers import CoPE

        found["x-transformers"] = around(lambda q: CoPE(q.shape[-1], q.shape[1], max_pos=NUM_POSITIONS))
    else:
        print("left out: x-transformers (not installed: pip install x-transformers)")
    if released:
        listing = runpy.run_path(released)
        if "CoPE" not in listing:
            raise UserError(f"released={released} defines no class CoPE, as the paper's listing does.")
        found["released"] = around(lambda q: listing["CoPE"](NUM_POSITIONS, q.shape[-1]))
    else:
        print("left out: the authors' code (point to a file with the class CoPE: released=PATH)")
    return found


def around(make: Callable[[Tensor], torch.nn.Module]) -> Callable[..., Tensor]:
    """Attention as public implementations compute it: a module makes the contextual term of the logits, then softmax."""

    def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(hidden, -torch.finfo(logits.dtype).max)
        return (logits + make(q).to(q.device)(q, logits)).masked_fill(hidden, -math.inf).softmax(-1) @ v

    return attend


def step(attend: Callable[..., Tensor], tensors: list[Tensor], gradient: Tensor) -> None:
    attend(*tensors).backward(gradient)
    for tensor in tensors:
        tensor.grad = None
    if gradient.is_cuda:
        torch.cuda.synchronize()


def medians(steps: dict[Any, Callable[[], None]], repeats: int) -> dict[Any, float]:
    """Seconds of each, all taking turns, after one round to warm up."""
    times: dict[Any, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            if repeat > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


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
                def run(num_threads: int = num_threads, attend: Callable[..., Tensor] = attend) -> None:
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
    attend = candidates("cpu")[candidate]
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
            steps = {}
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
            matrix = torch.randn(1024, 1024)
            steps["matmul 1024"] = lambda matrix=matrix: (matrix @ matrix, None)[1]
            seconds = medians(steps, repeats)
            parameters = sum(p.numel() for p in model.parameters())
            flops = 6 * parameters * batch * length + 6 * num_layers * batch * length**2 * dim  # causal attention, halved
            rate = 2 * 1024**3 / seconds.pop("matmul 1024")
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


def main() -> None:
    name, *pairs = sys.argv[1:] or ["attention"]
    check_choice("benchmark", name, ["attention", "training", "memory"])
    settings = {
        "repeats": "7",
        "threads": "1",
        "candidates": "",
        "released": "",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    allowed = [*settings, "candidate", "length"] if name == "memory" else list(settings)
    for pair in pairs:
        key, _, value = pair.partition("=")
        check_choice("setting", key, allowed)
        settings[key] = value
    if name == "memory":
        print(peak_memory(settings["candidate"], int(settings["length"])))
        return
    repeats, threads = int(settings["repeats"]), [int(number) for number in settings["threads"].split(",")]
    result = (
        attention(
            repeats, threads, settings["device"], list(filter(None, settings["candidates"].split(","))), settings["released"]
        )
        if name == "attention"
        else training(repeats, threads)
    )
    result |= {
        "date": str(date.today()),
        "torch": torch.__version__,
        "hardware": hardware(torch.device(settings["device"])),
        "repeats": repeats,
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    if name == "attention":
        draw_picture(result, OUTPUT / f"{name}.png")
    print(f"written: {OUTPUT / name}.json")


if __name__ == "__main__":
    try:
        main()
    except (UserError, ValueError) as error:
        sys.exit(f"error: {error}")
