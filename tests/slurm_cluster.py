"""A Slurm cluster of one node on this machine, without systemd, munge or accounting, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
KillWait=10
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
CONTROLLER, NODE = (shutil.which(name) or shutil.which(f"{name}-wlm") for name in ("slurmctld", "slurmd"))
STEPPER = shutil.which("slurmstepd") or next(map(str, Path("/usr/sbin").glob("slurmstepd*")), None)

WHY_NOT = (
    "Slurm is not installed (Debian: slurm-wlm)" if None in (CONTROLLER, NODE, STEPPER)
    else "a test cluster needs root" if sys.platform != "linux" or os.geteuid() != 0
    else ""
)  # fmt: skip


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Gives the variables by which Slurm's commands and jobs find the cluster."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "slurm.conf"
    controller, node = free_ports(2)
    configuration.write_text(
        CONFIGURATION.format(host=socket.gethostname().split(".")[0], folder=folder, controller=controller, node=node)
    )
    variables = {"SLURM_CONF": str(configuration)}
    environment = os.environ | variables
    assert CONTROLLER and NODE and STEPPER
    daemons = []
    try:
        for command in ([CONTROLLER, "-D", "-i"], [NODE, "-D", "-d", STEPPER]):
            daemons.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
            )
        deadline = time.monotonic() + 180
        while "idle" not in _said(["sinfo", "-h", "-o", "%t"], environment):
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()
            time.sleep(0.2)
        yield variables
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):  # the daemons end all the same
            _said(["scancel", "--full", "--signal=KILL", "--state=RUNNING", "--user=root"], environment)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _said(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300).stdout


def free_ports(number: int) -> list[int]:
    """Ports of this machine that nobody uses now."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
