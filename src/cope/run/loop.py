"""The training loop: steps, validations and checkpoints, continued where an earlier process left them.

Everything random is a function of (seed, step), see ``cope.seeding``; so the state of a run is its weights, its optimiser and
its step, and a continued run has the very numbers of an unbroken one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import nn

from cope.errors import UserError
from cope.metrics import METRICS
from cope.model.transformer import Transformer
from cope.run.batches import BatchesAhead, StepBatch, TrainingBatches
from cope.run.checkpoint import load_last, load_weights, save_checkpoint
from cope.run.device import TrainerSettings
from cope.run.distributed import shared_out_optimizer, whole
from cope.run.evaluation import Validation
from cope.run.folder import RunFolder
from cope.run.interruption import Interruption
from cope.run.loggers import Logger
from cope.run.optimizer import OptimizerSettings
from cope.run.progress import ProgressLine
from cope.run.provenance import code_fingerprint
from cope.run.step import StepGraphs, TrainingStep
from cope.run.stopping import Stopping
from cope.seeding import seed_torch
from cope.tasks.base import Task

log = logging.getLogger(__name__)


class Diverged(UserError):
    """The loss became NaN or infinite."""


@dataclass(eq=False)
class TrainingLoop:
    """Trains a model on ``task``.

    Args:
        core: the model, on the CPU; moved and wrapped here.
        label: what to call the run in log lines.
        show_progress: draw a bar; without one, each validation is a log line.
        watched: splits that are scored at validations and choose nothing.
        observe: is told the step and the loss of each validation; what it raises ends the run.
    """

    core: Transformer
    task: Task
    seed: int
    trainer: TrainerSettings
    optimizer_settings: OptimizerSettings
    fabric: Fabric
    folder: RunFolder
    logger: Logger
    label: str
    show_progress: bool
    watched: Sequence[str] = ()
    observe: Callable[[int, float], None] | None = None

    def __post_init__(self) -> None:
        trainer, optimizer, fabric = self.trainer, self.optimizer_settings, self.fabric
        self.model = fabric.setup_module(_compiled(self.core, few_shapes=self.on_gpu) if trainer.compile else self.core)
        # The optimiser after the model, whose weights may be shards by now.
        built = optimizer.build(self.core.parameters(), fabric.device, trainer.uses_graphs)
        self.optimizer = cast(_FabricOptimizer, fabric.setup_optimizers(built))  # one for one
        graphs = StepGraphs(trainer.cuda_graphs is True, self.optimizer.zero_grad) if trainer.uses_graphs else None
        self.train_step = TrainingStep(self.model, self.optimizer, fabric, optimizer.clip_norm, graphs)
        self.batches = TrainingBatches(
            self.task, self.seed, trainer.batch_size, trainer.accumulate, fabric.global_rank, fabric.world_size,
            few_shapes=self.on_gpu, longest=self.core.encoding.max_tokens,
        )  # fmt: skip
        self.validation = Validation(self.task, self.watched, trainer.eval_examples, fabric)
        self.stopping = Stopping(trainer.steps, trainer.patience, optimizer.schedule == "wsd")
        self.interruption = Interruption(fabric)
        self.progress = ProgressLine(METRICS[self.task.headline], self.show_progress and fabric.is_global_zero)
        self.step = 0
        self.num_tokens = 0
        self.time_s = 0.0  # of training; validation is not counted
        self.unlogged_loss = 0.0  # summed over the targets since the last line of train/loss
        self.unlogged_targets = 0
        self._unseen_steps = 0  # since the last look at the loss
        self._clock_from, self._tokens_from = 0.0, 0  # where time and tokens a second are counted from

    @property
    def on_gpu(self) -> bool:
        """Whether the CPU runs ahead of the device: then it prepares batches, and waits as seldom as it can."""
        return self.fabric.device.type == "cuda"

    # ---- state -------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "model": whole(self.core.state_dict()),
            "optimizer": whole(self.optimizer.state_dict()),
            "step": self.step,
            "num_tokens": self.num_tokens,
            "time_s": self.time_s,
            "best": self.validation.best,
            "stopping": self.stopping.state(),
            "unlogged_loss": self.unlogged_loss,
            "unlogged_targets": self.unlogged_targets,
            "code": code_fingerprint(),
            "data": self.task.fingerprint,
        }

    def _save(self, best: bool = False) -> None:
        state = self._state()  # by all devices, which may have a part of it each
        if not self.fabric.is_global_zero:
            return
        if best:  # first: a run that is broken off in between goes on from the last one before, and finds the best again
            save_checkpoint(self.folder.best_checkpoint, state, copy_to=self.folder.last_checkpoint)
        else:
            save_checkpoint(self.folder.last_checkpoint, state)

    def resume(self) -> None:
        """Go on from ``last.pt`` if there is one.

        Raises:
            UserError: the checkpoint is damaged, or was made by other code.
        """
        state = load_last(self.folder, self.task, self.trainer.steps, self._state().keys())
        if state is not None:
            load_weights(self.core, state, self.folder.last_checkpoint)
            # How the optimiser runs is this command's and this machine's; what it has summed up is the checkpoint's.
            settings = self.optimizer.state_dict()["param_groups"]
            own = cast(torch.optim.Optimizer, self.optimizer)  # Fabric's stands for it
            summed = shared_out_optimizer(state["optimizer"]["state"], own)
            own.load_state_dict({"state": summed, "param_groups": settings})
            self.step, self.num_tokens, self.time_s = state["step"], state["num_tokens"], state["time_s"]
            self.validation.best = state["best"]
            self.stopping.load(state["stopping"])
            self.unlogged_loss, self.unlogged_targets = state["unlogged_loss"], state["unlogged_targets"]
            log.info("%s: continuing at step %d of %d", self.label, self.step, self.stopping.last_step)
        if self.fabric.is_global_zero:
            self.folder.truncate_metrics(-1 if state is None else self.step)

    # ---- training ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the last step, with ``best.pt`` the checkpoint of the best validation.

        Raises:
            Interrupted: Ctrl-C or a signal; the state is saved.
            Diverged: the loss is NaN or infinite.
        """
        self.model.train()
        with (
            self.interruption.listening(),
            self.progress.drawn(self.step, self.stopping.last_step),
            self.batches_at_hand() as batch_of,
        ):
            self._start_clock()
            while self.step < self.stopping.last_step:
                self.train_on(batch_of(self.step))
                self.progress.one_step()
                is_last = self.step == self.stopping.last_step
                logs = is_last or self.step % self.trainer.log_every == 0
                validates = is_last or self.step % self.trainer.eval_every == 0
                # On a CPU there is nothing to wait for; a GPU is looked at when something is to be told or kept.
                looks = not self.on_gpu or logs or validates
                if looks:
                    self.look()
                if logs:
                    self._log()
                if validates:
                    self._validate()
                # Of several devices none knows by itself whether another was asked to stop.
                if looks or self.fabric.world_size == 1:
                    self._end_if_asked()

    @contextmanager
    def batches_at_hand(self) -> Iterator[Callable[[int], StepBatch]]:
        """Gives the batch of a step; inside, a GPU has batches made ahead and, for graphs, a stream of its own."""
        with ExitStack() as stack:
            if not self.on_gpu:
                yield self.batches.at
                return
            if self.train_step.graphs is not None:
                stack.enter_context(self.train_step.graphs.stream(self.fabric.device))
            ahead = stack.enter_context(closing(BatchesAhead(self.batches.at, self.trainer.steps)))
            yield ahead.at

    def train_on(self, batch: StepBatch) -> None:
        """One optimiser step."""
        seed_torch(self.seed, "dropout", self.step, self.fabric.global_rank)
        self.train_step(batch, self._learning_rate(self.step))
        self.step += 1
        self._unseen_steps += 1
        self.unlogged_targets += batch.num_targets
        self.num_tokens += batch.num_tokens

    def look(self) -> None:
        """See what the steps since the last look have come to; raise Diverged if one's loss was not finite."""
        if self._unseen_steps == 0:
            return
        loss, num_finite = self.train_step.look()
        if num_finite < self._unseen_steps:
            self._diverged(loss, self.step - self._unseen_steps + num_finite)
        self.unlogged_loss += loss
        self._unseen_steps = 0

    def _learning_rate(self, step: int) -> float:
        return self.optimizer_settings.learning_rate(step, self.stopping.last_step, self.stopping.decay_from)

    def _end_if_asked(self) -> None:
        if self.interruption.is_asked_for():
            self.look()
            self._save()
            raise self.interruption.error(self.step, self.stopping.last_step)

    def _diverged(self, loss: float, step: int) -> None:
        # The last checkpoint may be of a run that was stopped between a bad step and the loss that shows it.
        checkpoint = self.folder.best_checkpoint
        good = f"the best checkpoint so far is {checkpoint}" if checkpoint.exists() else "no checkpoint was validated"
        settings = self.optimizer_settings
        remedies = [f"a smaller optimizer.lr (now {settings.lr})", f"more optimizer.warmup_steps (now {settings.warmup_steps})"]
        remedies += ["optimizer.clip_norm=1"] if settings.clip_norm is None else []
        remedies += ["trainer.precision=32-true"] if self.trainer.precision != "32-true" else []
        raise Diverged(
            f"The loss became {loss} at step {step}; {good}. Try {', '.join(remedies)}; where nothing in this folder goes on, "
            "force=true starts over."
        )

    # ---- what is told of it ------------------------------------------------------------------------------------------

    def _log(self) -> None:
        """The loss since the last such line, the learning rate and the speed."""
        elapsed = self._stop_clock()
        loss, rate = self.unlogged_loss / max(1, self.unlogged_targets), (self.num_tokens - self._tokens_from) / elapsed
        self._record({"train/loss": loss, "train/lr": self._learning_rate(self.step - 1), "train/tokens_per_s": rate})
        self.unlogged_loss, self.unlogged_targets = 0.0, 0
        self.progress.loss, self.progress.tokens_per_s = loss, rate
        self.progress.tell(self.stopping.last_step)
        self._start_clock()

    def _validate(self) -> None:
        """Score the model, save it, and see whether it is the best, and whether it is time to end."""
        self._stop_clock()
        is_last = self.step == self.stopping.last_step
        with_watched = is_last or self.step % (self.trainer.eval_every * self.trainer.eval_splits_every) == 0
        validated = self.validation.look(self.model, with_watched)
        if not math.isfinite(validated.loss):
            self._diverged(validated.loss, self.step)  # before the last good checkpoint is overwritten
        self._record(validated.metrics)
        is_best = self.validation.is_best(validated, self.step)
        if self.stopping.see(validated.loss, self.step):
            log.info(
                "%s: step %d: the validation loss has not fallen for %d steps; ends at step %d", self.label, self.step,
                self.trainer.patience, self.stopping.last_step,
            )  # fmt: skip
        self._save(best=is_best)
        if self.observe is not None:
            self.observe(self.step, validated.loss)
        elsewhere = self.validation.worst_elsewhere
        self.progress.scores = {"validation": validated.headline} | ({} if elsewhere is None else {"OOD": elsewhere})
        self.progress.tell(self.stopping.last_step)
        if not self.show_progress:
            metric = self.progress.metric
            log.info(
                "%s: step %d/%d  validation %s %s  %.0f tokens/s", self.label, self.step, self.stopping.last_step,
                metric.label, metric.text(validated.headline), self.progress.tokens_per_s,
            )  # fmt: skip
        self._start_clock()

    def _record(self, values: dict[str, float]) -> None:
        if self.fabric.is_global_zero:
            self.folder.append_metrics({"step": self.step, **values})
            self.logger.metrics(values, self.step)

    def _start_clock(self) -> None:
        self._clock_from, self._tokens_from = time.perf_counter(), self.num_tokens

    def _stop_clock(self) -> float:
        """The seconds since it was started, which are added to those of training."""
        elapsed = time.perf_counter() - self._clock_from
        self.time_s += elapsed
        return elapsed


def _compiled(model: nn.Module, few_shapes: bool) -> nn.Module:
    """``model`` through ``torch.compile``: for each shape by itself where there are few, for any shape otherwise."""
    if few_shapes:
        torch._dynamo.config.recompile_limit = 64  # more shapes than there are; PyTorch's own is 8
    return cast(nn.Module, torch.compile(model, fullgraph=True, dynamic=False if few_shapes else None))
