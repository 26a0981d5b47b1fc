"""What `pip install` brings along is enough for `python train.py`: the wheel in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import ROOT


def run(*command: str | Path, folder: Path) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    finished = subprocess.run(
        [str(part) for part in command], cwd=folder, env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert finished.returncode == 0, f"{finished.stdout}\n{finished.stderr}"
    return finished.stdout


@pytest.mark.slow
def test_the_wheel_with_its_default_dependencies_trains(tmp_path: Path) -> None:
    """Everything is installed from the package index but PyTorch, whose files are linked from the environment of the tests.

    PyTorch alone, since it is ten times as large as the rest together: a dependency that is not declared is still missing.
    """
    for name in ("src", "configs", "pyproject.toml", "README.md", "LICENSE", "constraints.txt", "train.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", "dist", ".", folder=tmp_path)
    shutil.rmtree(tmp_path / "src")  # from here on the package is the wheel's

    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip())
    here = Path(sysconfig.get_path("purelib"))
    for top in {file.parts[0] for file in distribution("torch").files or () if file.parts[0] not in ("..", "__pycache__")}:
        (packages / top).symlink_to(here / top)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", wheel, folder=tmp_path)

    for arguments in (["task=counting"], ["task=code", "logger=none"]):
        run(python, "train.py", "scale=smoke", *arguments, folder=tmp_path)
    results = list((tmp_path / "outputs").glob("*/*/*/seed=1/result.json"))
    assert len(results) == 2
    assert Path(run(python, "-c", "import cope; print(cope.__file__)", folder=tmp_path).strip()).is_relative_to(packages)
