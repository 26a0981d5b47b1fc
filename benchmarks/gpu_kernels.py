"""Whether the Triton kernels are right on this GPU: errors against the equations in float64, in each type that they take.

Values and all gradients, each error of the largest number of its tensor; the errors of PyTorch's own attention in the same type
beside them; and whether a second time gives the same to the bit. ``gpu_check.py`` asks. Gradients leave out the queries with a
position that is all but a whole number, where the logit has a corner: which of its slopes is taken is for rounding to say.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timing import as_cell, synchronize
from torch import Tensor
from workers import COMPILING_AT_ONCE, find_all

from cope import relative_attention
from cope.kernels.triton import compiler_options

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # whose cases these are too
from kernel_cases import (
    CORNER,
    Values,
    converted,
    draw,
    errors,
    output_and_gradients,
    queries_at_corners,
    rounded_weights,
    run,
)

# The largest error. In half precision as much as four roundings of inputs, weights and ds of that type. In float32 positions
# are sums of thousands of gates, and gradients of q of thousands of keys as large as 27: native needs 3.2e-4 with these.
TOLERANCES = {"bfloat16": 4 * 2.0**-7, "float16": 4 * 2.0**-10, "float32": 5e-4}
LONG: dict[str, Any] = dict(batch=1, head_dim=64, value_dim=64)
SHORT = LONG | {"batch": 2}
CASES: dict[str, dict[str, Any]] = {
    "1,000 tokens": dict(num_queries=1000, num_keys=1000, num_positions=64, **SHORT),
    "gate keys, sparse, heads of 32": dict(
        num_queries=515, num_keys=515, num_positions=64, head_dim=32, value_dim=32, gates="separate", shift=-2.0
    ),
    "relative term and bias too": dict(num_queries=257, num_keys=257, num_positions=300, relative=100, bias=(2, 40), **SHORT),
    "relative alone, with bias": dict(num_queries=257, num_keys=257, num_positions=None, relative=100, bias=(2, 40), **SHORT),
    "heads of 128": dict(num_queries=300, num_keys=300, num_positions=16, head_dim=128, value_dim=128, shift=1.0),
    "2,048 tokens, sparse": dict(num_queries=2048, num_keys=2048, num_positions=64, shift=-3.0, **LONG),
    "513 positions, open": dict(num_queries=1000, num_keys=1000, num_positions=513, shift=3.0, **SHORT),
    "heads of 20, values of 24": dict(num_queries=70, num_keys=75, num_positions=20, head_dim=20, value_dim=24),
    "one position": dict(num_queries=200, num_keys=333, num_positions=1, **SHORT),
    "gates of exactly 1": dict(
        num_queries=100, num_keys=100, num_positions=64, gates="separate", shift=1000.0, spread=0.0, **SHORT
    ),
    "1 query, 5,000 keys": dict(num_queries=1, num_keys=5000, num_positions=200, shift=-3.0, **LONG),
    "16 queries, 3,000 keys": dict(num_queries=16, num_keys=3000, num_positions=64, shift=-3.0, gates="separate", **SHORT),
    "one token": dict(num_queries=1, num_keys=1, num_positions=4, **SHORT),
}


@dataclass(frozen=True)
class KernelCell:
    """One case in one type; see :mod:`workers`."""

    case: str
    drawn: dict[str, Any]
    dtype: str
    device: str
    processes: ClassVar[int] = 1
    seconds: ClassVar[float] = 3.0
    longest: ClassVar[float] = 120.0

    def find(self, all_are_warm: Callable[[], None]) -> dict[str, Any]:
        values = converted(draw(**self.drawn), getattr(torch, self.dtype), self.device)
        exact = converted(values, torch.float64)  # what was rounded is what both are given
        at_corners = queries_at_corners(exact)
        weights = rounded_weights(values).masked_fill(at_corners.unsqueeze(-1), 0.0)
        attend = partial(attention, backend="triton")
        start = time.perf_counter()
        first = output_and_gradients(values, attend, weights)
        synchronize(self.device)
        compiled_s = time.perf_counter() - start
        second = output_and_gradients(values, attend, weights)
        found = {
            "errors": errors(first, output_and_gradients(exact, partial(attention, backend="reference"), weights)),
            "repeats": all(torch.equal(first[name], second[name]) for name in first),
            "queries_at_corners": at_corners.double().mean().item(),
            "first_call_s": compiled_s,
        }
        if values["q"].shape[2] == values["k"].shape[2]:
            found["sdpa_errors"] = errors(*(output_and_gradients(given, sdpa, weights) for given in (values, exact)))
        return found


def attention(values: Values, backend: str) -> Tensor:
    """With counted positions, or by distance alone."""
    if values["table"] is not None:
        return run(values, backend)
    q, k, v, relative, bias = (values[name] for name in ("q", "k", "v", "relative", "bias"))
    return relative_attention(q, k, v, relative, bias=bias, backend=backend)


def sdpa(values: Values) -> Tensor:
    """Causal attention without positions."""
    return F.scaled_dot_product_attention(values["q"], values["k"], values["v"], is_causal=True)


def rows_of(device: str, limit: float) -> Iterator[dict[str, Any]]:
    """Every case in every type, in order."""
    cells = [KernelCell(case, drawn, dtype, device) for case, drawn in CASES.items() for dtype in TOLERANCES]
    for cell, found in zip(cells, find_all(cells, limit, COMPILING_AT_ONCE), strict=True):
        row = asdict(cell) | {"found": found}
        print(f"kernels: {cell.case}, {cell.dtype}: {_told(row)}", flush=True)
        yield row


def is_right(row: dict[str, Any]) -> bool:
    """Whether the case was run, kept to its type's tolerance and repeats."""
    found = row["found"]
    return "error" not in found and found["repeats"] and all(e <= TOLERANCES[row["dtype"]] for e in found["errors"].values())


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: cases by types."""
    columns = " | ".join(f"{dtype}, at most {tolerance:.1e}" for dtype, tolerance in TOLERANCES.items())
    lines = [
        "Largest error against the equations in float64, of the largest number of its tensor: of the output / of all gradients "
        "(in brackets those of `scaled_dot_product_attention` in the same type). Gradients leave out the queries with a "
        f"position within {CORNER:.0e} of a whole number, where the logit has a corner.",
        "",
        f"| case | {columns} |",
        "|---|" + "---|" * len(TOLERANCES),
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        own = {row["dtype"]: _told(row) for row in rows if row["case"] == case}
        lines.append(f"| {case} | {' | '.join(own.get(dtype, '') for dtype in TOLERANCES)} |")
    right = [row for row in rows if is_right(row)]
    lines += ["", f"{len(right)} of {len(rows)} are right and the same to the bit when repeated."]
    return lines


def options_kept(device: str) -> list[dict[str, Any]]:
    """What was tried on this card, now or earlier, with this Triton and these kernels; see :mod:`compiler_options`."""
    return compiler_options.kept(torch.cuda.get_device_name()) if device == "cuda" else []


def options_table(kept: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: what large launches are compiled with."""
    lines = [
        "Triton's options for large launches, tried on this card once; all give the same bits. Milliseconds of a launch, of "
        "the default first; what was left out says why.",
        "",
        "| kernel and launch | taken | over the default | tried |",
        "|---|---|---|---|",
    ]
    for entry in kept:
        times = {compiler_options.in_words(one["options"]): one.get("ms") for one in entry["tried"]}
        taken, default = compiler_options.in_words(entry["chosen"]), next(iter(times.values()))
        ratio = f"{times[taken] / default:.2f}" if default and times.get(taken) else ""
        tried = [
            f"{compiler_options.in_words(one['options'])}: {one['left_out'] if 'left_out' in one else format(one['ms'], '.3f')}"
            for one in entry["tried"]
        ]
        lines.append(f"| {entry['kind']} | {taken} | {ratio} | {as_cell('; '.join(tried))} |")
    return lines


def _told(row: dict[str, Any]) -> str:
    found = row["found"]
    if "error" in found:
        return as_cell(found["error"])
    told = _largest(found["errors"])
    if "sdpa_errors" in found:
        told += f" ({_largest(found['sdpa_errors'])})"
    if not found["repeats"]:
        told += " **differs when repeated**"
    return told if is_right(row) else f"**wrong:** {told}"


def _largest(found: dict[str, float]) -> str:
    gradients = [error for name, error in found.items() if name != "output"]
    largest = max(gradients, key=lambda error: math.inf if math.isnan(error) else error)
    return f"{found['output']:.1e} / {largest:.1e}"
