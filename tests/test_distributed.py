"""One run over several processes is the run of one, to rounding; it may be saved by some and gone on with by others."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import clean_environment, command
from slurm_cluster import free_ports
from test_run_process import wait_until

from cope.run.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")]

RUN = ["pe=cope", "task=counting", "scale=smoke", "logger=none", "trainer.steps=150", "trainer.eval_every=10"]


def several(number: int, strategy: str, *settings: str, folder: Path, torchrun: bool = True) -> list[str]:
    """The command of a run by ``number`` processes, started by torchrun, or by Fabric itself."""
    python, *typed = command(*RUN, f"trainer.devices={number}", f"trainer.strategy={strategy}", *settings, folder=folder)
    if not torchrun:
        return [python, *typed]
    return [python, "-m", "torch.distributed.run", f"--nproc-per-node={number}", f"--master-port={free_ports(1)[0]}", *typed]


def run(command: list[str], folder: Path) -> RunFolder:
    done = subprocess.run(command, env=clean_environment(), cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("run folder:") == 1
    return found(folder)


def found(folder: Path) -> RunFolder:
    (path,) = folder.glob("outputs/counting/cope/*/seed=1")
    return RunFolder(path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("alone")
    return run(command(*RUN, folder=folder), folder)


def assert_same_to_rounding(first: RunFolder, second: RunFolder) -> None:
    assert first.path.parts[-4:] == second.path.parts[-4:]  # the same run, whatever it runs on
    curves = [
        [(line["step"], line["train/loss"]) for line in folder.read_metrics() if "train/loss" in line]
        for folder in (first, second)
    ]
    assert curves[0] == [(step, pytest.approx(loss, rel=1e-3)) for step, loss in curves[1]]
    assert len(curves[0]) > 5
    splits = [result["splits"] for folder in (first, second) if (result := folder.read_result())]
    for split, expected in splits[0].items():
        for key in ("count", "token_count", "num_cut"):  # every example once, whoever evaluates it
            assert splits[1][split][key] == expected[key]
        assert splits[1][split]["loss"] == pytest.approx(expected["loss"], rel=1e-2)


@pytest.mark.parametrize(
    ("number", "strategy", "settings"),
    [(2, "ddp", []), (4, "fsdp", []), (2, "fsdp", ["trainer.precision=32-true", "model.norm=pre"])],
)
def test_several_processes_have_the_curve_of_one(
    tmp_path: Path, alone: RunFolder, number: int, strategy: str, settings: list[str]
) -> None:
    assert_same_to_rounding(alone, run(several(number, strategy, *settings, folder=tmp_path), tmp_path))


def test_accumulated_steps_of_several_processes(tmp_path: Path, alone: RunFolder) -> None:
    """Micro-batches are another setting, so another folder; the numbers are the same."""
    accumulated = run(several(2, "fsdp", "trainer.accumulate=2", folder=tmp_path), tmp_path)
    losses = [[line["train/loss"] for line in folder.read_metrics() if "train/loss" in line] for folder in (alone, accumulated)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def goes_on(process: int) -> bool:
    """Whether it has not ended; one that nobody has asked for its exit status has."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize(("strategy", "torchrun", "killed"), [("fsdp", True, 0), ("ddp", False, 0)])
def test_a_lost_process_ends_all_and_the_run_goes_on_on_others(
    tmp_path: Path, alone: RunFolder, strategy: str, torchrun: bool, killed: int
) -> None:
    began = tmp_path / "began"
    began.mkdir()
    started = subprocess.Popen(
        several(2, strategy, folder=began, torchrun=torchrun), env=clean_environment(), cwd=began, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: any(began.glob("outputs/counting/cope/*/seed=1/checkpoints/last.pt")))
        processes = children(started.pid)
        os.kill(processes[killed], signal.SIGKILL)
        told, _ = started.communicate(timeout=180)  # left alone, they would wait for it half an hour
    finally:
        with contextlib.suppress(ProcessLookupError):  # its group may live on without it
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode != 0
    assert told.count("of this run has ended, so the others end too") == 1, told
    assert not any(map(goes_on, processes))
    for number in (1, 4):
        folder = tmp_path / f"on {number}"
        shutil.copytree(began, folder)
        resumed = command(*RUN, folder=folder) if number == 1 else several(number, strategy, folder=folder)
        assert_same_to_rounding(alone, run(resumed, folder))


# ---- several machines, each a network namespace of this one ----------------------------------------------------------------

ADDRESSES = ("10.77.0.1", "10.77.0.2")
CABLE = "cable"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """The names of two network namespaces with a cable between them, each with nothing else."""
    names = [f"cope-test-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces can be made here: {error}")
    try:
        ip("link", "add", CABLE, "netns", names[0], "type", "veth", "peer", "name", CABLE, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", CABLE)
            for device in ("lo", CABLE):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def test_two_machines_have_the_curve_of_one(tmp_path: Path, alone: RunFolder, machines: list[str]) -> None:
    """One process on each, which find each other by torchrun's rendezvous at the first machine's address."""
    _, *typed = command(*RUN, "trainer.num_nodes=2", "trainer.strategy=fsdp", folder=tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    environment = clean_environment() | {"GLOO_SOCKET_IFNAME": CABLE}
    started = []
    for name, address in zip(machines, ADDRESSES, strict=True):
        where = [f"--rdzv-endpoint={ADDRESSES[0]}:29500", f"--local-addr={address}"]
        # Who is the first machine torchrun tells by the host's name, of which these two have one.
        where.append(f"--rdzv-conf=is_host={name == machines[0]}")
        started.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *torchrun, *where, *typed], env=environment, cwd=tmp_path, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    told = [one.communicate(timeout=300)[0] for one in started]
    assert [one.returncode for one in started] == [0, 0], "\n".join(told)
    assert "".join(told).count("run folder:") == 1
    assert_same_to_rounding(alone, found(tmp_path))
