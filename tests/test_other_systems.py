"""What Linux has and other systems have not is not needed to import the package."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

WITHOUT = """
import importlib, pkgutil, signal, sys
sys.path.insert(0, sys.argv[1])
import datasets, filelock, torch, wandb, lightning_fabric  # other people's, who have their own ways around
import tqdm, matplotlib.pyplot
for name in ("fcntl", "resource", "grp", "pwd", "termios"):  # which Windows has not
    sys.modules[name] = None
import os
del os.sched_getaffinity, os.getuid, signal.pthread_sigmask
sys.modules["triton"] = None  # nor this: its kernels are imported when they are launched
import cope
for module in pkgutil.walk_packages(cope.__path__, "cope."):
    kernels = module.name.startswith("cope.kernels.triton.") and not module.name.endswith(".launch")
    if not kernels and not module.name.endswith(("__main__", "sweep.preload")):
        importlib.import_module(module.name)
from cope.run.device import peak_memory_mib
from cope.threads import num_cores
assert num_cores() >= 1 and peak_memory_mib() >= 0
print("imported")
"""


@pytest.mark.slow  # everything is imported once more
def test_the_package_can_be_imported_without_what_windows_has_not() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(ROOT / "src")], capture_output=True, text=True)
    assert done.stdout.endswith("imported\n"), done.stderr
