"""How long jobs on a cluster may still take: from when they began to run and how many run at once. No cluster is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import CONFIGS
from hydra.core.utils import JobReturn, JobStatus
from plans import SEEDS
from runs import completed

from cope.sweep import slurm_queue
from cope.sweep.launcher import Call, calls_for, told
from cope.sweep.plan import PlannedRun, launcher_for, read_plan

TRAINED = 1.0  # seconds of a run, as its result has them


class Cluster:
    """One that answers ``squeue`` as it is told, look by look, while a clock of its own goes on.

    Args:
        looks: at each, the state of every job; "" is one that has ended, ``None`` that Slurm does not answer.
    """

    def __init__(self, folder: Path, runs: Sequence[PlannedRun], looks: Sequence[Sequence[str] | None]) -> None:
        self.folder, self.runs, self.looks = folder, runs, list(looks)
        self.time = 1000.0
        self.jobs = [self._job(index) for index in range(len(runs))]

    def _job(self, index: int) -> Any:
        paths = SimpleNamespace(result_pickle=self.folder / f"{index}_result.pkl", stderr=self.folder / f"{index}.err")
        return SimpleNamespace(job_id=f"7_{index}", paths=paths, result=lambda: JobReturn(status=JobStatus.COMPLETED))

    def queued(self, array: str) -> dict[str, str] | None:
        states = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if states is None:
            return None
        for job, run, state in zip(self.jobs, self.runs, states, strict=True):
            if state == "":
                job.paths.result_pickle.touch()
                run.folder.path.mkdir(parents=True, exist_ok=True)
                run.folder.result.write_text(completed({"task": run.task, "scale": run.scale, "time_s": TRAINED}))
        return {job.job_id: state for job, state in zip(self.jobs, states, strict=True) if state}

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def lines_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], looks: Sequence[Sequence[str] | None]
) -> list[str]:
    """What is told of jobs on such a cluster, up to the run's name."""
    runs = read_plan(CONFIGS, "table4", ["scale=smoke", f"output_dir={tmp_path}"], SEEDS).runs[: len(looks[0] or [])]
    cluster = Cluster(tmp_path, runs, looks)
    monkeypatch.setattr(slurm_queue, "_queued", cluster.queued)
    monkeypatch.setattr(slurm_queue, "time", SimpleNamespace(monotonic=lambda: cluster.time, sleep=cluster.sleep))
    with launcher_for(CONFIGS, ["hydra/launcher=submitit_slurm", f"output_dir={tmp_path}"], lambda config: None) as launcher:
        calls: list[Call] = calls_for(launcher, [run.overrides for run in runs], 0)
        told(calls, slurm_queue._as_they_end(list(zip(calls, cluster.jobs, strict=True)), "7"))
    return [line.partition("]")[0] for line in capsys.readouterr().out.splitlines()]


def test_time_left_counts_from_when_jobs_run_and_as_many_as_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting, running = "PENDING", "RUNNING"
    looks: list[Sequence[str] | None] = [[waiting] * 4] * 100  # which is no time that a job takes
    looks += [[running, running, waiting, waiting]] * 10 + [None]  # 11 looks of 2 s: 22 s
    looks += [["", running, waiting, waiting], ["", "", running, running], ["", "", "", "COMPLETING"], [""] * 4]
    lines = lines_told(tmp_path, monkeypatch, capsys, looks)
    # 22 s of 3 others, then 23 s of 2, two at a time.
    assert lines[:2] == ["[1/4, 33 s left", "[2/4, 23 s left"]
    assert lines[2].startswith("[3/4, ") and lines[3].startswith("[4/4 in ")


def test_a_job_that_is_requeued_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = (
        [["RUNNING", "PENDING"]] * 50
        + [["PENDING", "PENDING"]] * 50
        + [["RUNNING", "PENDING"]] * 5
        + [["", "PENDING"], ["", ""]]
    )
    assert lines_told(tmp_path, monkeypatch, capsys, looks)[0] == "[1/2, 10 s left"
