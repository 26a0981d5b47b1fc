"""The jobs of a sweep on a Ray cluster: what ``hydra/launcher=ray`` does.

By Ray's own interface, since hydra-ray-launcher 1.2.2 asks for cloudpickle below 3, and this project is tested with 3.1.
A job whose worker or machine is lost is started again by Ray and goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.utils import JobReturn

from cope.errors import Interrupted, UserError
from cope.sweep.launcher import Call, Ended, failed, told
from cope.sweep.process import Lost


def run_on_ray(
    calls: Sequence[Call], address: str | None, cpus: float, gpus: float, num_retries: int, jobs_at_once: int
) -> list[JobReturn]:
    """The outcome of each; whatever it is, the others go on.

    Args:
        address: of a cluster; None is Ray's own rule: RAY_ADDRESS, a cluster that runs on this machine, or a new one on it.
        cpus, gpus: that a job reserves.
        num_retries: how often a job may lose its machine.

    Raises:
        UserError: there is no such cluster.
        KeyboardInterrupt: Ctrl-C, once the jobs were asked to save their state.
    """
    import ray

    # Ray's own default for a cluster that it starts here is 15, with which jobs hardly begin on a machine that does other work.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"hydra.launcher.address={address}: there is no Ray cluster: {str(error).splitlines()[0]}") from error
    place = Path.cwd()

    # A process of its own for each job, as everywhere: what one sets is nothing to the next.
    @ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=num_retries, max_calls=1)
    def run(call: Call) -> tuple[JobReturn, float]:
        began = time.monotonic()
        os.chdir(place)  # paths are relative to where the command was typed
        try:
            outcome = call()
        except KeyboardInterrupt:
            outcome = failed(Interrupted("It was stopped."))
        return outcome, time.monotonic() - began

    def at_once() -> int:
        all_there_is = ray.cluster_resources()
        room = [all_there_is.get(name, 0) / needed for name, needed in (("CPU", cpus), ("GPU", gpus)) if needed]
        return max(1, int(min([jobs_at_once, *room])))

    def as_they_end() -> Generator[Ended]:
        waiting, running = list(calls), dict[ray.ObjectRef, Call]()
        try:
            while waiting or running:
                while waiting and len(running) < jobs_at_once:
                    call = waiting.pop(0)
                    running[run.remote(call)] = call
                for reference in ray.wait(list(running))[0]:
                    call = running.pop(reference)
                    try:
                        outcome, seconds = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        outcome, seconds = failed(Lost(f"Ray lost it: {str(error).splitlines()[0]}")), 0.0
                    yield call, outcome, seconds, at_once()
        except BaseException:  # Ctrl-C, here or while one was told of, or an error: nothing goes on behind it
            with suppress(Exception):  # a cluster that is lost hears nothing
                for reference in running:
                    ray.cancel(reference)
                ray.wait(list(running), num_returns=len(running), timeout=60)
            raise

    print(f"{len(calls)} for Ray; {jobs_at_once} at a time at most", flush=True)
    try:
        return told(calls, as_they_end())
    finally:
        ray.shutdown()
