"""Sweeps and tables through Slurm and Ray, on clusters of this one machine, give what the local queue gives."""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hydra.core.utils import JobReturn, JobStatus
from runs import clean_environment, without_times
from slurm_cluster import WHY_NOT, free_ports, slurm_cluster
from test_run_process import wait_until

from cope.run.folder import RunFolder

pytestmark = pytest.mark.slow

LONG_ENOUGH = ["trainer.steps=2000", "trainer.eval_every=100"]  # to be stopped in the middle
SWEEP = ["train.py", "-m", "pe=none,rope", "seed=1,2", "scale=smoke", "logger=none", *LONG_ENOUGH]
TABLE = ["scripts/table.py", "table=table4", "action=run", "seeds=1", "scale=smoke", "logger=none"]
SLURM = ["hydra/launcher=submitit_slurm", *(f"hydra.launcher.{key}" for key in ("cpus_per_task=1", "mem=900MB", "time=10"))]


def command(arguments: list[str], folder: Path) -> list[str]:
    name, *settings = arguments
    return [sys.executable, str(ROOT / name), *settings, f"output_dir={folder / 'outputs'}", f"data_dir={folder / 'data'}"]


def finished(arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(arguments, folder), env=environment, cwd=folder, capture_output=True, text=True)


@contextmanager
def running(arguments: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on meanwhile, its messages among its output."""
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    started = subprocess.Popen(command(arguments, folder), env=environment, cwd=folder, text=True, **both)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def results(folder: Path) -> dict[str, Any]:
    """What every run below ``folder`` measured, apart from times."""
    paths = sorted(folder.glob("outputs/*/*/*/seed=*"))
    return {path.relative_to(folder).as_posix(): without_times(RunFolder(path)) for path in paths}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the sweep and the table by the local queue."""
    folder = tmp_path_factory.mktemp("local")
    for arguments in (SWEEP, TABLE):
        assert finished(arguments, folder, clean_environment()).returncode == 0
    found = results(folder)
    assert len(found) == 4 + 5
    return found


def begun(folder: Path, encoding: str, seed: int) -> RunFolder:
    """The folder of a run, once it has trained for a while and saved something."""
    where = f"outputs/counting/{encoding}/*/seed={seed}/checkpoints/last.pt"
    wait_until(lambda: any(folder.glob(where)))
    return RunFolder(next(iter(folder.glob(where))).parents[1])


def says(folder: RunFolder, text: str) -> bool:
    return text in (folder.path / "output.log").read_text()


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
@pytest.mark.skipif(find_spec("submitit") is None, reason="submitit is not installed")
def test_slurm_gives_the_local_results_though_jobs_are_preempted_and_killed(tmp_path: Path, local: dict[str, Any]) -> None:
    with slurm_cluster(tmp_path / "slurm") as variables:
        environment = clean_environment() | variables

        def slurm(*arguments: str) -> str:
            done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        def preempted(folder: RunFolder, job: str, *take_back: str) -> None:
            """Stopped by ``take_back``, and let run again at once, for which Slurm would wait two minutes."""
            with suppress(subprocess.TimeoutExpired):  # scancel sends the signal again and again while the job ends
                subprocess.run([*take_back, job], env=environment, capture_output=True, timeout=5)
            wait_until(lambda: says(folder, "Stopped after step"))
            wait_until(lambda: slurm("squeue", "-h", "-r", "-o", "%T", "-j", job) == "PENDING")
            slurm("scontrol", "update", f"JobId={job}", "StartTime=now")

        # What another cluster's first job left, that had the same folder.
        old = tmp_path / "outputs" / ".submitit" / "1_0" / "1_0_0_result.pkl"
        old.parent.mkdir(parents=True)
        old.write_bytes(pickle.dumps(("success", JobReturn(status=JobStatus.COMPLETED))))

        with running([*SWEEP, *SLURM], tmp_path, environment) as sweep:
            folders = [begun(tmp_path, "none", 1)]
            preempted(folders[0], "1_0", "scancel", "--signal=USR2")  # as Slurm does when time is nearly over
            folders.append(begun(tmp_path, "rope", 1))
            preempted(folders[1], "1_2", "scontrol", "requeue")  # as it does when others need the machine
            told, _ = sweep.communicate(timeout=300)
        assert sweep.returncode == 0, told
        assert "[4/4 in " in told and "counting: sequence error %, mean" in told
        assert all(says(folder, "continuing at step") for folder in folders)

        made = finished([*TABLE, *SLURM], tmp_path, environment)
        assert made.returncode == 0 and "[5/5 in " in made.stdout, made.stdout + made.stderr
        again = finished([*SWEEP, *SLURM], tmp_path, environment)
        assert again.stdout.startswith("4 of 4 runs are finished\n") and "submitted" not in again.stdout
        assert results(tmp_path) == local

        # A job that dies for good is told, and the others are not touched by it.
        with running([*SWEEP[:2], "pe=absolute", *SWEEP[3:], *SLURM], tmp_path, environment) as sweep:
            begun(tmp_path, "absolute", 1)
            array = max(int(path.name.split("_")[0]) for path in tmp_path.glob("outputs/.submitit/*_0-*"))
            subprocess.run(["scancel", "--signal=KILL", f"{array}_0"], env=environment, capture_output=True)
            told, _ = sweep.communicate(timeout=300)
        assert sweep.returncode == 3, told
        assert f"Slurm ended job {array}_0" in told and "1 of 2 runs are not finished" in told


@pytest.fixture
def ray_cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a cluster of two nodes on this machine, with a core each, and the environment of those who use it."""
    # Ray asks for a token; this cluster has one of its own, so that nobody else gives it work.
    environment = clean_environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    (port,) = free_ports(1)
    place = Path("/tmp") / f"ray-test-{os.getpid()}"  # short, since the names of sockets are limited
    head = [f"--port={port}", "--head", "--include-dashboard=false", f"--temp-dir={place}"]
    common = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats", "--block"]
    nodes: list[subprocess.Popen[str]] = []
    try:
        for arguments in (head, [f"--address=127.0.0.1:{port}"]):
            ray = [str(Path(sys.executable).parent / "ray"), "start", "--node-ip-address=127.0.0.1", *arguments, *common]
            node = subprocess.Popen(ray, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
            nodes.append(node)
            assert node.stdout is not None
            assert any("started" in line for line in node.stdout)
        yield f"127.0.0.1:{port}", environment
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_gives_the_local_results_though_a_job_is_killed(tmp_path: Path, local: dict[str, Any], ray_cluster: Any) -> None:
    address, environment = ray_cluster
    ray = ["hydra/launcher=ray", f"hydra.launcher.address='{address}'"]
    with running([*SWEEP, *ray], tmp_path, environment) as sweep:
        folder = begun(tmp_path, "none", 1)
        os.kill(writer_of(folder.path / "output.log"), signal.SIGKILL)
        told, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, told
    assert "[4/4 in " in told and says(folder, "continuing at step")
    made = finished([*TABLE, *ray], tmp_path, environment)
    assert made.returncode == 0 and "[5/5 in " in made.stdout, made.stdout + made.stderr
    assert results(tmp_path) == local


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_jobs_of_a_ray_that_is_started_for_them_give_way_to_other_work_no_more_than_the_command_does(tmp_path: Path) -> None:
    sweep = ["train.py", "-m", "pe=none", "seed=1,2", "scale=smoke", "logger=none", *LONG_ENOUGH, "hydra/launcher=ray"]
    with running(sweep, tmp_path, clean_environment()) as started:
        log = begun(tmp_path, "none", 1).path / "output.log"
        assert os.getpriority(os.PRIO_PROCESS, writer_of(log)) == os.getpriority(os.PRIO_PROCESS, started.pid)
        told, _ = started.communicate(timeout=300)
    assert started.returncode == 0 and "[2/2 in " in told, told


def writer_of(log: Path) -> int:
    """The process whose output goes to ``log``."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "fd" / "1").resolve() == log:
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"nobody writes {log}")
