"""The fastest of a few ways to compile a kernel: tried on the card it runs on, and kept on disk.

**Only time may hang on it.** Most sizes of tiles say in what order numbers are added up, and so does the number of warps: these
are fixed. How many loads are made ahead of their use (``num_stages``), how many registers a thread may have (``maxnreg``) and
how many queries come at a time where sums are over all of them (``QUERIES``) say nothing of the kind; and since a compiler is
not to be trusted with that, options are taken only if the kernel gives the same bits with them as with the default ones, here,
on this card. So a run's numbers are the same whatever was measured.

What was found is kept in a file for each kind of launch, in a folder for each card, version of Triton and state of the kernels'
source, beside the compiled native kernel (``$COPE_CACHE``, or ``~/.cache/cope-lab``); to try again, delete it. Of several
processes one tries, the others wait for it. Before it does, the default is put into the file: if the process ends over an
option that the card or the compiler cannot bear, or for any other reason, no other tries it again.

``triton.autotune`` takes what is fastest without a look at what it computes, keeps no two cards of one architecture apart, and
takes no heed of CUDA graphs, in which nothing can be timed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cope.errors import UserError
from cope.files import cache_folder, lock, read_json, write_json

Options = dict[str, Any]  # of Triton's compiler, or sizes of a tile

UNFINISHED = "the trial did not end"
OTHER_BITS = "gives other bits"

log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """Of launches that share their options.

    Args:
        inputs: those that may be left out and are there.
        most_keys: their number, rounded up to a power of two.
        sizes: those that the kernel is compiled for, with the default options.
    """

    kernel: str
    dtype: str
    inputs: tuple[str, ...]
    most_keys: int
    sizes: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        sizes = dict(self.sizes)
        tile = " x ".join(str(sizes[name]) for name in ("QUERIES", "KEYS", "BLOCK") if name in sizes)
        heads = (
            str(sizes["HEAD_DIM"])
            if sizes["HEAD_DIM"] == sizes["VALUE_DIM"]
            else f"{sizes['HEAD_DIM']} and {sizes['VALUE_DIM']}"
        )
        dtype = f"float32 as {sizes['PRECISION']}" if self.dtype == "float32" else self.dtype
        there = f" with {', '.join(self.inputs)}" if self.inputs else ""
        padded = "" if sizes["WHOLE"] else " (padded)"
        return f"{self.kernel}{there}, {dtype}, tiles of {tile}, heads of {heads}{padded}, at most {self.most_keys} keys"


@dataclass(frozen=True)
class Trial:
    """A launch that can be repeated.

    Args:
        written: all tensors that the kernel writes and that are read afterwards. They may be filled with zeros before.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Sequence[Any]
    sizes: dict[str, Any]
    written: Sequence[Tensor]

    def compile(self, options: Options) -> None:
        self.kernel.warmup(*self.arguments, grid=self.grid, **self.sizes | options)

    def run(self, options: Options) -> None:
        self.kernel[self.grid](*self.arguments, **self.sizes | options)

    def run_anew(self, options: Options) -> None:
        """Nothing of what an earlier launch wrote is left."""
        self.clear()
        self.run(options)

    def clear(self) -> None:
        for tensor in self.written:
            tensor.zero_()


_taken: dict[tuple[str, Kind], Options] = {}  # by this process


def fastest(card: str, kind: Kind, candidates: Sequence[Options], trial: Trial) -> Options:
    """Those of ``candidates`` to compile a kernel with; the first is the default, which is taken where nothing can be tried."""
    if (card, kind) not in _taken:
        try:
            path = folder(card) / f"{kind.kernel}-{hashlib.sha256(repr(kind).encode()).hexdigest()[:16]}.json"
            entry = _entry(path, candidates)
            if entry is not None and not _is_unfinished(entry):
                found = entry["chosen"]
            elif torch.cuda.is_current_stream_capturing():
                return candidates[0]
            else:
                found = _tried_by_one(path, card, kind, candidates, trial)
        except (OSError, UserError) as error:  # what cannot be kept would be measured anew by each process
            log.warning("Triton kernels are compiled with their default options, for no others can be kept: %s", error)
            found = candidates[0]
        _taken[card, kind] = found
    return _taken[card, kind]


def taken() -> dict[str, str]:
    """What this process has taken, in words."""
    return {str(kind): in_words(options) for (_card, kind), options in _taken.items()}


