"""Encodings x tasks: what is planned, how encodings are ranked, and what is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import CONFIGS, ENCODINGS, ROOT, TASKS
from runs import clean_environment, completed

from cope.errors import UserError
from cope.report.claims import ClaimsPlan
from cope.report.field import better, field_cells, field_claims, published, ranking, write_field
from cope.report.findings import Findings

sys.path.insert(0, str(ROOT / "scripts"))
import decide
import field as command
import table

MACHINE = {"hardware": {"processor": "A", "threads": 1}, "versions": {"torch": "2"}}
CONTENT = yaml.safe_load((CONFIGS / "field.yaml").read_text())


def planned(folder: Path, **settings: Any) -> Any:
    return command.read_field(command.FieldSettings(**settings), ["scale=smoke", "logger=none", f"output_dir={folder}"])


def test_every_encoding_and_task_of_the_matrix_is_there() -> None:
    assert set(CONTENT["encodings"]) <= set(ENCODINGS)
    assert {setting.partition("=")[2] for own in CONTENT["tasks"].values() for setting in own if setting[:5] == "task="} <= set(
        TASKS
    )
    for task, rows in published().items():
        assert task in CONTENT["tasks"]
        assert set(rows) <= set(CONTENT["encodings"])
        assert all(0 <= error <= 100 for row in rows.values() for error in row.values())


def test_the_parts_asked_for_are_planned(tmp_path: Path) -> None:
    plan = planned(tmp_path, tasks=tuple(CONTENT["tasks"]), encodings=("path",))
    assert plan.sections == tuple(CONTENT["tasks"])
    of_a_seed = [run for run in plan.runs if run.seed == plan.seeds[0]]
    assert len({run.folder.path for run in of_a_seed}) == len(of_a_seed) == len(CONTENT["tasks"])  # each another run
    with pytest.raises(UserError, match=r"tasks=mqr .*Did you mean 'mqar'"):
        planned(tmp_path, tasks=("mqr",))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({1: 1.0, 2: 2.0, 3: 1.5}, {1: 11.0, 2: 12.1, 3: 11.4}, 1),
        ({1: 11.0, 2: 12.1, 3: 11.4}, {1: 1.0, 2: 2.0, 3: 1.5}, -1),
        ({1: 1.0, 2: 2.0, 3: 30.0}, {1: 11.0, 2: 12.0, 3: 1.0}, 0),
        ({1: 1.0, 2: 1.0, 3: 1.0}, {1: 1.0, 2: 1.0, 3: 1.0}, 0),
        ({1: 0.0, 2: 0.0, 3: 0.0}, {1: 50.0, 2: 50.0, 3: 50.0}, 1),  # no spread, where the test is not defined
        ({1: 0.0, 2: 0.0}, {1: 50.0, 2: 51.0}, 0),  # too few seeds
        ({1: 0.0, 2: 0.0, 3: 0.0}, {4: 50.0, 5: 51.0, 6: 50.0}, 0),  # none in common
    ],
)
def test_better(first: dict[int, float], second: dict[int, float], expected: int) -> None:
    assert better(first, second) == expected


def test_rankings_have_ties_published_figures_time_and_memory(tmp_path: Path) -> None:
    plan = planned(tmp_path, tasks=("navigation_1d", "a5"), encodings=("rope", "cope", "path", "alibi"))
    errors = {"rope": [0.3, 0.32, 0.31], "cope": [0.1, 0.6, 0.3], "path": [0.01, 0.02, 0.01], "alibi": [0.02]}
    for run in plan.runs:
        if (run.section, run.row, run.seed) == ("navigation_1d", "alibi", plan.seeds[1]):
            run.folder.path.mkdir(parents=True)
            (run.folder.path / "failed.txt").write_text("The loss became nan")
        if run.section == "a5" or run.seed not in plan.seeds[: len(errors[run.row])]:
            continue
        error = errors[run.row][run.seed - plan.seeds[0]]
        run.folder.path.mkdir(parents=True)
        splits = {"test": {"token_error": error}, "ood_dense": {"token_error": 0.5}}
        result = {"headline": "token_error", "splits": splits, "time_s": 7.0, "peak_memory_mib": 300.0}
        run.folder.result.write_text(completed({**result, **MACHINE}))
    findings = Findings([plan])
    cells, margins = field_cells(plan, findings), ClaimsPlan.read(CONFIGS).margins
    claims = field_claims(plan, findings, plan.seeds[:3])
    rankings = [ranking(task, cells, findings, claims, margins, in_full=True) for task in plan.sections]
    page = write_field(plan, cells, findings, rankings, tmp_path / "field", "command").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert lines[2:6] == [
        "| PaTH | 1.3 (0.6) [1], published 1 | 50.0 (0.0) [1], published 1 | 3 | 7 | 300 |",
        "| ALiBi | 2.0 | 50.0 | 1, 1 failed | 7 | 300 |",  # one seed tells nothing apart
        "| RoPE | 31.0 (1.0) [2], published 5 | 50.0 (0.0) [1], published 3 | 3 | 7 | 300 |",
        "| CoPE | 33.3 (25.2) [1], published 12 | 50.0 (0.0) [1], published 9 | 3 | 7 | 300 |",
    ]
    assert "- as published: RoPE > PaTH (in distribution)\n" in page
    assert "- not told apart here: CoPE > RoPE (in distribution), CoPE > PaTH (in distribution)," in page
    assert "**A5: missing**" in page
    judged = [line for line in page.splitlines() if line.startswith("- not decided: ")]
    assert len(judged) == 4  # on two splits CoPE with RoPE, and with the best other
    assert any("PaTH" in line and "with 3 of 3 seeds" in line for line in judged)
    shown = ranking("navigation_1d", cells, findings, claims, margins, in_full=False).notes
    assert [len(note) < 120 for note in shown if note.startswith("- not decided: ")] == [True] * 4
    assert any("PaTH" in note and "with 3 of 3 seeds" in note for note in shown)
    assert not any(note.startswith("Without a run") for note in shown)
    for seed in plan.seeds[:2]:
        shutil.rmtree(
            next(run.folder.path for run in plan.runs if (run.row, run.seed) == ("alibi", seed) and run.section != "a5")
        )
    findings = Findings([plan])
    cells = field_cells(plan, findings)
    shown_sheet, in_full = (ranking("navigation_1d", cells, findings, claims, margins, each) for each in (False, True))
    assert [row[0] for row in shown_sheet.rows] == ["PaTH", "RoPE", "CoPE"] and len(in_full.rows) == 4
    assert shown_sheet.notes[0] == "Without a run: ALiBi"
    table = pd.read_csv(tmp_path / "field" / "field.csv").set_index(["task", "encoding", "split"])
    assert table.loc[("navigation_1d", "rope", "test"), "rank"] == 2
    assert pd.isna(table.loc[("a5", "rope", "test"), "mean"])
    assert (tmp_path / "field" / "heat_map.svg").read_text().count("1-D navigation, ") == 2


def test_cope_and_its_rivals_are_run_until_they_are_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = {"rope": 0.3, "cope": 0.1, "path": 0.01, "fox": 0.5}
    ran: list[Any] = []

    def run_jobs(_: object, runs: Sequence[Any]) -> dict[Path, str]:
        for run in runs:
            if run.result() is None:
                ran.append(run)
                run.folder.path.mkdir(parents=True)
                splits = {"test": {"token_error": errors[run.row]}}
                run.folder.result.write_text(completed({"headline": "token_error", "splits": splits, **MACHINE}))
        return {}

    for module in (table, decide):
        monkeypatch.setattr(module, "run_jobs", run_jobs)
        monkeypatch.setattr(module, "check_jobs", lambda *_: None)
    for module in (table, command):
        monkeypatch.setattr(module, "launcher_of", lambda _: nullcontext())
    arguments = ["tasks=navigation_1d", "encodings=rope,cope,path,fox", "seeds=2", f"to={tmp_path / 'field'}"]
    command.main([*arguments, "action=decide", "scale=smoke", "logger=none", f"output_dir={tmp_path / 'outputs'}"])
    seeds = {row: sum(run.row == row for run in ran) for row in errors}
    assert seeds == {"rope": 9, "cope": 9, "path": 9, "fox": 2}  # FoX is neither RoPE nor the best other
    said = capsys.readouterr().out
    assert "- for CoPE: 1-D navigation, in distribution: CoPE below RoPE with 9 of 9 seeds" in said
    assert "- against CoPE: 1-D navigation, in distribution: PaTH below CoPE with 9 of 9 seeds" in said


@pytest.mark.slow
def test_the_field_runs_and_is_not_run_again(tmp_path: Path) -> None:
    arguments = [f"output_dir={tmp_path / 'outputs'}", f"to={tmp_path / 'field'}", "scale=smoke", "logger=none", "seeds=1"]
    arguments += ["tasks=a5,copy", "encodings=cope,fox", "with_runs=true", "action=run"]
    for _ in range(2):
        found = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "field.py"), *arguments],
            capture_output=True, text=True, cwd=tmp_path, timeout=300, env=clean_environment(),
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "field" / "runs").rglob("result.json")]
    assert len(results) == 4
    assert "4 of 4 runs are finished" in found.stderr + found.stdout
