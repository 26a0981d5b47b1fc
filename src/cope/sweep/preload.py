"""Imported once by the process from which a sweep's jobs are forked, so that each has everything at once, and the same code.

Only ``configs/`` and the command's own file are read again by each.
"""

import pkgutil
from contextlib import suppress
from importlib import import_module

from cope.run.provenance import code_fingerprint, commit

# Both are remembered, and asked before the code is read: later changes of the files are not of what runs.
commit()
code_fingerprint()
for name in ("run", "model", "positions", "tasks", "corpora", "kernels"):
    package = import_module(f"cope.{name}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith(".__main__"):
            with suppress(ImportError):  # of what needs a package that is not installed
                import_module(module.name)
with suppress(Exception):  # runs with logger=none need no W&B
    import_module("wandb.sdk.launch")  # which W&B imports when it starts, and which takes as long as the rest of it
