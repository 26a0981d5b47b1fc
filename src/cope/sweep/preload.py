"""Imported once by the process from which a table's runs are forked, so that each has everything at once, and the same code.

Only ``train.py``, the table's script and ``configs/`` are read again by each.
"""

import pkgutil
import signal
from contextlib import suppress
from importlib import import_module

import cope
from cope.sweep.process import STOPPING

signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # it has to see its runs end; one that comes while a run starts waits for it

# Both are remembered, and asked before the code is read: later changes of the files are not of what runs.
import_module("cope.run.experiment").commit()
import_module("cope.run.checkpoint").code_fingerprint()
for module in pkgutil.walk_packages(cope.__path__, "cope."):
    if not module.name.endswith(".__main__"):
        with suppress(ImportError):  # of what needs a package that is not installed
            import_module(module.name)
with suppress(Exception):  # runs with logger=none need no W&B
    import_module("wandb.sdk.launch")  # which W&B imports when it starts, and which takes as long as the rest of it
