"""What attention costs on this GPU beside ``scaled_dot_product_attention`` in the same type: time, memory, time of each kernel.

Forward and backward together, the median of turns that the candidates take; decoding is forward alone. PyTorch takes the
backend that it likes best, cuDNN's on an H100; FlashAttention is timed beside it. ``gpu_check.py`` asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from candidates import NUM_POSITIONS, Attention, draw
from peak_memory import step
from timing import as_cell, medians_of_calls, synchronize
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from workers import COMPILING_AT_ONCE, find_all

from cope import cope_attention, relative_attention

SHAPES = [(64, 4, 512, 64), (16, 12, 1024, 64), (4, 8, 4096, 32), (1, 16, 8192, 64)]  # batch, heads, tokens, head size
CACHE = (1, 16, 32768, 64)  # of decoding
DECODED = (1, 16)  # queries
GATES = {"dense": 0.5, "sparse": 0.02}  # mean gate
DROPOUT = 0.1
REPEATS = 7
PROFILED_STEPS = 4
KERNELS = ("z_kernel", "forward_kernel", "query_gradients_kernel", "key_gradients_kernel")


@dataclass(frozen=True)
class AttentionCell:
    """One row; see :mod:`workers`.

    Args:
        what: "cope" or "relative".
        queries: fewer than tokens, as in decoding; None: as many.
        profiled: each kernel's time as well.
        only_compiled: nothing is timed, but Triton keeps what it compiled on disk.
    """

    what: str
    shape: tuple[int, int, int, int]
    dtype: str
    gates: str
    device: str
    backend: str
    dropout: float = 0.0
    queries: int | None = None
    profiled: bool = False
    only_compiled: bool = False
    processes: ClassVar[int] = 1
    seconds: ClassVar[float] = 3.0
    longest: ClassVar[float] = 60.0

    def find(self, all_are_warm: Callable[[], None]) -> dict[str, Any]:
        batch, heads, tokens, head_dim = self.shape
        num_positions = tokens if self.what == "relative" else NUM_POSITIONS
        tensors = draw(
            heads, tokens, head_dim, GATES[self.gates], self.device, batch, num_positions, dtype=getattr(torch, self.dtype)
        )
        tensors = [*map(_as_in_a_model, tensors[:3]), tensors[3]]
        if self.queries is None:
            timed = partial(step, tensors=tensors, gradient=torch.randn_like(tensors[0]))
        else:
            tensors = [tensors[0][:, :, -self.queries :], *tensors[1:]]
            timed = partial(_forward, tensors=tensors)
        calls = {name: partial(timed, attend) for name, attend in self._candidates().items()}
        if self.only_compiled:
            calls["ours"]()
            return {}
        found: dict[str, Any] = {"seconds": medians_of_calls(calls, REPEATS, self.device)}
        if self.device == "cuda":
            found["mib"] = {name: _added_memory(call) for name, call in calls.items()}
        if self.profiled and self.device == "cuda":
            found["kernel_ms"] = _kernel_times(calls["ours"])
        return found

    def _candidates(self) -> dict[str, Attention]:
        # The few last queries of decoding may see almost every key, and PyTorch's causal mask would put them first.
        def sdpa(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout, is_causal=self.queries is None)

        def flash(*tensors: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return sdpa(*tensors)

        ours = {"cope": cope_attention, "relative": relative_attention}[self.what]
        found: dict[str, Attention] = {"sdpa": sdpa, "ours": partial(ours, dropout=self.dropout, backend=self.backend)}
        if self.device == "cuda" and self.dtype != "float32":
            found["flash"] = flash
        return found


def _as_in_a_model(tensor: Tensor) -> Tensor:
    """Heads inside time in memory, as a linear layer leaves them: else PyTorch copies each gradient to the other order."""
    return tensor.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()


def _forward(attend: Attention, tensors: list[Tensor]) -> None:
    with torch.no_grad():
        attend(*tensors)


def _added_memory(call: Callable[[], object]) -> float:
    """MiB at the peak, beyond what is there before."""
    synchronize("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    synchronize("cuda")
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _kernel_times(call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds a call of every kernel on the GPU, by name."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED_STEPS):
            call()
        synchronize("cuda")
    return {
        event.key[:60]: event.device_time_total / 1000 / PROFILED_STEPS
        for event in profiler.key_averages()
        if event.device_time_total > 0
    }


def cells(device: str) -> list[AttentionCell]:
    """What is timed, the most important first."""
    own = partial(AttentionCell, device=device, backend="triton" if device == "cuda" else "native")
    return [
        *(own("cope", shape, "bfloat16", gates, profiled=True) for gates in GATES for shape in SHAPES),
        *(own("relative", shape, "bfloat16", "dense") for shape in SHAPES),
        *(own("cope", CACHE, "bfloat16", gates, queries=queries) for queries in DECODED for gates in GATES),
        *(own("cope", shape, "float32", "dense") for shape in SHAPES),
        *(own("cope", shape, "bfloat16", "dense", dropout=DROPOUT) for shape in SHAPES),
    ]


def rows_of(device: str, limit: float) -> Iterator[dict[str, Any]]:
    """Each row as soon as it is found: all kernels are compiled first, several at once, then each row has the card alone."""
    begun, planned = time.monotonic(), cells(device)
    # Relative attention takes longest to compile.
    distinct = {replace(cell, gates="dense", profiled=False, only_compiled=True): None for cell in planned}
    first = sorted(distinct, key=lambda cell: cell.what != "relative")
    for cell, found in zip(first, find_all(first, limit / 2, COMPILING_AT_ONCE), strict=True):
        print(f"attention: compiling {cell.what}, {cell.shape}, {cell.dtype}: {found.get('error', 'done')}", flush=True)
    for cell, found in zip(planned, find_all(planned, limit - (time.monotonic() - begun)), strict=True):
        row = asdict(cell) | {"found": found}
        print(f"attention: {_line(row)}", flush=True)
        yield row


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        f"Milliseconds of forward + backward (decoding: forward), medians of {REPEATS} turns; {NUM_POSITIONS} positions, gates "
        "open by 0.5 (dense) or 0.02 (sparse) on average. MiB: what a step adds at its peak, in the order of the milliseconds.",
        "",
        "| attention | batch x heads x tokens x head size | type | SDPA | FlashAttention | ours | over SDPA | "
        "over FlashAttention | MiB |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
    ]
    profiled = [row for row in rows if "kernel_ms" in row["found"]]
    if profiled:
        lines += [
            "",
            "Milliseconds of CoPE's kernels in such a step, by PyTorch's profiler; the rest of its time the card waits.",
            "",
            f"| batch x heads x tokens x head size, gates | {' | '.join(KERNELS)} | others |".replace("_kernel", ""),
            "|---|" + "---|" * (len(KERNELS) + 1),
        ]
    for row in profiled:
        found = dict(row["found"]["kernel_ms"])
        own = [found.pop(kernel, 0.0) for kernel in KERNELS]
        times = " | ".join(f"{value:.3f}" for value in (*own, sum(found.values())))
        lines.append(f"| {_shape(row)}, {row['gates']} | {times} |")
    return lines


def _shape(row: dict[str, Any]) -> str:
    return " x ".join(map(str, row["shape"]))


def _line(row: dict[str, Any]) -> str:
    found = row["found"]
    what = row["what"] if row["what"] == "relative" else f"{row['what']}, {row['gates']}"
    if row["dropout"]:
        what += f", dropout {row['dropout']}"
    if row["queries"]:
        what += f", decoding {row['queries']}"
    begin = f"| {what} | {_shape(row)} | {row['dtype']} |"
    if "error" in found:
        return f"{begin} {as_cell(found['error'])} | | | | | |"
    seconds = found["seconds"]
    times = [f"{1000 * seconds[name]:.3f}" if name in seconds else "" for name in ("sdpa", "flash", "ours")]
    ratios = [f"{seconds['ours'] / seconds[name]:.2f}" if name in seconds else "" for name in ("sdpa", "flash")]
    mib = ", ".join(f"{found['mib'][name]:.0f}" for name in ("sdpa", "flash", "ours") if name in found.get("mib", {}))
    return f"{begin} {' | '.join([*times, *ratios, mib])} |"
