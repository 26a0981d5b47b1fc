"""The jobs of a sweep: what is checked before any begins, what becomes of each, how long the others may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import CONFIGS
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from plans import SEEDS, plan_in
from runs import completed

from cope.errors import AlreadyRunning, Interrupted, UserError
from cope.sweep.clock import Clock, duration
from cope.sweep.jobs import check_jobs, run_jobs
from cope.sweep.plan import composed as composed_settings
from cope.sweep.plan import composed_now, launcher_for, read_plan
from cope.sweep.process import Lost, Processes
from hydra_plugins.cope.sweeps import check_number


class Answers(Launcher):
    """A launcher whose jobs end as it is told."""

    def __init__(self, *raised: Exception) -> None:
        self.raised = raised

    def setup(self, **_: object) -> None: ...

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        assert len(job_overrides) == len(self.raised)
        return [JobReturn(status=JobStatus.FAILED, _return_value=error) for error in self.raised]


def finish(folder: Path, task: str, seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(completed({"task": task, "time_s": seconds}))


def test_what_is_left_over_is_told_from_what_failed(tmp_path: Path) -> None:
    runs = plan_in(tmp_path, "table4", 1).runs[:3]
    for _ in range(2):  # again after a failure
        left_over = run_jobs(Answers(Interrupted("Stopped."), AlreadyRunning("."), UserError("no.")), runs)
        assert [said.partition(": ")[0] for said in left_over.values()] == ["stopped", "left alone", "FAILED"]
        assert [run.failed for run in runs] == [False, False, True]
    assert runs[2].folder.failure.read_text() == f"{runs[2].command}\nno.\n"
    finish(runs[2].folder.path, "counting", 1.0)
    assert list(run_jobs(Answers(UserError("no."), UserError("no.")), runs)) == [run.folder.path for run in runs[:2]]


def test_equal_jobs_are_run_once_and_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = plan_in(tmp_path, "table4", 1).runs[:2]
    left_over = run_jobs(Answers(UserError("no."), UserError("no.")), [one, other, one])
    assert list(left_over) == [one.folder.path, other.folder.path]
    assert "3 jobs, 2 of them different: equal ones are run once\n0 of 2 runs are finished" in capsys.readouterr().out


def test_a_failure_is_kept_though_the_sweep_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = read_plan(CONFIGS, "table4", [f"output_dir={tmp_path}"], SEEDS).runs

    def fail_and_be_stopped(self: Processes, function: object, environment: dict[str, str]) -> JobReturn:
        if not self.is_stopping():
            self.stop()
            raise RuntimeError("it ended")
        raise Interrupted("It was not begun.")

    monkeypatch.setattr(Processes, "call", fail_and_be_stopped)
    with launcher_for(CONFIGS, ["hydra.launcher.jobs=1"], lambda config: None) as launcher, pytest.raises(KeyboardInterrupt):
        run_jobs(launcher, runs)
    assert [run.failed for run in runs] == [True] + [False] * (len(runs) - 1)


def test_a_job_that_ends_well_and_leaves_no_result_is_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on folders that machines share, slowly; or with what another cluster's job of this number answered."""
    run, *_ = read_plan(CONFIGS, "table4", [f"output_dir={tmp_path}"], SEEDS).runs
    monkeypatch.setattr(Processes, "call", lambda *_: JobReturn(status=JobStatus.COMPLETED))
    with launcher_for(CONFIGS, ["hydra.launcher.jobs=1"], lambda config: None) as launcher:
        left_over = run_jobs(launcher, [run])
    assert "it ended, and there is no result in" in left_over[run.folder.path]


@pytest.mark.parametrize("error", [Lost("its process ended with exit status -9"), RuntimeError("no picture")])
def test_a_run_that_was_finished_when_its_process_was_lost_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run, *_ = read_plan(CONFIGS, "table4", [f"output_dir={tmp_path}"], SEEDS).runs

    def end_so(*_: object) -> JobReturn:
        finish(run.folder.path, "counting", 1.0)
        raise error

    monkeypatch.setattr(Processes, "call", end_so)
    with launcher_for(CONFIGS, ["hydra.launcher.jobs=1"], lambda config: None) as launcher:
        left_over = run_jobs(launcher, [run])
    is_lost = isinstance(error, Lost)  # any other error is told, though there is a result
    assert (list(left_over), run.folder.failure.exists()) == (([], False) if is_lost else ([run.folder.path], True))


