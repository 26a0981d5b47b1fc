"""What a command is started in: a Ctrl-C at any moment, output that nobody takes, variables that are meant for others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from omegaconf import DictConfig
from runs import clean_environment

from cope.building import arguments
from cope.endings import INTERRUPTED, NO_READER, STOPPED
from cope.run.device import TrainerSettings

TRAIN = str(ROOT / "train.py")


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX signals")
@pytest.mark.parametrize(
    ("moment", "command"),
    [
        ("antlr4", [TRAIN]),  # while Hydra is imported
        ("cope.cli", [TRAIN, "-m", "pe=none,cope"]),
        ("hydra.main", [str(ROOT / "scripts" / "probe_llm.py")]),
        pytest.param("pandas", [str(ROOT / "scripts" / "table.py"), "table=table4"], marks=pytest.mark.slow),
        pytest.param("torch", [TRAIN, "scale=smoke", "logger=none"], marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_while_modules_are_imported_is_told_in_one_line(tmp_path: Path, moment: str, command: list[str]) -> None:
    # Python says of each module when it was imported: no clock decides when the signal comes.
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        # Tests that a shell runs in the background ignore Ctrl-C, and so would what they start.
        env=clean_environment(), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rpartition("|")[2].strip() == moment:
                process.send_signal(signal.SIGINT)
                break
        said, told = process.communicate(timeout=300)
    finally:
        process.kill()  # whatever went wrong, it does not go on
    first_line = "cope on counting, scale smoke, seed 1: loading PyTorch ...\n" if moment == "torch" else ""
    assert (process.returncode, said) == (INTERRUPTED, first_line)
    assert [line for line in told.splitlines() if not line.startswith("import time:")] == [STOPPED]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("command", "output", "status", "told"),
    [
        ("train.py --cfg all", ">/dev/full", 1, "The output cannot be written: No space left on device.\n"),
        ("train.py --help", ">/dev/full", 1, "The output cannot be written: No space left on device.\n"),
        ("train.py --help", ">&-", 0, ""),
        ("train.py pe=nope", "2>&-", 1, ""),
        ("train.py pe=nope", "2>/dev/full", 1, ""),
        ("train.py --cfg all", "| true; exit ${PIPESTATUS[0]}", NO_READER, ""),
        ("scripts/decide.py --help", "| true; exit ${PIPESTATUS[0]}", NO_READER, ""),
    ],
)
def test_output_that_nobody_takes(tmp_path: Path, command: str, output: str, status: int, told: str) -> None:
    shown = subprocess.run(
        ["bash", "-c", f"{sys.executable} {ROOT}/{command} {output}"], capture_output=True, text=True, cwd=tmp_path,
        env=clean_environment(), timeout=300,
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (status, told)


@pytest.mark.slow
def test_a_variable_that_pytorch_refuses_is_named(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, TRAIN, "scale=smoke"], capture_output=True, text=True, cwd=tmp_path,
        env=clean_environment() | {"TORCH_LOGS": "nope"},
    )  # fmt: skip
    assert shown.returncode == 1
    assert shown.stderr.startswith("PyTorch cannot start with TORCH_LOGS=nope: Invalid log settings: nope")
    assert "Traceback" not in shown.stderr


SLURM = {
    **{"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
    "SLURM_JOB_NAME": "a job",
}
TORCHRUN = {
    **{"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
    **{"TORCHELASTIC_RUN_ID": "1", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
}


@pytest.mark.parametrize("variables", [SLURM, TORCHRUN], ids=["slurm", "torchrun"])
def test_one_device_takes_no_notice_of_a_cluster(
    compose: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    trainer = TrainerSettings(**arguments(compose().trainer, TrainerSettings, "trainer"))
    fabric = trainer.fabric()
    assert (fabric.world_size, fabric.is_global_zero) == (1, True)
