"""A run's folder: what it was asked to do, what it measured as it went, and its result.

config.yaml       the composed settings
metrics.jsonl     one JSON object a line with ``step`` and what was measured there; the truth that services mirror
result.json       written last, atomically: it means "finished"
checkpoints/      last.pt and best.pt
figures/          pictures, and the arrays they are drawn from
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from cope.errors import AlreadyRunning, UserError
from cope.files import lock, write_text


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.last_checkpoint = path / "checkpoints" / "last.pt"
        self.best_checkpoint = path / "checkpoints" / "best.pt"
        self.figures = path / "figures"
        self._lock: FileLock | None = None

    @classmethod
    def of(cls, output_dir: str, task: str, encoding: str, run_hash: str, seed: int) -> RunFolder:
        """The folder of the run that these define."""
        return cls(Path(output_dir) / task / encoding / run_hash / f"seed={seed}")

    def lock(self) -> None:
        """Keep the folder to this process until it ends.

        Raises:
            AlreadyRunning: another process has it.
            UserError: it cannot be made.
        """
        try:
            self._lock = lock(self.path / ".lock")
        except AlreadyRunning as error:
            raise AlreadyRunning(f"{error} The same command is already running.") from error
        except OSError as error:
            raise UserError(
                f"output_dir: {self.path} cannot be written: {error.strerror}. Choose another with output_dir=..."
            ) from error

    def release(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.release()

    def start_over(self) -> None:
        """Delete what an earlier run left."""
        for path in (self.config, self.metrics, self.result):
            path.unlink(missing_ok=True)
        for folder in (self.last_checkpoint.parent, self.figures, self.path / "evaluations"):
            shutil.rmtree(folder, ignore_errors=True)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write ``config.yaml``."""
        write_text(self.config, yaml.safe_dump(config, sort_keys=False))

    def read_config(self) -> dict[str, Any] | None:
        """What ``config.yaml`` holds, None if there is none."""
        if not self.config.exists():
            return None
        try:
            content = yaml.safe_load(self.config.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{self.config} cannot be read: {error}. To start the run over, add force=true.") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.config} is not a run's configuration. To start the run over, add force=true.")
        return content

    def read_result(self) -> dict[str, Any] | None:
        """What ``result.json`` holds, None if the run is not finished."""
        if not self.result.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(self.result.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.result} cannot be read: {error}. To start the run over, add force=true.") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.result} is not a run's result. To start the run over, add force=true.")
        return content

    def truncate_metrics(self, step: int) -> None:
        """Drop the lines after ``step``: a continued run writes them again."""
        kept = [line for line in self._metric_lines() if line["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.metrics} cannot be written: {error.strerror}. Free some space and run the same command again."
            ) from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every line of ``metrics.jsonl``."""
        return self._metric_lines()

    def _metric_lines(self) -> list[dict[str, Any]]:
        if not self.metrics.exists():
            return []
        lines = []
        texts = self.metrics.read_text(errors="replace").splitlines()
        for number, text in enumerate(texts, 1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if isinstance(line, dict) and "step" in line:
                lines.append(line)
            elif number < len(texts):  # the last may be of a run that was killed while writing it
                raise UserError(f"{self.metrics}, line {number}, is damaged. To start the run over, add force=true.")
        return lines
