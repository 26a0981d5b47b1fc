"""The check of a GPU, in a tiny form on a CPU: kernels in Triton's interpreter, attention with backend=native, smoke runs."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from conftest import ROOT

from cope.errors import UserError

sys.path.insert(0, str(ROOT / "benchmarks"))  # where the benchmarks are run from
import gpu_attention
import gpu_check
import gpu_kernels
import gpu_training
from kernel_cases import HALVES, draw, queries_at_corners
from runs import command_here

TINY_CASES = {
    "one token": gpu_kernels.CASES["one token"],
    "a few tokens": dict(num_queries=9, num_keys=9, num_positions=4),
    "relative alone": dict(num_queries=9, num_keys=12, num_positions=None, relative=5, bias=(2, 4)),
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(gpu_kernels, "CASES", TINY_CASES)
    monkeypatch.setattr(gpu_attention, "SHAPES", [(2, 2, 32, 16)])
    monkeypatch.setattr(gpu_attention, "CACHE", (1, 2, 64, 16))
    monkeypatch.setattr(gpu_check, "SCALE", "smoke")
    monkeypatch.setattr(gpu_check, "STEPS", 20)
    monkeypatch.setattr(gpu_check, "TRAINING_PARTS", ("alone",))
    monkeypatch.setattr(gpu_check, "TRAINING_SECONDS", 0.1)
    return tmp_path / "found"


def found_by(folder, *arguments):
    try:
        gpu_check.main([f"to={folder}", "device=cpu", *arguments])
    except UserError as error:
        told = str(error)
    else:
        told = None
    return json.loads((folder / "results.json").read_text()), (folder / "results.md").read_text(), told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    finished = command_here("benchmarks/gpu_check.py", f"to={tmp_path / 'found'}")
    assert finished.returncode == 1
    assert finished.stdout + finished.stderr == "gpu-check needs a GPU, and PyTorch finds none here.\n"
    assert not (tmp_path / "found").exists()


@pytest.mark.slow  # Triton's interpreter
def test_kernels_are_held_to_a_tolerance_of_each_type(tiny):
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    result, text, told = found_by(tiny, "parts=kernels")
    rows = {(row["case"], row["dtype"]): row for row in result["parts"]["kernels"]}
    assert set(rows) == {(case, dtype) for case in TINY_CASES for dtype in ("bfloat16", "float16", "float32")}
    for (case, dtype), row in rows.items():
        if dtype == "bfloat16":
            assert "Triton's interpreter cannot multiply bfloat16" in row["found"]["error"]
        else:
            assert gpu_kernels.is_right(row), row
            assert ("sdpa_errors" in row["found"]) == (case != "relative alone")
    # Rounding shows: half precision is tested in half precision.
    errors = {dtype: max(rows["a few tokens", dtype]["found"]["errors"].values()) for dtype in ("float16", "float32")}
    assert errors["float16"] > 1e-4 > 1e-5 > errors["float32"]
    assert told == f"Something is wrong or failed in kernels: see {tiny / 'results.md'}."
    assert "6 of 9 are right and the same to the bit when repeated." in text


def test_queries_at_corners_are_those_with_all_but_whole_positions():
    values = draw(**HALVES)
    assert not queries_at_corners(values).any()  # positions of 1/2, 1, 3/2, 2, ...: none, or exactly
    values["gate_keys"] = values["gate_keys"].detach() + 1e-5
    assert queries_at_corners(values)[:, :, 1:].float().mean() > 0.9 and not queries_at_corners(values)[:, :, 0].any()


def test_a_wrong_kernel_is_not_right():
    right = {"dtype": "float16", "found": {"errors": {"output": 1e-4, "gradient of q": 3e-3}, "repeats": True}}
    assert gpu_kernels.is_right(right)
    for change in ({"errors": {"output": 5e-3}}, {"errors": {"output": float("nan")}}, {"repeats": False}, {"error": "x"}):
        assert not gpu_kernels.is_right(right | {"found": right["found"] | change}), change


@pytest.mark.slow  # starts processes
def test_attention_is_timed_beside_pytorchs(tiny):
    result, text, told = found_by(tiny, "parts=attention")
    assert told is None
    rows = result["parts"]["attention"]
    assert len(rows) == 9
    for row in rows:
        assert set(row["found"]["seconds"]) == {"sdpa", "ours"}, row
        assert all(seconds > 0 for seconds in row["found"]["seconds"].values())
    assert text.count("\n| cope, ") == 8 and text.count("\n| relative | 2 x 2 x 32 x 16 | bfloat16 | ") == 1
    head = text.splitlines()[:3]
    assert head[0] == "## On one GPU: cpu"
    for said in (torch.__version__, "commit ", result["date"], "cores", "seeds: "):
        assert said in head[2]


@pytest.mark.slow  # starts processes
def test_training_and_a_run_are_measured(tiny):
    result, text, told = found_by(tiny, "parts=run,training")
    assert list(result["parts"]) == ["training", "run"]
    rows = result["parts"]["training"]
    assert len(rows) == len(gpu_training.cells(["alone"], "smoke", 0.1, "cpu", []))
    assert all(("tokens_per_s" in row["found"]) == (row["way"] == "eager") for row in rows), rows
    assert told == f"Something is wrong or failed in training: see {tiny / 'results.md'}."  # there are no graphs on a CPU
    (row,) = result["parts"]["run"]
    validations = [line for line in row["found"]["metrics"] if "eval/validation/token_error" in line]
    assert [line["step"] for line in validations] == [5, 10, 15, 20]
    assert row["found"]["result"]["steps"] == 20
    assert "| step | 5 | 10 | 15 | 20 |\n" in text and "At the end token error %: validation " in text
    assert "| alone | `task=counting pe=cope` |" in text


def test_what_fails_is_told_and_the_rest_goes_on(tiny, monkeypatch):
    def rows_of(device, limit):
        raise RuntimeError("CUDA error:\nno | card")
        yield

    monkeypatch.setattr(gpu_kernels, "rows_of", rows_of)
    monkeypatch.setattr(gpu_check, "RECIPE", ("task=flop",))
    result, text, told = found_by(tiny, "parts=kernels,run")
    assert "This part failed: RuntimeError: CUDA error: no / card" in text
    assert "flop" in result["parts"]["run"][0]["found"]["error"] and "Failed: " in text
    assert told == f"Something is wrong or failed in kernels, run: see {tiny / 'results.md'}."


def test_parts_share_the_time(tiny, monkeypatch):
    given = {}

    def rows_of(part, settings, limit):
        given[part] = limit
        yield from ()

    monkeypatch.setattr(gpu_check, "rows_of", rows_of)
    found_by(tiny, "limit=450")
    # Nothing takes time here, and what a part leaves is the following ones'.
    assert [round(limit) for limit in given.values()] == [120, round(450 * 100 / 330), round(450 * 150 / 230), 450]


def test_the_options_of_kernels_are_told(tiny, monkeypatch):
    """Of a card that is made up."""
    default, other, third = ({"num_stages": stages, "maxnreg": None} for stages in (3, 2, 1))
    tried = [{"options": default, "ms": 0.5}, {"options": other, "ms": 0.4}, {"options": third, "left_out": "gives other bits"}]
    kept = [
        {"card": "a card", "kind": "forward", "chosen": other, "tried": tried},
        {"card": "a card", "kind": "keys", "chosen": default, "tried": [{"options": default, "left_out": "did not end"}]},
    ]
    monkeypatch.setattr(gpu_check, "rows_of", lambda *_: iter(()))
    _result, text, _told = found_by(tiny, "parts=kernels")
    assert "Options of the kernels" not in text  # without a GPU there are none
    monkeypatch.setattr(gpu_kernels, "options_kept", lambda device: kept)
    result, text, _told = found_by(tiny, "parts=kernels")
    assert result["kernel_options"] == kept
    assert (
        "### Options of the kernels" in text
        and "| forward | num_stages=2, maxnreg=any | 0.80 | num_stages=3, maxnreg=any: 0.500; num_stages=2, maxnreg=any: 0.400"
        "; num_stages=1, maxnreg=any: gives other bits |"
        in text
        and "| keys | num_stages=3, maxnreg=any |  | num_stages=3, maxnreg=any: did not end |" in text
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], r"to=\.\.\. must be given: python benchmarks/gpu_check\.py to="),
        (["to=x", "parts=kernel"], "parts=kernel is not known; allowed: kernels, attention, .*Did you mean 'kernels'"),
        (["to=x", "limit=0"], "limit=0.0 is too small"),
        (["to=x", "device=gpu"], "device=gpu is not known; allowed: cuda, cpu"),
    ],
)
def test_bad_input_is_refused(arguments, told):
    with pytest.raises(UserError, match=told):
        gpu_check.main(arguments)
