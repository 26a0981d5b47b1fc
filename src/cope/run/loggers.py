"""Mirrors of ``metrics.jsonl``: Weights & Biases, or none.

Nothing of the environment is logged: no variables, keys, host names, code or terminal output.
"""

from __future__ import annotations

import logging
import netrc
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cope.errors import UserError, check_choice

log = logging.getLogger(__name__)


class Logger(ABC):
    """What the training loop tells of a run, beside what it writes to the run's folder."""

    @abstractmethod
    def start(self, folder: Path, config: dict[str, Any], run_id: str) -> None:
        """Begin a run."""

    @abstractmethod
    def metrics(self, values: dict[str, float], step: int) -> None:
        """Mirror one line of ``metrics.jsonl``."""

    @abstractmethod
    def images(self, paths: dict[str, Path]) -> None:
        """Mirror pictures, by key."""

    @abstractmethod
    def finish(self, summary: dict[str, Any]) -> None:
        """End the run with its final numbers."""


class NoLogger(Logger):
    """``logger=none``: the run folder is all there is."""

    def start(self, folder: Path, config: dict[str, Any], run_id: str) -> None: ...

    def metrics(self, values: dict[str, float], step: int) -> None: ...

    def images(self, paths: dict[str, Path]) -> None: ...

    def finish(self, summary: dict[str, Any]) -> None: ...


def _is_logged_in() -> bool:
    """Whether ``wandb login`` left a key, or the environment has one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):  # no such file, or not one we can read
        return False


class WandbLogger(Logger):
    """``logger=wandb``: runs grouped by task and named by encoding, so that encodings lie over each other in one chart.

    Args:
        project: W&B's project.
        mode: ``auto`` (online if the user is logged in, else offline: files in the run folder that ``wandb sync`` uploads),
            ``online`` or ``offline``. The environment variable WANDB_MODE, where set, decides for ``auto``.
    """

    def __init__(self, project: str = "cope-lab", mode: str = "auto") -> None:
        check_choice("logger.mode", mode, ["auto", "online", "offline"])
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "logger=wandb needs the package wandb, which is not installed. Install it (pip install wandb), or log to the "
                "run folder alone with logger=none."
            ) from error
        self._wandb = wandb
        self.project = project
        self.mode = mode
        self._run: Any = None

    def _resolved_mode(self) -> Any:
        if self.mode != "auto":
            return self.mode
        if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
            return os.environ["WANDB_MODE"]
        return "online" if _is_logged_in() else "offline"

    def start(self, folder: Path, config: dict[str, Any], run_id: str) -> None:
        mode = self._resolved_mode()
        # An empty host, because W&B puts the machine's own name where there is none.
        settings = self._wandb.Settings(
            silent=True, console="off", host="", disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True
        )
        try:
            self._run = self._wandb.init(
                project=self.project,
                mode=mode,
                id=run_id,
                resume="allow" if mode == "online" else None,
                group=config["task"]["name"],
                name=config["pe"]["name"],
                tags=[f"seed={config['seed']}", f"scale={config['scale']}"],
                config=config,
                dir=str(folder),
                settings=settings,
            )
        except self._wandb.errors.Error as error:
            raise UserError(
                f"logger=wandb cannot start in mode {mode}: {error}. Use logger.mode=offline or logger=none."
            ) from error
        log.info("W&B: %s%s", mode, "" if mode == "online" else f"; upload later with: wandb sync {Path(self._run.dir).parent}")

    def metrics(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def images(self, paths: dict[str, Path]) -> None:
        if self._run is None:
            return  # a finished run, shown again
        self._run.log({key: self._wandb.Image(str(path)) for key, path in paths.items()})

    def finish(self, summary: dict[str, Any]) -> None:
        if self._run is None:
            return
        self._run.summary.update(summary)
        self._run.finish()
