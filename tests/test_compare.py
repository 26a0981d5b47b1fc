"""``scripts/compare.py``: finished runs side by side, and what it says of words that mean nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from runs import command_here, completed


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
    return folder


def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return command_here("scripts/compare.py", *arguments)


def test_runs_stand_side_by_side(outputs: Path) -> None:
    lines = compare(f"runs={outputs}").stdout.splitlines()
    assert lines[0].split()[:6] == ["task", "pe", "seed", "scale", "metric", "test"] and len(lines) == 4
    assert "0.10" in lines[1] and "optimizer.lr=0.2" in lines[3]
    filtered = compare(f"runs={outputs}", "pe=rope", "seed=2", "split=ood_shorter").stdout.splitlines()
    assert len(filtered) == 2 and "60.00" in filtered[1] and "30.00" not in filtered[1]
    assert (
        compare(f"runs={outputs / 'counting' / 'rope' / '01234567' / 'seed=2'}", "split=ood_shorter").stdout.count("60.00") == 1
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pe=cpoe"], "pe=cpoe is not known; allowed: cope, rope. Did you mean 'cope'?"),
        (["pe=rope,cpoe"], "pe=cpoe is not known"),
        (["seed=1", "seed=2"], "seed=2 is one seed too many"),
        (["sed=1"], "sed is not a setting; allowed: runs, task, pe, seed, scale, split. Did you mean 'seed'?"),
        (["split=tset"], "split=tset is not known; allowed: test, ood_shorter. Did you mean 'test'?"),
        (["pe=cope", "seed=2"], "no finished run has all of these filters' values"),
        (["pe=rope", "nowhere"], "'nowhere' is not of the form key=value"),
        ([""], "'' is not of the form key=value"),
    ],
)
def test_words_that_mean_nothing_are_told(outputs: Path, arguments: list[str], said: str) -> None:
    done = compare(f"runs={outputs}", *arguments)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith(said), done.stderr


def test_a_filter_alone_is_not_enough() -> None:
    assert compare("seed=1").stderr.startswith("runs=... must be given: python scripts/compare.py runs=")
    assert compare("runs=nowhere").stderr.startswith("nowhere holds no finished run")
