"""The training loop: steps, validations and checkpoints, continued where an earlier process left them.

Everything random is a function of (seed, step), see ``cope.seeding``; so the state of a run is its weights, its optimiser and
its step, and a continued run has the very numbers of an unbroken one.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from types import FrameType
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cope.errors import Interrupted, Preempted, UserError
from cope.metrics import METRICS, shown
from cope.model.transformer import Transformer
from cope.run.batches import BatchesAhead, StepBatch, TrainingBatches
from cope.run.checkpoint import check_data, load_checkpoint, load_weights, save_checkpoint
from cope.run.device import TrainerSettings
from cope.run.distributed import shared_out_optimizer, whole
from cope.run.evaluation import score, watched_metrics
from cope.run.folder import RunFolder
from cope.run.loggers import Logger
from cope.run.optimizer import OptimizerSettings
from cope.run.provenance import code_fingerprint
from cope.run.step import StepGraphs, TrainingStep
from cope.run.stopping import Stopping
from cope.seeding import seed_torch
from cope.signals import handled_by
from cope.tasks.base import Task
from cope.tasks.scores import Score

log = logging.getLogger(__name__)

# Slurm sends one of the latter two before a job's time is over, if it is told to; Windows has neither.
PREEMPTING = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
STOPPING = [signal.SIGINT, signal.SIGTERM, *PREEMPTING]


class Diverged(UserError):
    """The loss became NaN or infinite."""


class TrainingLoop:
    """Trains ``model`` on ``task``.

    Args:
        model: on the CPU; moved and wrapped here.
        label: what to call the run in log lines.
        show_progress: draw a bar; without one, each validation is a log line.
        watched: splits that are scored at validations and choose nothing.
        observe: is told the step and the loss of each validation; what it raises ends the run.
    """

    def __init__(
        self,
        model: Transformer,
        task: Task,
        seed: int,
        trainer: TrainerSettings,
        optimizer: OptimizerSettings,
        fabric: Fabric,
        folder: RunFolder,
        logger: Logger,
        label: str,
        show_progress: bool,
        watched: Sequence[str] = (),
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self.task = task
        self.seed = seed
        self.trainer = trainer
        self.optimizer_settings = optimizer
        self.fabric = fabric
        self.folder = folder
        self.logger = logger
        self.label = label
        self.show_progress = show_progress
        self.observe = observe
        self.core = model
        wrapped = _compiled(model, few_shapes=self.on_gpu) if trainer.compile else model
        self.model = fabric.setup_module(wrapped)
        # The optimiser after the model, whose weights may be shards by now.
        built = optimizer.build(model.parameters(), fabric.device, trainer.uses_graphs)
        self.optimizer = cast(_FabricOptimizer, fabric.setup_optimizers(built))  # one for one
        graphs = StepGraphs(trainer.cuda_graphs is True, self.optimizer.zero_grad) if trainer.uses_graphs else None
        self.train_step = TrainingStep(self.model, self.optimizer, fabric, optimizer.clip_norm, graphs)
        self.batches = TrainingBatches(
            task, seed, trainer.batch_size, trainer.accumulate, fabric.global_rank, fabric.world_size,
            few_shapes=self.on_gpu, longest=model.encoding.max_tokens,
        )  # fmt: skip
        self.validation = task.evaluation_examples("validation")
        self.watched = {split: task.watched_examples(split, trainer.eval_examples) for split in watched}
        self.stopping = Stopping(trainer.steps, trainer.patience, optimizer.schedule == "wsd")
        self.step = 0
        self.num_tokens = 0
        self.time_s = 0.0
        self._metric = METRICS[task.headline]
        self._worst_elsewhere: float | None = None  # the headline of the worst of the watched splits out of distribution
        self.best: dict[str, float] | None = None
        self.unlogged_loss = 0.0  # summed over the targets since the last line of train/loss
        self.unlogged_targets = 0
        self._unseen_steps = 0  # since the last look at the loss
        self._stop: int | None = None  # the signal that asked to

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
            "best": self.best,
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
        validated = [line["step"] for line in self.folder.read_metrics() if "eval/validation/loss" in line]
        if not self.folder.last_checkpoint.exists() and len(validated) <= 1:  # a first validation is saved after it is told
            if self.fabric.is_global_zero:
                self.folder.truncate_metrics(-1)
            return
        state = load_checkpoint(self.folder.last_checkpoint)
        if state["code"] != code_fingerprint():
            raise UserError(
                f"{self.folder.last_checkpoint} was written by other code than this, so continuing would mix the two. Check "
                "out the code that began the run, or start it over with force=true."
            )
        check_data(state, self.task, self.folder.last_checkpoint)
        self._check_state(state, validated)
        load_weights(self.core, state, self.folder.last_checkpoint)
        # How the optimiser runs is this command's and this machine's; what it has summed up is the checkpoint's.
        settings = self.optimizer.state_dict()["param_groups"]
        own = cast(torch.optim.Optimizer, self.optimizer)  # Fabric's stands for it
        summed = shared_out_optimizer(state["optimizer"]["state"], own)
        own.load_state_dict({"state": summed, "param_groups": settings})
        self.step, self.num_tokens, self.time_s = state["step"], state["num_tokens"], state["time_s"]
        self.best = state["best"]
        self.stopping.load(state["stopping"])
        self.unlogged_loss, self.unlogged_targets = state["unlogged_loss"], state["unlogged_targets"]
        if self.fabric.is_global_zero:
            self.folder.truncate_metrics(self.step)
        log.info("%s: continuing at step %d of %d", self.label, self.step, self.stopping.last_step)

    def _check_state(self, state: dict[str, Any], validated: list[int]) -> None:
        """Raise UserError if ``state`` cannot be of this run, whose metrics.jsonl tells of validations at ``validated``."""
        path, over = self.folder.last_checkpoint, "To start the run over, add force=true."
        if missing := self._state().keys() - state.keys():
            raise UserError(f"{path} is damaged: it has no {', '.join(sorted(missing))}. {over}")
        if state["step"] > self.trainer.steps:
            raise UserError(f"{path} is damaged: it is of step {state['step']} of {self.trainer.steps}. {over}")
        if state["best"] is not None and state["best"]["step"] not in validated:
            raise UserError(
                f"{self.folder.metrics} has no validation at step {state['best']['step']}, of which {path} tells: lines are "
                f"missing. Put them back. {over}"
            )
        if state["best"] is not None and not self.folder.best_checkpoint.exists():
            raise UserError(f"{self.folder.best_checkpoint} does not exist, though {path} tells of it. Put it back. {over}")

    # ---- training ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the last step, with ``best.pt`` the checkpoint of the best validation.

        Raises:
            Interrupted: Ctrl-C or a signal; the state is saved.
            Diverged: the loss is NaN or infinite.
        """
        self.model.train()
        started, tokens_before = time.perf_counter(), self.num_tokens
        validated: Score | None = None
        rate = loss = 0.0
        with (
            handled_by(self._ask_to_stop, *STOPPING),
            self._bar() as bar,
            self.batches_at_hand() as batch_of,
        ):
            while self.step < self.stopping.last_step:
                self.train_on(batch_of(self.step))
                bar.update()
                is_last = self.step == self.stopping.last_step
                logs = self.step % self.trainer.log_every == 0 or is_last
                validates = self.step % self.trainer.eval_every == 0 or is_last
                # On a CPU there is nothing to wait for; a GPU is looked at when something is to be told or kept.
                looks = not self.on_gpu or logs or validates
                if looks:
                    self.look()
                if logs:
                    elapsed = time.perf_counter() - started
                    rate = (self.num_tokens - tokens_before) / elapsed
                    self.time_s += elapsed
                    loss = self.unlogged_loss / self.unlogged_targets
                    self._record(
                        {"train/loss": loss, "train/lr": self._learning_rate(self.step - 1), "train/tokens_per_s": rate}
                    )
                    self.unlogged_loss, self.unlogged_targets, tokens_before = 0.0, 0, self.num_tokens
                    self._describe(bar, loss, rate, validated)
                    started = time.perf_counter()
                if validates:
                    self.time_s += time.perf_counter() - started  # since the last log line; validation is not counted
                    validated = self._validate()
                    bar.total = self.stopping.last_step
                    self._describe(bar, loss, rate, validated)
                    if not self.show_progress:
                        log.info(
                            "%s: step %d/%d  validation %s %s  %.0f tokens/s", self.label, self.step, self.stopping.last_step,
                            self._metric.label, self._metric.text(self._headline(validated)), rate,
                        )  # fmt: skip
                    started, tokens_before = time.perf_counter(), self.num_tokens
                # Of several devices none knows by itself whether another was asked to stop.
                if (looks or self.fabric.world_size == 1) and self._should_stop():
                    self.look()
                    self._save()
                    raise (Preempted if self._stop in PREEMPTING else Interrupted)(
                        f"Stopped after step {self.step} of {self.stopping.last_step}; the same command goes on from there."
                    )

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

    def _sum_over_devices(self, values: torch.Tensor) -> torch.Tensor:
        if self.fabric.world_size == 1:
            return values
        summed = self.fabric.all_reduce(values.to(self.fabric.device), reduce_op="sum")
        assert isinstance(summed, torch.Tensor)
        return summed.cpu()

    def _learning_rate(self, step: int) -> float:
        return self.optimizer_settings.learning_rate(step, self.stopping.last_step, self.stopping.decay_from)

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

    # ---- validation --------------------------------------------------------------------------------------------------

    def _headline(self, validated: Score) -> float:
        return float(self.task.metrics("validation", validated)[self.task.headline])

    def _validate(self) -> Score:
        validated = score(self.model, self.validation, self.fabric)
        if not math.isfinite(validated.loss):
            self._diverged(validated.loss, self.step)  # before the last good checkpoint is overwritten
        metrics = {"validation": shown(self.task.metrics("validation", validated)) | watched_metrics(self.task, validated)}
        if self.step % (self.trainer.eval_every * self.trainer.eval_splits_every) == 0 or self.step == self.stopping.last_step:
            metrics |= {
                split: watched_metrics(self.task, score(self.model, examples, self.fabric))
                for split, examples in self.watched.items()
            }
        others = [found[self.task.headline] for split, found in metrics.items() if split.startswith(("ood_", "longer_"))]
        self._worst_elsewhere = max(others, default=self._worst_elsewhere)
        self._record({f"eval/{split}/{name}": value for split, found in metrics.items() for name, value in found.items()})
        # Ties in error are common near 0: the loss decides, so that the choice is not the first step that got there.
        candidate = {"headline": self._headline(validated), "loss": validated.loss, "step": self.step}
        is_best = self.best is None or (candidate["headline"], candidate["loss"]) < (self.best["headline"], self.best["loss"])
        if is_best:
            self.best = candidate
        if self.stopping.see(validated.loss, self.step):
            log.info(
                "%s: step %d: the validation loss has not fallen for %d steps; ends at step %d", self.label, self.step,
                self.trainer.patience, self.stopping.last_step,
            )  # fmt: skip
        self._save(best=is_best)
        if self.observe is not None:
            self.observe(self.step, validated.loss)
        return validated

    # ---- watching ----------------------------------------------------------------------------------------------------

    def _record(self, values: dict[str, float]) -> None:
        if self.fabric.is_global_zero:
            self.folder.append_metrics({"step": self.step, **values})
            self.logger.metrics(values, self.step)

    @contextmanager
    def _bar(self) -> Iterator[tqdm[Any]]:
        """A line of at most a terminal's width; log lines appear above it."""
        shown = self.show_progress and self.fabric.is_global_zero
        with (
            tqdm(
                total=self.stopping.last_step, initial=self.step, disable=not shown, dynamic_ncols=True, leave=False,
                file=sys.stderr, bar_format="{n_fmt}/{total_fmt} |{bar}| {desc}  {remaining} left",
            ) as bar,
            logging_redirect_tqdm() if shown else nullcontext(),
        ):  # fmt: skip
            yield bar

    def _describe(self, bar: tqdm[Any], loss: float, rate: float, validated: Score | None) -> None:
        unit = "%" * self._metric.is_percentage
        scores = [] if validated is None else [("validation", self._headline(validated)), ("OOD", self._worst_elsewhere)]
        parts = [
            f"loss {loss:.3g}",
            *(f"{name} {self._metric.text(value)}{unit}" for name, value in scores if value is not None),
        ]
        parts.append(f"{rate:,.0f} tokens/s" if rate < 1000 else f"{rate / 1000:,.0f}k tokens/s")
        bar.set_description_str("  ".join(parts))

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C and the signals that clusters send let the step end first; a second Ctrl-C does not wait."""
        if self._stop is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop = number

    def _should_stop(self) -> bool:
        """Whether any device was asked to stop: all must stop at the same step."""
        if self.fabric.world_size == 1:
            return self._stop is not None
        return bool(self._sum_over_devices(torch.tensor(float(self._stop is not None))) > 0)


def _compiled(model: nn.Module, few_shapes: bool) -> nn.Module:
    """``model`` through ``torch.compile``: for each shape by itself where there are few, for any shape otherwise."""
    if few_shapes:
        torch._dynamo.config.recompile_limit = 64  # more shapes than there are; PyTorch's own is 8
    return cast(nn.Module, torch.compile(model, fullgraph=True, dynamic=False if few_shapes else None))
