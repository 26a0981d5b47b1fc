"""What `pip install` brings along is enough to train, in any folder: the wheel in an environment of its own.

What `make install` installs is locked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_add_your_own import commands_of_the_page, write_files

SOURCES = (
    *("src", "configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"),
    *("train.py", "evaluate.py", "generate.py", "scripts"),
)


def run(*command: str | Path, folder: Path) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    finished = subprocess.run(
        [str(part) for part in command], cwd=folder, env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert finished.returncode == 0, f"{finished.stdout}\n{finished.stderr}"
    return finished.stdout


class Installed(NamedTuple):
    """The wheel, installed in an environment of its own."""

    wheel: Path
    environment: Path
    packages: Path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Everything is installed from the package index but PyTorch, whose files are linked from the environment of the tests.

    PyTorch alone, since it is ten times as large as the rest together: a dependency that is not declared is still missing.
    """
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, source, folder=folder)
    shutil.rmtree(source)  # from here on there is the wheel alone
    (wheel,) = folder.glob("*.whl")

    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip())
    here = Path(sysconfig.get_path("purelib"))
    for top in {file.parts[0] for file in distribution("torch").files or () if file.parts[0] not in ("..", "__pycache__")}:
        (packages / top).symlink_to(here / top)
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, folder=folder)
    return Installed(wheel, environment, packages)


@pytest.mark.slow
def test_the_wheel_with_its_default_dependencies_trains(installed: Installed, tmp_path: Path) -> None:
    """In a folder that has nothing: the configurations are the wheel's too."""
    for arguments in (["task=counting"], ["task=code", "logger=none"]):
        run(installed.environment / "bin" / "cope-lab", "train", "scale=smoke", *arguments, folder=tmp_path)
    results = list((tmp_path / "outputs").glob("*/*/*/seed=1/result.json"))
    assert len(results) == 2
    assert all(json.loads(path.read_text())["commit"] is None for path in results)
    typed = "cope-lab train pe=cope_v"
    tab = f"COMP_WORDS=({typed}); COMP_LINE='{typed}'; COMP_POINT={len(typed)}; _cope_complete cope-lab cope_v ="
    shell = f'. environment/bin/activate; source "$(cope-lab completion)"; {tab}; echo "${{COMPREPLY[@]}}"'
    assert run("bash", "-c", shell, folder=installed.environment.parent) == "cope_val_gates\n"
    example = "import cope, torch; q = torch.randn(1, 2, 5, 4); "
    example += "print(cope.cope_attention(q, q, q, torch.randn(3, 4)).shape, cope.__file__)"
    shape, _, path = run(installed.environment / "bin" / "python", "-c", example, folder=tmp_path).strip().rpartition(" ")
    assert shape == "torch.Size([1, 2, 5, 4])" and Path(path).is_relative_to(installed.packages)


@pytest.mark.slow
def test_the_page_on_ones_own_encodings_to_the_letter(installed: Installed, tmp_path: Path) -> None:
    """Its files and commands as they stand; of its first block, which makes the environment, that the wheel is so called."""
    *making, install = commands_of_the_page()[:3]
    assert making == ["python3 -m venv .venv", ". .venv/bin/activate"] and install == f"pip install {installed.wheel.name}"
    write_files(tmp_path)
    for command in commands_of_the_page()[3:]:
        run("bash", "-c", f"set -e -o pipefail; . {installed.environment}/bin/activate; {command}", folder=tmp_path)
    runs = {path.parts[-5:-3] for path in (tmp_path / "outputs").glob("*/*/*/seed=1/result.json")}
    tried = {("backwards", pe) for pe in ("decay", "rope", "cope")}
    assert runs == tried | {("counting", "cope"), ("flip_flop", "decay")}
    assert list((tmp_path / "outputs").glob("backwards/decay/*/seed=1/evaluations/*"))


def pins(lines: list[str]) -> dict[str, str]:
    found = [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]
    return {canonicalize_name(one.name): str(one.specifier) for one in found}


def named(project: dict[str, Any], extra: str = "") -> Iterator[str]:
    """The packages that the project asks for, by itself or with an extra."""
    for text in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        asked = Requirement(text)
        if asked.name == project["name"]:
            for other in asked.extras:
                yield from named(project, other)
        else:
            yield canonicalize_name(asked.name)


def test_what_make_installs_is_locked_by_hashes() -> None:
    """Every package that is named has the version of constraints.txt, and a hash; PyTorch has builds for each device."""
    entries = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    lines = [line for line in entries if not line.startswith("#")]
    assert all("--hash=sha256:" in line for line in lines)
    locked = pins([line.partition(" --hash")[0] for line in lines])
    pinned = pins((ROOT / "constraints.txt").read_text().splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = {*named(project), *named(project, "dev")} - {"torch"}
    assert len(direct) > 20 and "torch" not in locked
    assert {name: locked[name] for name in direct} == {name: pinned[name] for name in direct}
