"""``scripts/compare.py`` and ``scripts/runs.py``: finished runs side by side, and what it says of words that mean nothing."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import pytest
import yaml
from runs import command_here, completed

from cope.errors import UserError
from cope.report.sheets import Sheet, as_text
from cope.run.lookup import run_path


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    for pe, seed, error in (("cope", 1, 0.001), ("rope", 1, 0.25), ("rope", 2, 0.3)):
        run = folder / "counting" / pe / "01234567" / f"seed={seed}"
        run.mkdir(parents=True)
        result = {
            "task": "counting", "encoding": pe, "seed": seed, "scale": "smoke", "headline": "error", "time_s": 7.0,
            "num_parameters": 1000, "splits": {"test": {"error": error}, "ood_shorter": {"error": 2 * error}},
            "config": {"pe": {"name": pe}, "optimizer": {"lr": 0.1 * seed}},
        }  # fmt: skip
        (run / "result.json").write_text(completed(result))
        settings = {"seed": seed, "scale": "smoke", "task": {"name": "counting"}, **result["config"]}  # type: ignore[dict-item]
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return call("compare.py", *arguments)


def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command_here(f"scripts/{script}", *arguments)


def test_runs_stand_side_by_side(outputs: Path) -> None:
    rows = list(csv.DictReader(compare(f"runs={outputs}", "format=csv").stdout.splitlines()))
    assert [row["pe"] for row in rows] == ["cope", "rope", "rope"]
    assert rows[0]["in distribution"] == "0.1" and rows[2]["differs in"] == "optimizer.lr=0.2"
    for typed in (("--format", "csv"), ("--format=csv",)):
        assert list(csv.DictReader(compare(f"runs={outputs}", *typed).stdout.splitlines())) == rows
    arguments = (f"runs={outputs}", "pe=rope", "seed=2", "split=ood_shorter", "format=csv")
    (filtered,) = csv.DictReader(compare(*arguments).stdout.splitlines())
    assert filtered["OOD shorter"] == "60.0" and "in distribution" not in filtered
    one = outputs / "counting" / "rope" / "01234567" / "seed=2"
    assert compare(f"runs={one}", "split=ood_shorter").stdout.count("60.0") == 1


def test_the_list_of_runs_says_what_they_share_once(outputs: Path) -> None:
    def listed(*arguments: str) -> list[dict[str, str]]:
        return list(csv.DictReader(call("runs.py", f"runs={outputs}", "format=csv", *arguments).stdout.splitlines()))

    rows = listed("sort=error")
    assert [(row["encoding"], row["seed"], row["test"], row["worst OOD"]) for row in rows] == [
        ("cope", "1", "0.1", "0.2"), ("rope", "1", "25.0", "50.0"), ("rope", "2", "30.0", "60.0")
    ]  # fmt: skip
    assert rows[1]["differs in"] == "optimizer.lr=0.1"
    assert all((Path(row["folder"]) / "result.json").exists() for row in rows)
    assert "all with task counting, scale smoke, state finished" in call("runs.py", f"runs={outputs}").stdout
    assert [row["seed"] for row in listed("optimizer.lr=2e-1")] == ["2"]
    assert [row["encoding"] for row in listed("pe=cope,rope", "seed=1")] == ["cope", "rope"]


def test_programs_read_the_same_columns_whatever_was_run(outputs: Path) -> None:
    for arguments in ([], ["pe=cope"]):
        lines = call("runs.py", f"runs={outputs}", "format=csv", *arguments).stdout.splitlines()
        assert lines[0] == "task,encoding,scale,differs in,seed,state,metric,test,worst OOD,age,folder"
        assert lines[1].startswith("counting,cope,smoke,,1,finished,")
        (listed,) = json.loads(call("runs.py", f"runs={outputs}", "format=json", *arguments).stdout)
        assert ",".join(listed["rows"][0]) == lines[0]


def test_csv_of_several_tables_says_which_one_a_row_is_of() -> None:
    sheets = [Sheet(title, ("pe", "test"), (("cope", "0.1"),)) for title in ("counting", "flip_flop")]
    assert as_text(sheets, "csv") == "table,pe,test\ncounting,cope,0.1\n\ntable,pe,test\nflip_flop,cope,0.1"
    assert as_text(sheets[:1], "csv") == "pe,test\ncope,0.1"


def test_runs_are_told_apart_however_much_they_differ_in(tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / "counting" / "rope" / f"0123456{number}" / "seed=1"
        folder.mkdir(parents=True)
        settings = {f"key_{letter}": f"{letter}{number}" for letter in "abcde"}
        (folder / "config.yaml").write_text(yaml.safe_dump({"scale": "smoke", "seed": 1, "model": settings}))
    rows = list(csv.DictReader(call("runs.py", f"runs={tmp_path}", "format=csv").stdout.splitlines()))
    assert [row["differs in"].split()[-1] for row in rows] == ["model.key_e=e0", "model.key_e=e1"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("pe=cpoe", "pe=cpoe: no run has it; allowed: cope, rope. Did you mean 'cope'?"),
        ("state=failed", "state=failed: no run has it; allowed: finished.\n"),
        ("optimizer.lrr=1", "optimizer.lrr is no setting of these runs. Did you mean 'optimizer.lr'?"),
        ("sort=name", "sort=name is not known; allowed: task,"),
        ("format=html", "format=html is not known; allowed: table, markdown, csv, latex, json"),
    ],
)
def test_filters_that_mean_nothing_are_told(outputs: Path, argument: str, said: str) -> None:
    done = call("runs.py", f"runs={outputs}", argument)
    assert done.returncode == 1 and done.stderr.startswith(said), done.stderr


def test_a_run_is_named_by_the_beginning_of_its_hash(outputs: Path) -> None:
    assert run_path("0123/seed=2", outputs) == outputs / "counting" / "rope" / "01234567" / "seed=2"
    with pytest.raises(UserError, match=r"run=01 is the beginning of 3 runs: .*cope.*rope.* Type more of it, or the seed"):
        run_path("01", outputs)
    with pytest.raises(UserError, match=r"run=ff: no run in .* has a hash that begins so"):
        run_path("ff", outputs)
    with pytest.raises(UserError, match=r"run=01/seed=3: of 01 .* has no seed=3; allowed: 1, 2\."):
        run_path("01/seed=3", outputs)
    (outputs / "counting" / "rope" / "01234567" / "seed=2" / "checkpoints").mkdir()
    assert run_path("01", outputs).name == "seed=2"  # the one that has weights, beside published runs
    assert run_path("outputs/counting", outputs) == Path("outputs/counting")  # a path is a path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pe=cpoe"], "pe=cpoe is not known; allowed: cope, rope. Did you mean 'cope'?"),
        (["pe=rope,cpoe"], "pe=cpoe is not known"),
        (["seed=1", "seed=2"], "seed=2 is one seed too many"),
        (["sed=1"], "sed is not a setting; allowed: runs, task, pe, seed, scale, split, format. Did you mean 'seed'?"),
        (["split=tset"], "split=tset is not known; allowed: test, ood_shorter. Did you mean 'test'?"),
        (["pe=cope", "seed=2"], "no finished run has all of these filters' values"),
        (["pe=rope", "nowhere"], "'nowhere' is not of the form key=value"),
        ([""], "'' is not of the form key=value"),
    ],
)
def test_words_that_mean_nothing_are_told(outputs: Path, arguments: list[str], said: str) -> None:
    done = compare(f"runs={outputs}", *arguments)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith(said), done.stderr


def test_without_runs_it_lists_what_there_is(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(outputs.parent)
    monkeypatch.setattr("cope.run.lookup.OUTPUTS", outputs)
    assert "3 runs, all with" in compare().stdout and compare("seed=2").stdout.count("rope") > 0
    assert compare("runs=nowhere").stderr.startswith("nowhere holds no finished run")


def test_a_sheet_without_rows_is_its_title_and_notes() -> None:
    """As the ranking of a task that nothing was run of."""
    assert as_text([Sheet("MQAR: missing", (), ()), Sheet("A", ("x",), (), ("note",))], "table") == "MQAR: missing\n\nA\nnote"
