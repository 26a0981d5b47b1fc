"""Which options Triton kernels are compiled with: tried once, kept on disk, and never at the price of a bit.

In Triton's interpreter, which takes the options for what they are worth there, nothing: the card and the clock are made up.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernel_cases import draw, gradients, run

pytest.importorskip("triton", reason="triton is not installed: pip install triton")
from cope.kernels.triton import compiler_options, launch
from cope.kernels.triton.compiler_options import OTHER_BITS, UNFINISHED, Kind, Trial, fastest, kept, taken

CARD = "a card"
SIZES = {"QUERIES": 64, "KEYS": 32, "HEAD_DIM": 16, "VALUE_DIM": 16, "WHOLE": True, "PRECISION": "tf32x3"}
KIND = Kind("forward", "float32", ("z",), 64, tuple(SIZES.items()))
DEFAULT, FASTER, SLOWER = ({"num_stages": stages, "maxnreg": None} for stages in (1, 2, 3))
CANDIDATES = [DEFAULT, FASTER, SLOWER]
TIMES = {1: 2.0, 2: 1.0, 3: 3.0}  # ms, by num_stages


class Kernel:
    """Writes ones. ``broken``: by num_stages, what goes wrong instead."""

    def __init__(self, broken: dict[int, str] | None = None) -> None:
        self.broken = broken or {}
        self.compiled: list[int] = []
        self.runs: list[int] = []

    def warmup(self, out: torch.Tensor, grid: tuple[int, ...], num_stages: int, maxnreg: int | None) -> None:
        self.compiled.append(num_stages)
        if self.broken.get(num_stages) == "does not compile":
            raise RuntimeError("ptxas: too large\nmore")

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def start(out: torch.Tensor, num_stages: int, maxnreg: int | None) -> None:
            self.runs.append(num_stages)
            how = self.broken.get(num_stages)
            if how == "ends the process":
                raise KeyboardInterrupt
            if how == "does not fit":
                raise ValueError("out of resource: shared memory")
            if how == "no memory":
                raise torch.OutOfMemoryError
            if how == "writes nothing":
                return
            value = 1.0000001 if how == "another bit" or (how == "a race" and self.runs.count(num_stages) > 1) else 1.0
            out.fill_(float("nan") if how == "nan" else value)

        return start


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COPE_CACHE", str(tmp_path / "cache"))
    compiler_options.folder.cache_clear()
    monkeypatch.setattr(compiler_options, "milliseconds", lambda call: call() or TIMES[call.args[0]["num_stages"]])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    new_process(monkeypatch)
    yield tmp_path / "cache"
    compiler_options.folder.cache_clear()


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler_options, "_taken", {})


def trial(kernel: Kernel) -> Trial:
    out = torch.full((4,), 7.0)
    return Trial(kernel, (1,), (out,), {}, [out])


def choose(kernel: Kernel, kind: Kind = KIND, card: str = CARD) -> compiler_options.Options:
    return fastest(card, kind, CANDIDATES, trial(kernel))


def entry(cache: Path) -> dict:
    (path,) = cache.glob("triton-*/*.json")
    return json.loads(path.read_text())


def test_the_fastest_is_found_kept_and_read_without_trying_again(cache, monkeypatch):
    first = Kernel()
    assert choose(first) == FASTER and set(first.compiled) == set(first.runs) == {1, 2, 3}
    assert choose(again := Kernel()) == FASTER and again.runs == []  # this process knows
    new_process(monkeypatch)
    assert choose(again) == FASTER and again.runs == again.compiled == []  # another reads it
    assert taken() == {str(KIND): "num_stages=2, maxnreg=any"}
    assert kept(CARD) == [entry(cache)]
    assert entry(cache) == {
        "card": CARD,
        "kind": "forward with z, float32 as tf32x3, tiles of 64 x 32, heads of 16, at most 64 keys",
        "chosen": FASTER,
        "tried": [{"options": options, "ms": TIMES[options["num_stages"]]} for options in CANDIDATES],
    }


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("another bit", OTHER_BITS),
        ("writes nothing", OTHER_BITS),
        ("a race", OTHER_BITS),
        ("nan", OTHER_BITS),
        ("does not compile", "RuntimeError: ptxas: too large"),
        ("does not fit", "ValueError: out of resource: shared memory"),
    ],
)
def test_options_that_do_not_give_the_bits_of_the_default_are_left_out(cache, how, why):
    assert choose(Kernel({2: how})) == DEFAULT  # the next fastest
    assert entry(cache)["tried"][1] == {"options": FASTER, "left_out": why}


def test_nan_everywhere_is_the_same_nan(cache):
    assert choose(Kernel(dict.fromkeys((1, 2, 3), "nan"))) == FASTER


def test_nothing_that_was_tried_is_left_behind(cache):
    tried = trial(Kernel({3: "another bit"}))
    fastest(CARD, KIND, CANDIDATES, tried)
    assert (tried.written[0] == 0).all()


def test_other_kinds_cards_and_sources_are_tried_anew(cache, monkeypatch):
    choose(Kernel())
    for kind, card in (
        (KIND._replace(kernel="keys"), CARD),
        (KIND._replace(dtype="bfloat16"), CARD),
        (KIND._replace(inputs=("z", "key_mask")), CARD),
        (KIND._replace(most_keys=128), CARD),
        (KIND._replace(sizes=tuple((SIZES | {"WHOLE": False}).items())), CARD),
        (KIND._replace(sizes=tuple((SIZES | {"PRECISION": "tf32"}).items())), CARD),
        (KIND, "another card"),
    ):
        assert choose(kernel := Kernel(), kind, card) == FASTER and kernel.runs, (kind, card)
    assert len(taken()) == 7  # told apart, but for the card
    import triton

    new_process(monkeypatch)
    compiler_options.folder.cache_clear()
    monkeypatch.setattr(triton, "__version__", "0")
    choose(kernel := Kernel())
    assert kernel.runs


@pytest.mark.parametrize("content", ["{", "[]", '{"card": "a card"}', "chosen", "\0"])
def test_a_damaged_file_is_named_and_made_again(cache, monkeypatch, caplog, content):
    choose(Kernel())
    (path,) = cache.glob("triton-*/*.json")
    if content == "chosen":
        content = json.dumps(entry(cache) | {"chosen": {"num_stages": 9}})
    path.write_text(content)
    new_process(monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert choose(kernel := Kernel()) == FASTER and kernel.runs
    assert f"{path} is damaged" in caplog.text
    assert entry(cache)["chosen"] == FASTER


def test_what_ends_the_process_is_not_tried_again(cache, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        choose(Kernel({2: "ends the process"}))
    assert entry(cache)["tried"] == [{"options": DEFAULT, "left_out": UNFINISHED}]
    new_process(monkeypatch)
    assert choose(kernel := Kernel()) == DEFAULT and kernel.runs == []


def test_with_too_little_memory_the_default_is_taken_and_nothing_kept(cache, caplog):
    with caplog.at_level(logging.WARNING):
        assert choose(Kernel({2: "no memory"})) == DEFAULT
    assert "too little memory on the GPU" in caplog.text and not list(cache.glob("triton-*/*.json"))


def test_what_cannot_be_kept_is_not_tried(tmp_path, cache, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COPE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert choose(kernel := Kernel()) == DEFAULT and kernel.runs == []
    assert "compiled with their default options" in caplog.text


def test_in_a_cuda_graph_nothing_is_tried(cache, monkeypatch):
    with monkeypatch.context() as recording:
        recording.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert choose(kernel := Kernel()) == DEFAULT and kernel.runs == kernel.compiled == []
    assert choose(kernel) == FASTER  # afterwards it is
    new_process(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose(Kernel()) == FASTER  # what is known is taken


def test_of_several_at_once_one_tries(cache, monkeypatch):
    """Each with a lock of its own, as processes have."""
    kernels, found = [Kernel() for _ in range(4)], []
    # What a process knows is not known to the others.
    monkeypatch.setattr(compiler_options, "_taken", type("Forgetful", (dict,), {"__contains__": lambda *_: False})())
    threads = [threading.Thread(target=lambda kernel=kernel: found.append(choose(kernel))) for kernel in kernels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [FASTER] * 4
    assert sum(bool(kernel.runs) for kernel in kernels) == 1


# ---- the kernels' own launches ---------------------------------------------------------------------------------------


@pytest.mark.slow  # Triton's interpreter
def test_without_a_gpu_kernels_have_their_default_options(cache):
    values = draw(9, 9, 4, dtype=torch.float32)
    gradients(values, run(values, "triton"))
    assert taken() == {} and not list(cache.glob("triton-*"))


@pytest.mark.slow  # Triton's interpreter
def test_every_kernel_is_tried_on_a_card_with_the_tensors_it_writes(cache, monkeypatch):
    """The bits of a launch that was tried are those of one that was not."""
    values = draw(9, 12, 4, gates="separate", relative=5, bias=(2, 4), dtype=torch.float32)
    expected = {"output": run(values, "triton")}
    expected |= gradients(values, expected["output"])
    tried: dict[str, list[torch.Tensor]] = {}

    def everything_is_tried(card: str, kind: Kind, candidates, trial: Trial):
        tried[kind.kernel] = list(trial.written)
        found = fastest(card, kind, candidates, trial)
        assert all((tensor == 0).all() for tensor in trial.written)
        return found

    monkeypatch.setattr(launch, "card_of", lambda tensor: CARD)
    monkeypatch.setattr(launch, "fastest", everything_is_tried)
    monkeypatch.setattr(launch, "ENOUGH_PROGRAMS", 1)
    monkeypatch.setattr(launch.Launch, "options", lambda *_: CANDIDATES)
    monkeypatch.setattr(compiler_options, "milliseconds", lambda call: call() or 1.0)
    found = {"output": run(values, "triton")}
    found |= gradients(values, found["output"])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert {name: len(written) for name, written in tried.items()} == {"forward": 4, "queries": 8, "keys": 3, "distances": 2}
    for one in kept(CARD):
        assert not any("left_out" in option for option in one["tried"]), one
    assert all(", heads of 16 (padded), at most 16 keys" in kind for kind in taken())
