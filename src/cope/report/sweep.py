"""The table at the end of a sweep, drawn by Hydra's callback."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from cope.report.tables import sweep_table
from cope.sweep.jobs import read_jobs


class SweepTable(Callback):
    """Prints mean and spread over seeds for each encoding and split, and the jobs that failed; then exits 1 if any did."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra in the process that started the sweep."""
        jobs = read_jobs(Path(config.hydra.sweep.dir))
        results = []
        for job in jobs:
            if job["status"] == "done":
                results.append(json.loads((Path(str(job["folder"])) / "result.json").read_text()))
        if results:
            print("\n" + sweep_table(results))
        failed = [job for job in jobs if job["status"] != "done"]
        for job in failed:
            overrides = job["overrides"]
            assert isinstance(overrides, list)
            print(f"{job['status']}: {' '.join(overrides)}: {job['message']}", file=sys.stderr)
        if failed:
            print(f"{len(failed)} of {len(jobs)} jobs did not finish; the same command runs only those.", file=sys.stderr)
            sys.exit(1)
