"""A run's folder: what it was asked to do, what it measured as it went, and its result.

config.yaml       the composed settings
metrics.jsonl     one JSON object a line with ``step`` and what was measured there; the truth that services mirror
result.json       written last, atomically: it means "finished"
checkpoints/      last.pt and best.pt
figures/          pictures, and the arrays they are drawn from
output.log        what a job of a sweep printed; failed.txt: why its last try ended

All of it is in ``<output_dir>/<task>/<encoding>/<hash>/seed=<n>``.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from cope.errors import AlreadyRunning, UserError
from cope.files import append_json_line, lock, tell_left_out, user_path, write_text
from cope.metrics import METRICS

# What every result.json has; what was added to it later is not asked for.
PARTS_OF_A_RESULT: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("task", "encoding", "scale", "headline"), str),
    **dict.fromkeys(("seed", "best_step", "steps", "num_parameters", "num_tokens"), int),
    "time_s": (int, float),
    **dict.fromkeys(("splits", "hardware", "versions", "config"), dict),
    "commit": (str, type(None)),
    "date": str,
}


def cannot_be_used(problem: str) -> UserError:
    """What is wrong with a run's files, and the way out."""
    return UserError(f"{problem}. To start the run over, add force=true.")


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
        self.gates = self.figures / "gates.npz"
        self.log = path / "output.log"
        self.failure = path / "failed.txt"
        self._lock: FileLock | None = None

    @classmethod
    def of(cls, output_dir: str, task: str, encoding: str, run_hash: str, seed: int) -> RunFolder:
        """The folder of the run that these define."""
        return cls(user_path("output_dir", output_dir) / task / encoding / run_hash / f"seed={seed}")

    @classmethod
    def below(cls, folder: Path) -> Iterator[RunFolder]:
        """Every folder of a run at or below ``folder``, in the order of their names; there may be nothing in it."""
        paths = [folder] if folder.name.startswith("seed=") else sorted(folder.rglob("seed=*"))
        return map(cls, paths)

    @property
    def place(self) -> Path:
        """Of the folder, in that of all runs."""
        return Path(*self.path.absolute().parts[-4:])

    @property
    def outputs(self) -> Path:
        """The folder of all runs."""
        return self.path.parents[3]

    @property
    def task(self) -> str:
        """Its task's name, by the path: known before there is a result."""
        return self.place.parts[0]

    @property
    def encoding(self) -> str:
        """Its encoding's name, by the path."""
        return self.place.parts[1]

    @property
    def seed(self) -> int:
        """By the path."""
        return int(self.path.name.removeprefix("seed="))

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
            raise cannot_be_used(f"{self.config} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise cannot_be_used(f"{self.config} is not a run's configuration")
        if place := _interpolation(content):
            raise UserError(
                f"{self.config} is not as a run wrote it: {place} is to be looked up elsewhere, where a run writes what it "
                "found there. Put it right, or start the run over with force=true."
            )
        return content

    def read_result(self) -> dict[str, Any] | None:
        """What ``result.json`` holds, None if the run is not finished."""
        if not self.result.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(self.result.read_text())
        except (OSError, ValueError) as error:
            raise cannot_be_used(f"{self.result} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise cannot_be_used(f"{self.result} is not a run's result")
        if damage := _damage(content):
            raise cannot_be_used(f"{self.result} is damaged: {damage}")
        return content

    def sound_result(self) -> dict[str, Any] | None:
        """As :meth:`read_result`; but a damaged one is told, once, and left out, so that other runs can be seen."""
        try:
            return self.read_result()
        except UserError as error:
            tell_left_out(self.result, error)
            return None

    def truncate_metrics(self, step: int) -> None:
        """Drop the lines after ``step``: a continued run writes them again."""
        kept = [line for line in self.read_metrics() if line["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        append_json_line(self.metrics, line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every line of ``metrics.jsonl``."""
        if not self.metrics.exists():
            return []
        lines: list[dict[str, Any]] = []
        texts = self.metrics.read_text(errors="replace").splitlines()
        for number, text in enumerate(texts, 1):
            try:
                line = json.loads(text)
            except ValueError:
                if number == len(texts):  # of a run that was killed while writing it
                    break
                line = None
            if not _is_measurement(line, lines[-1]["step"] if lines else 0):
                raise cannot_be_used(f"{self.metrics}, line {number}, is damaged: {text[:80]!r}")
            lines.append(line)
        return lines


def _interpolation(value: Any, place: str = "") -> str:
    """Where in ``value`` a text is that OmegaConf would replace, by a variable of the environment perhaps; empty if nowhere."""
    if isinstance(value, str):
        return place if "${" in value else ""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, part in parts if (found := _interpolation(part, f"{place}.{key}".lstrip(".")))), "")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_measurement(line: object, step_before: int) -> bool:
    """Whether a line of ``metrics.jsonl`` is what the loop writes: finite numbers, at a step that is not before the last."""
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return False
    return bool(line["step"] >= step_before and all(map(_is_number, line.values())))


def _damage(result: dict[str, Any]) -> str:
    """What a result lacks; empty of a sound one."""
    for key, kind in PARTS_OF_A_RESULT.items():
        if not isinstance(result.get(key), kind) or isinstance(result[key], bool) or (key == "commit" and key not in result):
            return f"{key}={result.get(key)!r}"[:100]
    headline, splits = result["headline"], result["splits"]
    if headline not in METRICS:
        return f"headline={headline!r} is no metric; allowed: {', '.join(METRICS)}"
    if not splits:
        return "splits is empty"
    for split, found in splits.items():
        if not isinstance(found, dict):
            return f"splits.{split}={found!r}"[:100]
        needed = {headline, *(METRICS[headline].counts or ()), "count", "token_count", "num_cut"}
        for key in [*needed, *(name for name in found if name in METRICS)]:
            if not _is_number(found.get(key)) or found[key] < 0:
                return f"splits.{split}.{key}={found.get(key)!r}"[:100]
    if not _is_number(result["time_s"]) or result["time_s"] < 0 or not 0 <= result["best_step"] <= result["steps"]:
        return f"best_step={result['best_step']} of steps={result['steps']}, time_s={result['time_s']}"
    return ""
