"""The jobs of a sweep on a Slurm cluster, through submitit: what ``hydra/launcher=submitit_slurm`` does.

Each job is one task of a job array. A job whose time is nearly over, or that is preempted, saves its state, goes back into
Slurm's queue and goes on from there. The process that submitted them only waits; where it ends, they go on without it.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from cope.errors import Preempted, UserError
from cope.sweep.launcher import Call, Ended, failed, told
from cope.sweep.process import Lost

POLL_SECONDS = 2.0  # between two looks for results, which are files
GRACE_SECONDS = 20.0  # that a result may take to be seen here after its job has left Slurm's queue, since folders are shared


class Run:
    """What Slurm runs of each job, also again."""

    def __call__(self, call: Call) -> JobReturn:
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        try:
            return call()
        except KeyboardInterrupt as stopped:
            if isinstance(stopped.__cause__, Preempted):
                from submitit import JobEnvironment

                signal.raise_signal(JobEnvironment()._usr_sig())  # submitit's, which puts it back into the queue and ends it
            raise  # by scancel, or by Slurm, which then starts it again itself

    def checkpoint(self, call: Call) -> Any:
        """What is run the next time: the same, since a run knows by itself where it stopped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, call)


def run_on_slurm(
    calls: Sequence[Call], folder: Path, jobs_at_once: int, num_requeues: int, sbatch: dict[str, Any]
) -> list[JobReturn]:
    """The outcome of each; whatever it is, the others go on.

    Args:
        folder: for submitit's files, seen by all machines; ``%j`` is a job's id. What is submitted together has a word of its
            own behind it.
        num_requeues: how often a job may run out of time and go on.
        sbatch: what the jobs ask of Slurm, by the names of sbatch.

    Raises:
        UserError: the jobs cannot be submitted.
    """
    import submitit

    try:
        # A cluster that is set up anew, or another one, counts its jobs from 1 again: their old results are not these jobs'.
        own = folder.absolute().with_name(f"{folder.name}-{secrets.token_hex(4)}")
        executor = submitit.SlurmExecutor(folder=own, max_num_timeout=num_requeues)
        asked = {key: value for key, value in sbatch.items() if value is not None}
        executor.update_parameters(array_parallelism=jobs_at_once, **asked)
        jobs = executor.map_array(Run(), calls)
    except (RuntimeError, ValueError, TypeError, OSError) as error:  # submitit's own are RuntimeErrors
        raise UserError(f"hydra/launcher=submitit_slurm: the jobs cannot be submitted: {_reason(error)}") from error
    array = jobs[0].job_id.partition("_")[0]
    print(f"{len(calls)} submitted to Slurm, as job {array}; {jobs_at_once} at a time at most", flush=True)
    try:
        return told(calls, _as_they_end(list(zip(calls, jobs, strict=True)), array))
    except KeyboardInterrupt:
        print(f"\nThe jobs go on without this command; scancel {array} lets them save their state and ends them.", flush=True)
        raise


def _as_they_end(waiting: list[tuple[Call, Any]], array: str) -> Generator[Ended]:
    """Each job's outcome: its result, or that Slurm has it no more and there is none.

    Slurm's accounting, which submitit would ask, is not there on every cluster.
    """
    gone_since: dict[str, float] = {}
    running_since: dict[str, float] = {}
    at_once = 1
    while waiting:
        queued, now = _queued(array), time.monotonic()
        states = {job.job_id: "UNKNOWN" if queued is None else queued.get(job.job_id, "GONE") for _, job in waiting}
        at_once = max(at_once, list(states.values()).count("RUNNING"))
        for call, job in list(waiting):
            state = states[job.job_id]
            if state == "RUNNING":
                running_since.setdefault(job.job_id, now)
            elif state == "PENDING":  # once more
                running_since.pop(job.job_id, None)
            if state == "GONE":
                gone_since.setdefault(job.job_id, now)
            else:
                gone_since.pop(job.job_id, None)
            if job.paths.result_pickle.exists():
                outcome = _result(job)
            elif now - gone_since.get(job.job_id, now) > GRACE_SECONDS:
                outcome = failed(Lost(f"Slurm ended job {job.job_id}; see {job.paths.stderr}"))
            else:
                continue
            waiting.remove((call, job))
            # One that was never seen to run took less than the time between two looks.
            yield call, outcome, now - running_since.get(job.job_id, now - POLL_SECONDS), at_once
        time.sleep(POLL_SECONDS if waiting else 0)


def _queued(array: str) -> dict[str, str] | None:
    """The state of each job of ``array`` that Slurm has not ended; None if it does not answer now."""
    # Both kinds of ids: a single job is no array.
    asked = subprocess.run(["squeue", "-h", "-r", "-o", "%F_%K %A %T", "-j", array], capture_output=True, text=True)
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return None
    return {name: state for *names, state in map(str.split, asked.stdout.splitlines()) for name in names}


def _result(job: Any) -> JobReturn:
    try:
        result: JobReturn = job.result()
    except Exception as error:  # whatever the job's process raised outside the run
        return failed(RuntimeError(_reason(error)))
    return result


def _reason(error: Exception) -> str:
    """The line that tells most: the last of a trace, the first of anything else."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return (named or lines or [type(error).__name__])[-1 if named else 0].strip()