def test_a_line_tells_what_sets_its_run_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = read_plan(CONFIGS, "table3", [f"output_dir={tmp_path}"], [1])
    runs = [run for run in plan.runs if run.folder.encoding == "cope"]
    left = iter(runs)

    def end_so(*_: object) -> JobReturn:
        finish(next(left).folder.path, "counting", 1.0)
        return JobReturn(status=JobStatus.COMPLETED)

    monkeypatch.setattr(Processes, "call", end_so)
    with launcher_for(CONFIGS, ["hydra.launcher.jobs=1"], lambda config: None) as launcher:
        run_jobs(launcher, runs)
    names = [line.split("] ")[1].split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert names == ["counting cope seed=1", *(f"counting cope num_variables={number} seed=1" for number in (3, 5))]


def test_what_another_process_has_and_finishes_meanwhile_is_not_left_over(tmp_path: Path) -> None:
    runs = plan_in(tmp_path, "table4", 1).runs[:2]

    class FinishesOne(Answers):
        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            finish(runs[0].folder.path, "counting", 1.0)
            return super().launch(job_overrides, initial_job_idx)

    assert list(run_jobs(FinishesOne(AlreadyRunning("."), AlreadyRunning(".")), runs)) == [runs[1].folder.path]


def test_what_anothers_launcher_cannot_do_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: object, **__: object) -> None:
        raise ValueError("n_jobs == 0 in Parallel has no meaning")

    monkeypatch.setattr(Answers, "launch", launch)
    with pytest.raises(UserError, match=r"hydra/launcher: Answers cannot run these jobs: ValueError: n_jobs == 0"):
        run_jobs(Answers(), plan_in(tmp_path, "table4", 1).runs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=range(1,100000)"], r"This sweep has 99,999 runs: seed=range\(1,100000\) \(99,999\); allowed: 1,000 at most"),
        (["optimizer.lr=interval(0,1)"], r"optimizer\.lr=interval\(0,1\) is no list of values; allowed in a grid: a,b"),
        (["seed=range(1,1e12)", "pe=cope,rope"], r"has 1,999,999,999,998 runs: .*, pe=cope,rope \(2\)"),
    ],
)
def test_a_sweep_of_more_runs_than_anybody_means(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_number(OverridesParser.create().parse_overrides(arguments))
    check_number(OverridesParser.create().parse_overrides(["seed=range(1,301)", "pe=cope,rope,none"]))


@pytest.mark.parametrize(("jobs", "said"), [("x", r"jobs='x' has the wrong type; allowed: int"), ("0", "jobs=0 is too small")])
def test_a_number_of_jobs_that_cannot_be(tmp_path: Path, jobs: str, said: str) -> None:
    with (
        launcher_for(CONFIGS, [f"hydra.launcher.jobs={jobs}"], lambda config: None) as launcher,
        pytest.raises(UserError, match=rf"hydra\.launcher\.{said}"),
    ):
        run_jobs(launcher, plan_in(tmp_path, "table4", 1).runs)


def test_a_folder_that_cannot_be_made_is_told_before_any_job(compose: Callable[..., DictConfig], tmp_path: Path) -> None:
    config = compose()
    (tmp_path / "file").touch()
    config.output_dir = str(tmp_path / "file" / "outputs")
    with pytest.raises(UserError, match=r"output_dir=.*/file/outputs cannot be made: Not a directory"):
        check_jobs([config], Answers())


def test_a_job_of_this_machine_has_one_device(compose: Callable[..., DictConfig]) -> None:
    config = compose("trainer.devices=2", "trainer.strategy=ddp")
    with pytest.raises(UserError, match=r"trainer\.devices=2 in a sweep on this machine; allowed: 1 a job"):
        check_jobs([config], Answers())


def test_what_many_runs_would_cost_is_not_asked_of_a_sweep(compose: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match=r"dry=True tells what one run would cost; .* python scripts/costs\.py"):
        check_jobs([compose("dry=true")], Answers())


def test_rows_can_be_composed_while_there_is_a_launcher(tmp_path: Path) -> None:
    """As ``make decide`` does, of rows that earlier commands have left on disk."""
    row = ("scale=smoke", f"output_dir={tmp_path}", "pe=none", "task=counting")
    with launcher_for(CONFIGS, ["hydra.launcher.jobs=1"], lambda config: None):
        assert composed_now(CONFIGS, row).output_dir == str(tmp_path)


@pytest.mark.parametrize("name", ["table2", pytest.param("table7", marks=pytest.mark.slow)])
def test_the_runs_of_a_table_can_be_made(name: str, tmp_path: Path) -> None:
    """Rows of Table 7 name what their recipe has: ``model.dim=${recipe.half_dim}``."""
    check_jobs([composed_settings(CONFIGS, run.settings) for run in plan_in(tmp_path, name, 1).runs], Answers())


def test_wrong_settings_are_told_once_before_any_run_begins(tmp_path: Path) -> None:
    overrides = ["scale=smoke", f"output_dir={tmp_path}"]

    def configs(*more: str) -> list[DictConfig]:
        return [composed_settings(CONFIGS, (f"pe={encoding}", *overrides, *more)) for encoding in ("rope", "cope")]

    with pytest.raises(UserError) as caught:
        check_jobs(configs("trainer.steps=many"), Answers())
    assert str(caught.value) == "trainer.steps='many' has the wrong type; allowed: int."
    assert not list(tmp_path.iterdir())
    check_jobs(configs(), Answers())


def test_time_left_is_guessed_from_published_runs_until_there_are_own_ones(tmp_path: Path) -> None:
    runs = plan_in(tmp_path, "table4", 1).runs
    kinds = [(run.task, run.scale) for run in runs]
    outputs = runs[0].folder.path.parents[3]
    assert Clock(outputs, tmp_path).seconds(kinds, 2) is None
    finish(tmp_path / "docs" / "results" / "runs" / "counting" / "rope" / "0123" / "seed=1", "counting", 10.0)
    finish(tmp_path / "docs" / "results-night" / "runs" / "flip_flop" / "rope" / "0123" / "seed=1", "flip_flop", 1000.0)
    assert Clock(outputs, tmp_path).seconds(kinds, 2) == 10.0 * len(runs) / 2
    finish(runs[0].folder.path, "counting", 30.0)
    assert Clock(outputs, tmp_path).seconds(kinds[1:], 2) == 30.0 * (len(runs) - 1) / 2


def test_seconds_are_told_with_two_digits() -> None:
    told = [duration(seconds) for seconds in (0.314, 41, 119.6, 210, 7100, 7200, 100_000, 12_000_000)]
    assert told == ["0.31 s", "41 s", "120 s", "3.5 min", "118 min", "2 h", "28 h", "139 days"]
