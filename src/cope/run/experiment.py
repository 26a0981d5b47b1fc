"""One run, from a composed configuration to ``result.json``: check everything, build, train, score every split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf

from cope.building import arguments, build
from cope.errors import UserError, check_at_least, check_choice
from cope.files import write_json
from cope.kernels.triton import compiler_options
from cope.memory import is_out_of_memory
from cope.metrics import shown
from cope.positions.base import PositionEncoding
from cope.run.checkpoint import check_data, load_checkpoint, load_weights
from cope.run.configuration import Problems, check_top_level, checked, definition, resolved, run_folder
from cope.run.cost import Cost, check_dry, cost_of
from cope.run.device import TrainerSettings, keep_freed_memory, peak_memory_mib
from cope.run.distributed import ending_together, is_sharded
from cope.run.evaluation import score_split
from cope.run.loggers import Logger, NoLogger
from cope.run.loop import TrainingLoop
from cope.run.model_building import build_model, model_shape
from cope.run.optimizer import OptimizerSettings
from cope.run.provenance import Provenance, code_fingerprint
from cope.run.sizes import check_data_fits, check_model_fits, num_weights
from cope.run.specimen import save_gates
from cope.tasks.base import Task
from cope.threads import num_threads

log = logging.getLogger(__name__)


class Experiment:
    """A checked configuration and what is built from it.

    Args:
        config: composed by Hydra, every interpolation resolvable.

    Raises:
        UserError: everything that is wrong with the configuration, at once, before any data is generated or read.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = checked(config)
        self.is_main_process = True
        problems = Problems()
        with problems.collect():
            check_top_level(config)
            check_at_least("seed", config.seed, 0)
            check_dry(config.get("dry", False))
        with problems.collect():
            self.trainer = TrainerSettings(**arguments(config.trainer, TrainerSettings, "trainer"))
        with problems.collect():
            self.optimizer = OptimizerSettings(**arguments(config.optimizer, OptimizerSettings, "optimizer"))
        with problems.collect():
            self.logger: Logger = build(config.logger, "logger")
        with problems.collect():
            self.task: Task = build(config.task, "task")
            shape = model_shape(config, self.task)
            weights = num_weights(config, self.task, shape)
            # Without a trainer it cannot be told whether the model fits; what is finished need not, to be shown.
            if not problems.messages and (config.force or config.get("dry") or not run_folder(config).result.exists()):
                check_data_fits(self.task)
                if weights is not None and not config.get("dry", False):  # else too little memory is what is told
                    check_model_fits(weights, shape, int(config.model.feed_forward_multiple), self.task, self.trainer)
                self.model = build_model(config, self.task)
                self._check_lengths(self.model.encoding)
        with problems.collect():
            if not problems.messages:
                self._check_schedule()
                self.watched_splits = self._watched_splits()
        problems.raise_if_any()
        self.folder = run_folder(config)

    def _watched_splits(self) -> tuple[str, ...]:
        """The splits that are scored at validations and choose nothing."""
        asked, allowed = self.trainer.eval_splits, self.task.watched_splits
        if isinstance(asked, str):
            return allowed
        for split in asked:
            if split == "test":
                raise UserError("trainer.eval_splits: test is scored once, at the end, and never while a model trains.")
            check_choice("trainer.eval_splits", split, allowed)
        return tuple(asked)

    def _check_schedule(self) -> None:
        if self.trainer.patience is not None and self.optimizer.schedule not in ("wsd", "constant"):
            raise UserError(
                f"optimizer.schedule={self.optimizer.schedule} falls towards trainer.steps, where a run with "
                f"trainer.patience={self.trainer.patience} may never come; allowed with it: wsd, constant."
            )

    def _check_lengths(self, encoding: PositionEncoding) -> None:
        if encoding.max_tokens is not None and self.task.longest_context > encoding.max_tokens:
            raise UserError(
                f"pe={self.config.pe.name} with pe.beyond=error has positions for {encoding.max_tokens} tokens, but of a split "
                f"of task={self.config.task.name} {self.task.longest_context} are read. Use pe.beyond=untrained, or test only "
                "splits that fit."
            )

    def cost(self, measured: bool = True) -> Cost:
        """What the run will cost, its time where it is to be measured; the experiment is of no use afterwards."""
        hidden = int(self.config.model.feed_forward_multiple)
        return cost_of(self.model, self.task, self.config.seed, self.trainer, self.optimizer, hidden, measured)

    # ---- the run -----------------------------------------------------------------------------------------------------

    def run(
        self,
        show_progress: bool,
        splits: Sequence[str] | None = None,
        observe: Callable[[int, float], None] | None = None,
    ) -> dict[str, Any]:
        """Train, or go on with training, score every split, and write the result; or return a finished one.

        Args:
            splits: those to score instead; without ``test`` nothing of the test split is looked at or drawn.
            observe: is told the step and the loss of each validation; what it raises ends the run.

        Raises:
            UserError: another process has the folder, its config differs, or training could not end.
        """
        fabric = self.trainer.fabric()
        with ending_together(fabric), self._memory_named():
            return self._run(fabric, show_progress, splits, observe)

    @contextmanager
    def _memory_named(self) -> Iterator[None]:
        """Tell of too little memory what to lower."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            trainer = self.trainer
            raise UserError(
                f"No memory was left; {self.folder.path} keeps what was saved. This run goes on with trainer.threads=1 or "
                f"more memory. Another run needs less: a smaller trainer.batch_size (now {trainer.batch_size}) or a larger "
                f"trainer.accumulate (now {trainer.accumulate}), a shorter task.context, a smaller model.dim (now "
                f"{self.config.model.dim}) or model.num_layers (now {self.config.model.num_layers})."
            ) from error

    def _run(
        self,
        fabric: Fabric,
        show_progress: bool,
        splits: Sequence[str] | None,
        observe: Callable[[int, float], None] | None,
    ) -> dict[str, Any]:
        self.is_main_process = fabric.is_global_zero
        if fabric.is_global_zero:
            self._claim_folder()
        else:
            logging.getLogger("cope").setLevel(logging.WARNING)  # one voice
        fabric.barrier()
        result = self.folder.read_result()
        if result is not None:
            check_data(result, self.task, self.folder.result)
            other = "" if result.get("code") == code_fingerprint() else f" by other code (commit {result.get('commit')})"
            log.info("This run is finished already%s; force=true starts it over.", other)
            return result
        keep_freed_memory()
        torch.set_num_threads(num_threads(self.trainer.threads, self.trainer.devices))
        provenance = Provenance.taken(self.task, self.model.encoding, fabric.device, fabric.world_size)
        if not fabric.is_global_zero:
            self.logger = NoLogger()
        label = f"{self.config.task.name} {self.config.pe.name} seed={self.config.seed}"
        loop = TrainingLoop(
            self.model, self.task, self.config.seed, self.trainer, self.optimizer, fabric, self.folder, self.logger, label,
            show_progress, () if splits else self.watched_splits, observe,
        )  # fmt: skip
        loop.resume()
        log.info(
            "%s: %s parameters, %d steps of %d sequences, %d %s, in %s", label, f"{self.model.num_parameters():,}",
            self.trainer.steps, self.trainer.batch_size, torch.get_num_threads(),
            "thread" if torch.get_num_threads() == 1 else "threads", self.folder.path,
        )  # fmt: skip
        self.logger.start(
            self.folder.path,
            resolved(self.config) | {"provenance": asdict(provenance)},
            f"{self.folder.path.parent.name}-{self.config.pe.name}-{self.config.seed}",
            self.folder.read_metrics(),
        )
        try:
            loop.run()
            return self._finish(loop, fabric, provenance, splits or ("validation", *self.task.test_splits))
        except Exception:
            self.logger.finish(None)
            raise

    def _claim_folder(self) -> None:
        """Lock the folder and see to it that what is in it belongs to this run."""
        self.folder.lock()
        if self.config.force:
            self.folder.start_over()
        asked = definition(self.config)
        found = self.folder.read_config()
        if found is None:
            self.folder.write_config(resolved(self.config))
            return
        if definition(OmegaConf.create(found)) != asked:
            raise UserError(
                f"{self.folder.config} differs from the settings of this command, though the folder's name stands for them: it "
                "was changed by hand. Put it back, or start the run over with force=true."
            )

    def _finish(self, loop: TrainingLoop, fabric: Fabric, provenance: Provenance, scored: Sequence[str]) -> dict[str, Any]:
        """Score the best checkpoint on each split of ``scored`` and write ``result.json``."""
        best = load_checkpoint(self.folder.best_checkpoint)
        load_weights(self.model, best, self.folder.best_checkpoint)
        splits = {split: score_split(loop.model, self.task, split, fabric) for split in scored}
        result = {
            "task": self.config.task.name,
            "encoding": self.config.pe.name,
            "seed": self.config.seed,
            "scale": self.config.scale,
            "headline": self.task.headline,
            "splits": splits,
            "best_step": best["step"],
            "steps": loop.step,
            **loop.stopping.found,
            "num_parameters": self.model.num_parameters(),
            "num_tokens": loop.num_tokens,
            "time_s": round(loop.time_s, 2),
            "peak_memory_mib": round(peak_memory_mib(), 1),
            **asdict(provenance),
            "config": definition(self.config),
        }
        if options := compiler_options.taken():  # of this process; numbers are the same with any
            result["kernel_options"] = options
        if fabric.is_global_zero:
            if "test" in scored:
                self._keep_gates(best)
            final = {
                f"best/{split}/{name}": value
                for split, found in splits.items() for name, value in shown(found).items()
            }  # fmt: skip
            line = {"step": loop.step, **final}
            if line not in self.folder.read_metrics():  # a run that was killed right after this line has it already
                self.folder.append_metrics(line)
            self.logger.metrics(final, loop.step)
            write_json(self.folder.result, result)
        return result

    def _keep_gates(self, best: dict[str, Any]) -> None:
        model = self.model
        if is_sharded(model):  # this device would wait for the others
            model = build_model(self.config, self.task).eval()
            load_weights(model, best, self.folder.best_checkpoint)
        save_gates(model, self.task, self.folder.gates)
