"""``scripts/decide.py``: it runs what claims need, tells how far they are, goes on where it stopped, and ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import ROOT
from plans import SEEDS, plan_in
from runs import completed

from cope.endings import LEFT_OVER
from cope.errors import UserError
from cope.sweep.plan import PlannedRun

sys.path.insert(0, str(ROOT / "scripts"))
import decide as command

FAILS = ("relative", SEEDS[3])


@pytest.fixture
def stubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[PlannedRun]:
    """The command with Table 4 alone, whose runs end at once; those that it ran."""
    done: list[PlannedRun] = []

    def run_jobs(launcher: object, runs: Sequence[PlannedRun]) -> dict[Path, str]:
        failed = {}
        for run in runs:
            assert run.result() is None
            done.append(run)
            if (run.row, run.seed) == FAILS:
                failed[run.folder.path] = f"failed: {run.command}"
                continue
            run.folder.path.mkdir(parents=True)
            error = 0.01 if run.folder.encoding == "cope" else 0.2
            run.folder.result.write_text(completed({"seed": run.seed, "splits": {"ood_longer": {"error": error}}}))
        return failed

    monkeypatch.setattr(command, "read_plans", lambda *_: ([plan_in(tmp_path, "table4", len(SEEDS))], []))
    monkeypatch.setattr(command, "run_jobs", run_jobs)
    monkeypatch.setattr(command, "num_cores", lambda: 1)
    monkeypatch.setattr(command, "launcher_of", lambda *_: nullcontext())
    for name in ("check_jobs", "composed"):
        monkeypatch.setattr(command, name, lambda *_: None)
    return done


def test_a_claim_is_run_until_it_is_decided(stubbed: list[PlannedRun], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["claims=9"])
    assert stopped.value.code == LEFT_OVER  # one run failed; another seed took its place
    assert [(run.row, run.seed) for run in stubbed] == [(row, seed) for seed in SEEDS[:10] for row in ("cope", "relative")]
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line]
    assert lines[0] == " 9 not run       Counting, more passes    0 won, 0 lost, E 1; needs 9 of 24 seeds left"
    assert lines[1] == " 9 not decided   Counting, more passes    2 won, 0 lost, E 2.33; needs 7 of 22 seeds left"
    assert lines[-1] == " 9 reproduced    Counting, more passes    9 won, 0 lost, E 102" and len(lines) == 6
    assert said.err.endswith("1 of 48 runs are not finished; the same command runs only those.\n")
    stubbed.clear()
    command.main(["claims=9"])
    assert stubbed == []  # it is decided, and the failed run is not needed


def test_fewer_seeds_than_can_decide_are_not_run(stubbed: list[PlannedRun], capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["claims=9", "seeds=8"])
    said = capsys.readouterr()
    assert stubbed == [] and said.out.endswith("8 seeds left cannot decide\n")
    assert said.err == "seeds=8: fewer than 9 decide nothing, so none is begun.\n"
    with pytest.raises(SystemExit):  # one of nine fails
        command.main(["claims=9", "seeds=9"])
    done = len(stubbed) // 2 - 1
    assert capsys.readouterr().out.endswith(f"; {9 - done - 1} seeds left cannot decide\n")
    command.main(["claims=9", f"seeds={done}"])
    assert capsys.readouterr().out.endswith("; no seed is left\n")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("claims=18", "claim 18 is not known; allowed: 1 to 17"),
        ("seeds=25", "seeds=25 is out of range; allowed: 1 to 24"),
        ("claims=one", "claims='?one'? has the wrong type"),
    ],
)
def test_what_cannot_be_decided_is_told(argument: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        command.main([argument])


@pytest.mark.slow
def test_decide_runs_measures_and_judges_at_the_smallest_scale(tmp_path: Path) -> None:
    """Some two minutes on two cores: ten seeds of two encodings and of a language model, whose heads are measured."""
    settings = ["scale=smoke", "logger=none", f"output_dir={tmp_path / 'outputs'}", f"data_dir={tmp_path / 'data'}"]
    settings += ["trainer.steps=4", "trainer.eval_every=4", "claims=9,15", "seeds=10", "windows=100"]
    decide = [sys.executable, str(ROOT / "scripts" / "decide.py"), *settings]
    made = subprocess.run(decide, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    first, *_, last = made.stdout.split("\n\n")
    assert first.count(" not run ") == 2 and "15 contradicted" in last  # untrained heads know of no paragraph
    finished = list((tmp_path / "outputs").glob("*/*/*/seed=*/result.json"))
    assert sum("cope_sep_keys" in path.parts for path in finished) == 9
    assert 2 <= len(finished) - 9 <= 20  # untrained counting is won and lost by chance, and may soon be past deciding
    again = subprocess.run(decide, cwd=tmp_path, capture_output=True, text=True)
    assert again.stdout.strip() == last.strip()
    claims = [sys.executable, str(ROOT / "scripts" / "report.py"), "claims=true", *settings[:4], *settings[4:6]]
    assert "\n15 contradicted " in subprocess.run(claims, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
