"""Mirrors of ``metrics.jsonl``: Weights & Biases, or none.

Nothing of the environment is logged: no variables, keys, host names, code or terminal output.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from cope.errors import UserError, check_choice, reason_of
from cope.run.folder import RunFolder

log = logging.getLogger(__name__)

CONNECT_SECONDS = 4.0  # that W&B's server may take to accept a run before training starts without it; W&B itself waits 90
FINISH_SECONDS = 60.0  # that the last upload may take; W&B itself waits for ever


class Logger:
    """What the training loop tells of a run, beside what it writes to the run's folder. Each hook may be left as it is."""

    def start(self, folder: Path, config: dict[str, Any], run_id: str, measured: list[dict[str, Any]]) -> None:
        """Begin a run, or go on with one whose ``metrics.jsonl`` holds ``measured``."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Mirror one line of ``metrics.jsonl``."""

    def images(self, paths: dict[str, Path]) -> None:
        """Mirror pictures, by key."""

    def finish(self, summary: dict[str, Any] | None) -> None:
        """End the run with its final numbers, or without any: it failed or was stopped."""


class NoLogger(Logger):
    """``logger=none``: the run folder is all there is, and nobody else is told."""


class WandbLogger(Logger):
    """``logger=wandb``: runs grouped by task, of the type of their encoding, and named by encoding and seed.

    Of a task's own charts (``flip_flop/ood_sparse_accuracy``) W&B makes a section, in which the encodings lie over each other
    and no other task's runs are.

    Where W&B's server is, whether the user is logged in there, and what WANDB_MODE or ``wandb offline`` decided, W&B's own
    client is asked. A continued run is one run in W&B: what it measured before is handed over again, so that an offline one is
    one folder, however often it was broken off.

    Args:
        project: W&B's project.
        mode: ``auto`` (online if the user is logged in and the server answers, else offline: files in the run folder that
            ``wandb sync`` uploads), ``online`` or ``offline``. WANDB_MODE and W&B's settings file, where they say it, decide
            for ``auto``.
    """

    def __init__(self, project: str = "cope-lab", mode: str = "auto") -> None:
        check_choice("logger.mode", mode, ["auto", "online", "offline"])
        # No reports of errors to W&B's makers, for which it would also wait where there is no network.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "logger=wandb needs the package wandb, which is not installed. Install it (pip install wandb), or log to the "
                "run folder alone with logger=none."
            ) from error
        self._wandb = wandb
        if not project.strip():
            raise UserError("logger.project= is empty; allowed: a name of W&B, such as cope-lab.")
        try:
            wandb.Settings(project=project)
        except wandb.errors.UsageError as error:
            raise UserError(f"logger.project={project} is no name for a project of W&B: {error}.") from error
        self.project = project
        self.is_demanded = mode == "online"
        self.mode = self._resolved_mode(mode)
        self._run: Any = None
        self._task = ""
        self._begin_again: Callable[[], None] | None = None  # once, where W&B fails in the middle of a run

    def _resolved_mode(self, mode: str) -> Any:
        """``online``, ``offline`` or ``disabled``, as far as that can be told without a network."""
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth

        try:
            settings = wandb_setup.singleton().settings
            self.host = settings.base_url
            is_logged_in = (
                wbauth.authenticate_session(host=self.host, source="", prompt=False, update_session=False) is not None
            )
        except (ValueError, self._wandb.errors.Error) as error:
            raise UserError(
                f"logger=wandb: {_complaint(error)}. Put it right where it was set: a variable of the environment, or W&B's "
                "settings file. Or log to the run folder alone with logger=none."
            ) from error
        if mode == "auto" and "mode" in settings.model_fields_set:
            mode = {"dryrun": "offline", "run": "online"}.get(settings.mode, settings.mode)
            check_choice("WANDB_MODE", mode, ["online", "offline", "disabled"])
        elif mode == "auto":
            mode = "online" if is_logged_in else "offline"
        if mode == "online" and not is_logged_in:
            raise UserError(
                f"logger=wandb: nobody is logged in at {self.host}, so nothing can be sent there. Log in (wandb login), or use "
                "logger.mode=offline."
            )
        return mode

    def start(self, folder: Path, config: dict[str, Any], run_id: str, measured: list[dict[str, Any]]) -> None:
        if self.mode == "disabled":
            log.info("W&B: disabled, by WANDB_MODE or W&B's settings file")
            return
        self._task = config["task"]["name"]
        self._begin_again = partial(self._begun_offline, folder, config, run_id)
        try:
            self._run = self._begun(folder, config, run_id, is_continued=bool(measured))
        except Exception as error:  # W&B raises several kinds, which share no base class
            reason = reason_of(error)
            if self.is_demanded or self.mode == "offline":
                raise UserError(
                    f"logger=wandb cannot start {self.mode}, at {self.host}: {reason}. Use logger.mode=offline or logger=none."
                ) from error
            log.warning("W&B: %s does not take this run (%s), so it is kept offline.", self.host, reason)
            self._wandb.teardown()  # its process believes that the run has begun
            self.mode = "offline"
            self._run = self._begun(folder, config, run_id, is_continued=bool(measured))
        self._tell(lambda run: self._hand_over(run, folder, run_id, measured))
        # Offline, a run's end tells how to upload it, or its sweep's. Of a sweep's online runs the first tells where it is.
        if self._run is not None and self.mode == "online" and not _job_of_sweep():
            log.info("W&B: %s", self._run.url)

    def _hand_over(self, run: Any, folder: Path, run_id: str, measured: list[dict[str, Any]]) -> None:
        """Let the new record of a run have all that earlier ones had, and be the only one."""
        for line in measured:
            if line["step"] >= run.starting_step:  # what the server has not had yet
                self._log_line(run, {key: value for key, value in line.items() if key != "step"}, line["step"])
        for path in folder.glob(f"wandb/*run-*-{run_id}"):
            if path != Path(run.settings.sync_dir):
                shutil.rmtree(path, ignore_errors=True)

    def _tell(self, act: Callable[[Any], None]) -> None:
        """Let ``act`` tell W&B's run something. No run ends because W&B does: it begins again, once, then is done without."""
        if self._run is None:
            return
        try:
            act(self._run)
        except Exception as error:  # its process was lost, its disk is full: errors of several kinds, which share no base class
            self._lost(error)
            if self._run is not None:
                self._tell(act)

    def _lost(self, error: Exception) -> None:
        """Begin again offline, the first time; say what became of it."""
        reason = reason_of(error)
        begin_again, self._begin_again, self._run = self._begin_again, None, None
        with suppress(Exception):  # there may be nobody left to be told
            self._wandb.teardown()
        if begin_again is None:
            log.warning("W&B: failed again (%s): this run goes on without it.", reason)
            return
        try:
            begin_again()
            log.warning("W&B: failed (%s); kept offline from here on, in %s.", reason, self._run.settings.sync_dir)
        except Exception:
            self._run = None
            with suppress(Exception):
                self._wandb.teardown()
            log.warning("W&B: failed (%s); this run goes on without it, and metrics.jsonl has all that is measured.", reason)

    def _begun_offline(self, folder: Path, config: dict[str, Any], run_id: str) -> None:
        self.mode = "offline"
        self._run = self._begun(folder, config, run_id, is_continued=True, reinit="create_new")
        self._hand_over(self._run, folder, run_id, RunFolder(folder).read_metrics())

    def _begun(self, folder: Path, config: dict[str, Any], run_id: str, is_continued: bool, **more: Any) -> Any:
        # An empty host, because W&B puts the machine's own name where there is none.
        settings = self._wandb.Settings(
            silent=True, console="off", host="", disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True,
            init_timeout=CONNECT_SECONDS, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True, **more,
        )  # fmt: skip
        return self._wandb.init(
            project=self.project,
            mode=self.mode,
            id=run_id,
            # A run that is started over replaces the one of its name: a resumed one would drop every step that it had.
            resume="allow" if self.mode == "online" and is_continued else None,
            group=config["task"]["name"],
            job_type=config["pe"]["name"],
            name=f"{config['pe']['name']} seed={config['seed']}",
            tags=[f"seed={config['seed']}", f"scale={config['scale']}"],
            config=config,
            dir=str(folder),
            settings=settings,
        )

    def metrics(self, values: dict[str, float], step: int) -> None:
        self._tell(lambda run: self._log_line(run, values, step))

    def _log_line(self, run: Any, values: dict[str, float], step: int) -> None:
        run.log(values | self._charts(values), step=step)

    def _charts(self, values: dict[str, float]) -> dict[str, float]:
        """Accuracy and perplexity of every split once more, under the task's name."""
        parts = {key: key.split("/") for key in values if key.startswith("eval/")}
        return {
            f"{self._task}/{split}_{metric}": values[key]
            for key, (_, split, metric) in parts.items() if metric in ("accuracy", "perplexity")
        }  # fmt: skip

    def images(self, paths: dict[str, Path]) -> None:
        self._tell(lambda run: run.log({key: self._wandb.Image(str(path)) for key, path in paths.items()}))

    def finish(self, summary: dict[str, Any] | None) -> None:
        self._tell(lambda run: self._finish(run, summary))  # there is none of a finished run, shown again
        self._run = None

    def _finish(self, run: Any, summary: dict[str, Any] | None) -> None:
        if summary is not None:
            run.summary.update(summary)
        upload = f"wandb sync {shlex.quote(run.settings.sync_dir)}"
        try:
            run.finish(exit_code=0 if summary is not None else 1)
        except TimeoutError:
            log.warning(
                "W&B: not everything reached %s in %.0f s; upload the rest later with: %s", self.host, FINISH_SECONDS, upload
            )
            return
        if self.mode == "offline" and summary is not None and _job_of_sweep() is None:
            log.info("W&B: offline; upload later with: %s", upload)


def waits_for_upload(folder: Path) -> bool:
    """Whether the run in ``folder`` has a record for W&B that its server has not had."""
    return any(not any(record.glob("*.synced")) for record in folder.glob("wandb/offline-run-*"))


def _job_of_sweep() -> int | None:
    """Which of a sweep's jobs this process runs; None if it runs one by itself."""
    if not HydraConfig.initialized():
        return None
    number: int | None = OmegaConf.select(HydraConfig.get(), "job.num")  # type: ignore[arg-type]  # a DictConfig in truth
    return number


def _complaint(error: Exception) -> str:
    """What W&B has against its own settings, by the variables they can be set with."""
    problems = getattr(error, "errors", None)  # of pydantic
    if problems is None:
        return str(error).rstrip(".")
    return "; ".join(
        f"WANDB_{'_'.join(map(str, found['loc'])).upper()}={found['input']}: {found['msg']}" for found in problems()
    )
