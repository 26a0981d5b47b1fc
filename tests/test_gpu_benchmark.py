"""The benchmark of training on a GPU, in a tiny form on a CPU: it measures, goes on after a failure, and keeps to its time."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace

import pytest
from conftest import ROOT

from cope.errors import UserError

sys.path.insert(0, str(ROOT / "benchmarks"))  # where the benchmarks are run from
import gpu_training
from workers import Workers


def plan(*parts, **changes):
    return gpu_training.cells(list(parts), **({"scale": "smoke", "seconds": 0.2, "device": "cpu", "processes": [2]} | changes))


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["gpt2", "alone"])
def test_what_can_be_measured_is_and_what_cannot_says_why(tmp_path, monkeypatch, parts):
    def measured_here(self, cell, longest):
        try:
            return cell.find(lambda: None)
        except UserError as error:
            return {"error": str(error)}

    monkeypatch.setattr(Workers, "measure", measured_here)  # what starts processes is tested below
    monkeypatch.chdir(tmp_path)
    gpu_training.main(["to=found", "scale=smoke", "device=cpu", "seconds=0.1", f"parts={parts}"])
    result = json.loads((tmp_path / "found" / "results.json").read_text())
    rows = {(row["setting"], row["precision"], row["way"]): row["found"] for row in result["cells"]}
    assert len(rows) == len(plan(parts)) > 1
    for (_, precision, way), found in rows.items():
        if way == "graphs":
            told = "precision=tf32 has no effect" if precision == "tf32" else "cuda_graphs=true needs a GPU"
            assert told in found["error"]
        else:
            assert found["tokens_per_s"] * found["ms_per_step"] / 1000 == pytest.approx(found["tokens_per_step"], rel=0.5)
    table = (tmp_path / "found" / "results.md").read_text()
    assert table.count("\n| ") == len(rows) + 1


@pytest.mark.slow
def test_graphs_are_compared_with_plain_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = replace(plan("check")[0], way="eager")
    found = gpu_training.check(cell)
    assert found["waits"] == {"eager": []}
    assert found["largest_difference"] == 0
    assert len(found["losses"]["eager"]) == gpu_training.CHECKED_STEPS


def test_rates_of_processes_count_where_all_were_measured():
    # Of windows of a second and 10 tokens: the first begins to be measured at 2, the second at 4 and ends at 7.
    first = {"windows": [(float(at), at + 1.0, 10) for at in range(9)], "warm_up_s": 2.0}
    second = {"windows": [(float(at), at + 1.0, 30) for at in range(2, 7)], "warm_up_s": 3.0}
    assert gpu_training.together([first, second]) == {"tokens_per_s": 40.0, "windows_together": 3, "warm_up_s": 3.0}
    apart = {"windows": [(float(at), at + 1.0, 30) for at in range(20, 27)], "warm_up_s": 3.0}
    assert "not measured at the same time" in gpu_training.together([first, apart])["error"]


@dataclass(frozen=True)
class Meeting:
    """A cell that finds when its process was ready, and when it went on."""

    processes: int = 2

    def find(self, all_are_warm):
        ready = time.monotonic()
        all_are_warm()
        return {"ready": ready, "went_on": time.monotonic()}

    def together(self, found):
        return {"found": found}


@pytest.mark.slow  # starts processes
def test_a_cell_that_takes_too_long_is_given_up_and_the_next_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workers = Workers()
    cell = next(cell for cell in plan("alone") if cell.way == "eager" and cell.precision == "32-true")
    assert workers.measure(replace(cell, seconds=1000.0), longest=2.0) == {"error": "given up after 2 s"}
    assert workers.measure(cell, longest=300.0)["tokens_per_s"] > 0  # starting a process takes long
    met = workers.measure(Meeting(), longest=300.0)["found"]
    assert len(met) == 2 and min(one["went_on"] for one in met) >= max(one["ready"] for one in met)
    workers.end()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], r"to=\.\.\. must be given: python benchmarks/gpu_training\.py to=FOLDER"),
        (["to=x", "parts=alone,togther"], "parts=togther is not known; allowed: check, alone.*Did you mean 'together'"),
        (["to=x", "processes=1"], "processes=1 is too small; allowed: 2 or more"),
        (["to=x", "seconds=long"], "seconds='long' has the wrong type; allowed: float"),
        (["to=x", "device=gpu"], "device=gpu is not known; allowed: auto, cpu, cuda"),
    ],
)
def test_bad_input_is_refused(arguments, told):
    with pytest.raises(UserError, match=told):
        gpu_training.main(arguments)