def kept(card: str) -> list[dict[str, Any]]:
    """What is kept for this card: the contents of all files; nothing where there is no Triton, or no folder to keep it in."""
    try:
        files = sorted(folder(card).glob("*.json"))
    except (ImportError, UserError):
        return []
    entries = [_entry(path, None) for path in files]
    return [entry for entry in entries if entry is not None]


def in_words(options: Options) -> str:
    return ", ".join(f"{name}={'any' if value is None else value}" for name, value in options.items())


def card_of(tensor: Tensor) -> str | None:
    """The name of the GPU that it is on; None where it is on none."""
    return _name(tensor.device) if tensor.device.type == "cuda" else None


@cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


@cache
def folder(card: str) -> Path:
    """Where this card's choices are."""
    import triton

    digest = hashlib.sha256(f"{card}\n{triton.__version__}\n".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return cache_folder() / f"triton-{digest.hexdigest()[:16]}"


def milliseconds(call: Callable[[], None]) -> float:
    """The median of some calls, each with an empty cache."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=5, rep=30, return_mode="median"))


def _entry(path: Path, candidates: Sequence[Options] | None) -> dict[str, Any] | None:
    """What a file holds; None if it is not there or damaged, or if it names none of ``candidates``."""
    if not path.exists():
        return None
    try:
        entry = read_json(path)
        why = (
            None if isinstance(entry, dict) and {"card", "kind", "chosen", "tried"} <= entry.keys() else "something is missing"
        )
    except UserError as error:
        entry, why = None, str(error)
    if why is None and candidates is not None and entry["chosen"] not in candidates:
        why = f"{entry['chosen']} are none of the options"
    if why is not None:
        log.warning("%s is damaged (%s): its kernel is tried anew", path, why)
        return None
    return entry


def _is_unfinished(entry: dict[str, Any]) -> bool:
    """A process is trying now, or has ended over it: only who has the lock can tell."""
    return any(one.get("left_out") == UNFINISHED for one in entry["tried"])


def _tried_by_one(path: Path, card: str, kind: Kind, candidates: Sequence[Options], trial: Trial) -> Options:
    """What one process of several finds, or has found."""
    held = lock(path.with_suffix(".lock"), wait=f"another process is trying the options of a Triton kernel ({kind}): waiting")
    try:
        entry = _entry(path, candidates)
        if entry is not None:
            return entry["chosen"]
        log.info("trying the options of a Triton kernel, once on this card: %s", kind)
        content = {"card": card, "kind": str(kind), "chosen": candidates[0]}
        write_json(path, content | {"tried": [{"options": candidates[0], "left_out": UNFINISHED}]})
        refused = [_refused(trial, options) for options in candidates]
        timing = lock(path.parent / "timing.lock", wait="another process is timing Triton kernels on this card: waiting")
        try:
            tried = _tried(candidates, refused, trial)
        except torch.OutOfMemoryError:
            log.warning("too little memory on the GPU to try the options of a Triton kernel: %s", kind)
            path.unlink()
            return candidates[0]
        finally:
            timing.release()
        found = min((one for one in tried if "ms" in one), key=lambda one: one["ms"], default=tried[0])["options"]
        write_json(path, content | {"chosen": found, "tried": tried})
        return found
    finally:
        held.release()


def _refused(trial: Trial, options: Options) -> str | None:
    """Why it does not compile."""
    try:
        trial.compile(options)
    except Exception as error:  # of Triton, LLVM or ptxas; the default options fail again where they are needed
        return _in_a_line(error)
    return None


def _tried(candidates: Sequence[Options], refused: Sequence[str | None], trial: Trial) -> list[dict[str, Any]]:
    """Of all options the time, or why they are left out."""
    trial.run_anew(candidates[0])
    expected = [tensor.clone() for tensor in trial.written]
    tried: list[dict[str, Any]] = []
    for options, why in zip(candidates, refused, strict=True):
        one: dict[str, Any] = {"options": options}
        try:
            if why is None:
                trial.run_anew(options)
                same = _same_bits(trial.written, expected)
                one["ms"] = milliseconds(partial(trial.run, options))
                why = None if same and _same_bits(trial.written, expected) else OTHER_BITS  # after many launches, too
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # too much shared memory, for one
            why = _in_a_line(error)
        tried.append(one if why is None else {"options": options, "left_out": why})
    trial.clear()  # of what the last one wrote, right or wrong
    return tried


def _same_bits(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """NaN or not."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return all(
        torch.equal(one.view(integers[one.element_size()]), other.view(integers[other.element_size()]))
        for one, other in zip(found, expected, strict=True)
    )


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
