"""What pyproject.toml cannot say: in a wheel the commands and ``configs/`` are inside the package, where ``cope-lab`` looks."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithCommands(build_py):
    """In a checkout they stay where they are, and an editable installation takes them from there."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "cope" / "commands"
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
            shutil.copytree(ROOT / "configs", folder / "configs")
            (folder / "scripts").mkdir()
            for file in ("train.py", "evaluate.py", "generate.py", "scripts/complete.py", "scripts/completion.bash"):
                shutil.copy(ROOT / file, folder / file)


setup(cmdclass={"build_py": BuildWithCommands})
