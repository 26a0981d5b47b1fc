"""Imported once by the process from which a table's runs are forked: all have the same code, whatever happens to its files."""

from contextlib import suppress

import cope.report.figures
import cope.report.sweep
import cope.report.tables  # noqa: F401
from cope.training.checkpoint import code_fingerprint
from cope.training.experiment import commit

with suppress(ImportError):  # runs with logger=none need no W&B
    import wandb.sdk.launch  # noqa: F401  W&B imports it when it starts, which takes as long as the rest of its start

commit()  # both are remembered
code_fingerprint()
