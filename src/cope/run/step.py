"""One step of training: loss, gradients, update. Nothing in it waits for a GPU; only :meth:`TrainingStep.look` does."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer

from cope.errors import UserError, reason_of
from cope.run.batches import Batch, StepBatch

log = logging.getLogger(__name__)


class TrainingStep:
    """Trains ``model`` by a batch at a time.

    Args:
        model, optimizer: as ``fabric`` has set them up.
        clip_norm: largest norm of the gradient; None does not clip.
        graphs: what runs a step of one micro-batch; None runs it as it is written.
    """

    def __init__(
        self,
        model: _FabricModule,
        optimizer: _FabricOptimizer,
        fabric: Fabric,
        clip_norm: float | None,
        graphs: StepGraphs | None,
    ) -> None:
        self.model, self.optimizer, self.fabric = model, optimizer, fabric
        self.clip_norm = clip_norm
        self.graphs = graphs
        # What a step leaves and takes stays where it is on the device, since a graph knows nothing but addresses.
        self._weight = torch.ones((), device=fabric.device)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=fabric.device)
        self._num_finite = torch.zeros((), dtype=torch.int64, device=fabric.device)

    def __call__(self, batch: StepBatch, learning_rate: float) -> None:
        """Move the weights by one step."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):  # in a graph it must be one
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate
        # Devices average their gradients; we want the mean over all targets of all devices. A batch may happen to have none.
        self._weight.fill_(self.fabric.world_size / max(1, batch.num_targets))
        if self.graphs is None:
            self._run([part.to(self.fabric.device) for part in batch.parts])
        else:
            self.graphs(self._run, batch.parts[0], self.fabric.device)

    def _run(self, parts: Sequence[Batch]) -> None:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if last else self.fabric.no_backward_sync(self.model):
                logits = self.model(part.inputs, part.where).float()
                loss = F.cross_entropy(logits, part.targets, reduction="sum")
                self.fabric.backward(loss * self._weight)
            self._loss_sum += loss.detach()
        self._num_finite += self._loss_sum.isfinite()  # which it never is again once it was not
        if self.clip_norm is not None:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def look(self) -> tuple[float, int]:
        """The loss since the last look, summed over targets and devices, and the number of steps before it was not finite."""
        seen = torch.stack([self._loss_sum, self._num_finite.double()])
        if self.fabric.world_size > 1:
            every = self.fabric.all_gather(seen)
            assert isinstance(every, torch.Tensor)
            seen = torch.stack([every[:, 0].sum(), every[:, 1].min()])
        loss, num_finite = seen.tolist()  # here the CPU waits for the device
        self._loss_sum.zero_()
        self._num_finite.zero_()
        return loss, int(num_finite)


def _renew_generator(state: torch.Tensor) -> None:
    """Put the GPU's random numbers back to ``state`` after a recording that was broken off.

    The generator would take itself to be recorded still, and refuse to be drawn from: it gets the inner state of a new one.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(torch.Generator(generator.device).graphsafe_get_state())
    generator.set_state(state)


class StepGraphs:
    """Runs steps as CUDA graphs: the hundreds of kernels of a step in one launch, which is what a small model's step costs.

    There is a graph for each shape of batch. A shape that comes for the first time is run as it is, so that all kernels are
    compiled and tuned and the optimiser's state is there; the second time the step is recorded, from then on replayed. Dropout
    draws the numbers that it would draw without: a graph's random numbers begin where the generator stands that was seeded
    before it is replayed.

    Args:
        required: whether a step that cannot be recorded is an error; else steps then go on as they are, with a warning.
        forget: puts away what a step that was broken off has left.
    """

    def __init__(self, required: bool, forget: Callable[[], None]) -> None:
        warnings.filterwarnings("ignore", message=".*capturable=True")  # the optimiser's: the first steps are not recorded
        self.required = required
        self.forget = forget
        self._pool: Any = None  # memory that all graphs use in turn
        self._seen: set[tuple[int, ...]] = set()
        self._recorded: dict[tuple[int, ...], tuple[Batch, Callable[[], None]]] = {}
        self._given_up = False

    def __call__(self, run: Callable[[Sequence[Batch]], None], batch: Batch, device: torch.device) -> None:
        """Do what ``run([batch])`` does, on ``device``."""
        shape = batch.shape
        if shape not in self._recorded:
            own = batch.to(device)
            if self._given_up or shape not in self._seen or not self._record(run, own):
                self._seen.add(shape)
                run([own])
                return
        own, replay = self._recorded[shape]
        own.take(batch)
        replay()

    def _record(self, run: Callable[[Sequence[Batch]], None], batch: Batch) -> bool:
        """Record the step of this shape, without doing it; False if it cannot be."""
        try:
            self._recorded[batch.shape] = batch, self._capture(partial(run, [batch]))
        except RuntimeError as error:
            self.forget()
            reason = reason_of(error)
            if self.required:
                raise UserError(
                    f"trainer.cuda_graphs=true: a step cannot be recorded ({reason}); allowed for this model: false."
                ) from error
            log.warning("trainer.cuda_graphs=auto: a step cannot be recorded (%s); going on without graphs", reason)
            self._given_up = True
            self._recorded.clear()  # their random numbers would still come from the generator that was put away
            return False
        return True

    def _capture(self, step: Callable[[], None]) -> Callable[[], None]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, state = torch.cuda.CUDAGraph(), torch.cuda.get_rng_state()
        stream = torch.cuda.current_stream()
        try:
            # thread_local: the thread that makes batches may do as it likes meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                step()
        except RuntimeError:
            _renew_generator(state)
            raise
        return graph.replay

    @contextmanager
    def stream(self, device: torch.device) -> Iterator[None]:
        """Inside, work goes to a stream of its own: on the default one nothing can be recorded."""
        before = torch.cuda.current_stream(device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            yield
        before.wait_stream(stream)
