"""How a run is asked to stop: by Ctrl-C, and by the signals that clusters send. The step that goes on ends first."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from types import FrameType

import torch
from lightning_fabric import Fabric

from cope.errors import Interrupted, Preempted
from cope.signals import handled_by

# Slurm sends one of these before a job's time is over, if it is told to; Windows has neither.
PREEMPTING = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
STOPPING = [signal.SIGINT, signal.SIGTERM, *PREEMPTING]


class Interruption:
    """Whether somebody asked the run on the devices of ``fabric`` to stop."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._signal: int | None = None

    def listening(self) -> AbstractContextManager[None]:
        """Inside, signals are taken for requests to stop."""
        return handled_by(self.ask, *STOPPING)

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Take in a signal; a second Ctrl-C does not wait."""
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def is_asked_for(self) -> bool:
        """Whether any device was asked: all must stop at the same step, and so all must ask at the same time."""
        own = self._signal is not None
        if self._fabric.world_size == 1:
            return own
        summed = self._fabric.all_reduce(torch.tensor(float(own), device=self._fabric.device), reduce_op="sum")
        assert isinstance(summed, torch.Tensor)
        return bool(summed > 0)

    def error(self, step: int, last_step: int) -> Interrupted:
        """What to raise after ``step``, once the state is saved."""
        kind = Preempted if self._signal in PREEMPTING else Interrupted
        return kind(f"Stopped after step {step} of {last_step}; the same command goes on from there.")
