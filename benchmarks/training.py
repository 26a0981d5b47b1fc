"""What CoPE costs in a whole training step of the project's own model, beside
RoPE.

    python benchmarks/training.py
    python benchmarks/training.py threads=1,2 repeats=5

Ratios count, not times. Each figure is the median of ``repeats`` (7) rounds, in
each of which every encoding runs once. Writes
``outputs/benchmark/training.json``.

    repeats=7    rounds
    threads=1    numbers of threads, with commas between
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__)  # before anything slow is imported

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from candidates import cope_encoding
from timing import large_matmul, matmul_rate, medians, write_result
from torch import Tensor

from cope.cli import read_settings, run_command
from cope.errors import check_at_least
from cope.model.transformer import Transformer
from cope.positions.base import ModelShape, PositionEncoding
from cope.positions.rotary import Rotary

# layers, dim, heads, time, batch. The last is the shape of the paper's flip-flop and counting models.
MODELS = {
    "laptop": (2, 64, 4, 128, 32),
    "dim 256, T 512, batch 4": (4, 256, 4, 512, 4),
    "dim 256, T 512, batch 64": (4, 256, 4, 512, 64),
}


@dataclass(frozen=True)
class TrainingSettings:
    repeats: int = 7
    threads: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        check_at_least("repeats", self.repeats, 1)
        check_at_least("threads", min(self.threads), 1)


def measured(repeats: int, threads: tuple[int, ...]) -> dict[str, Any]:
    """Forward, backward and optimizer step of the project's own model."""
    rows = []
    for num_threads in threads:
        torch.set_num_threads(num_threads)
        for name, (num_layers, dim, num_heads, length, batch) in MODELS.items():
            shape = ModelShape(dim, num_layers, num_heads, length, length)
            encodings: dict[str, Callable[[], PositionEncoding]] = {
                "rope": lambda shape=shape: Rotary(shape, base=10_000.0),
                "cope": lambda shape=shape: cope_encoding(shape),
                "cope, blockwise": lambda shape=shape: cope_encoding(shape, backend="blockwise"),
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


def main(arguments: list[str]) -> None:
    settings = read_settings(arguments, TrainingSettings, "python benchmarks/training.py threads=1,2")
    write_result("training", measured(settings.repeats, settings.threads), settings.repeats)


if __name__ == "__main__":
    run_command(main, __doc__)
