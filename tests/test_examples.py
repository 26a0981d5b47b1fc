"""What stands in examples/ runs: in seconds here, at the size that is meant in the slow tests."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pytest
from conftest import ROOT

EXAMPLES = ROOT / "examples"
SECONDS = ["scale=smoke", "trainer.steps=20", "trainer.eval_every=10"]


def run_notebook(name: str, changes: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """All cells as one program, with ``changes`` to its settings; the word that its model finds most likely."""
    monkeypatch.chdir(folder)
    cells = json.loads((EXAMPLES / name).read_text())["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code"), "outputs are not kept in the repository"
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    changed = re.sub(r"^SETTINGS = \[\]", f"SETTINGS = {list(changes)!r}", code, flags=re.MULTILINE)
    assert changed != code
    with matplotlib.rc_context({"backend": "agg"}):
        exec(compile(changed, name, "exec"), names := {"__name__": "__main__"})
    return str(max(zip(names["probabilities"].tolist(), names["task"].vocabulary, strict=True))[1])


def run_script(name: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def rows(printed: str) -> dict[str, list[str]]:
    """The table of add_cope_to_rope.py: what stands behind each label."""
    lines = printed[printed.index("sequence error %") :].splitlines()[1:]
    return {line[:34].strip(): line[34:].split() for line in lines}


def test_cope_is_added_to_a_model_with_rope(tmp_path, monkeypatch, capsys):
    run_script("add_cope_to_rope.py", [*SECONDS, "steps=20", "table_lr=0.3", f"output_dir={tmp_path}"], monkeypatch)
    found = rows(capsys.readouterr().out)
    assert list(found) == ["RoPE", "with CoPE, a table of zeros", "RoPE, 20 steps more", "with CoPE, 20 steps more"]
    assert found["with CoPE, a table of zeros"][:2] == found["RoPE"][:2]
    assert found["with CoPE, a table of zeros"][2:4] == ["0.00", "0.00"]
    assert any(float(share) > 0 for share in found["with CoPE, 20 steps more"][2:4])


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    run_notebook("what_does_it_count.ipynb", SECONDS, tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count("layer 1, head 1: ") == 1
    assert re.search(r"^layer 1: <PositionUse: share .+ positions unused>$", printed, re.MULTILINE)


@pytest.mark.slow
def test_the_notebook_counts_at_its_own_size(tmp_path, monkeypatch, capsys):
    assert run_notebook("what_does_it_count.ipynb", ["seed=1"], tmp_path, monkeypatch) == "3"
    printed = capsys.readouterr().out
    assert re.search(r"layer \d, head \d: (a|=|0|\+\+|print)", printed)


@pytest.mark.slow
def test_the_table_comes_to_matter_in_a_model_with_rope(tmp_path, monkeypatch, capsys):
    run_script("add_cope_to_rope.py", [f"output_dir={tmp_path}"], monkeypatch)
    found = rows(capsys.readouterr().out)
    assert found["with CoPE, a table of zeros"][:2] == found["RoPE"][:2]
    assert max(float(share) for share in found["with CoPE, 500 steps more"][2:6]) > 0.02
