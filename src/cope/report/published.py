"""The runs behind a report, beside it: what judges, tables and figures read, in little room.

    runs/<task>/<pe>/<hash>/seed=<n>/result.json
    runs/<task>/<pe>/<hash>/seed=<n>/figures/position_alone/<hash>/scores.json    where heads were measured
    runs/curves.jsonl.xz                                                          every run's metrics.jsonl

and of the runs whose gates or heads the report draws what is drawn: ``gates.npz``, ``arrays.npz``.
``scripts/published_runs.py`` makes finished runs of them again, without weights: verdicts, tables and pictures are the same.
"""

from __future__ import annotations

import json
import lzma
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cope.errors import UserError, counted, reason_of
from cope.files import write_text
from cope.report.findings import Findings
from cope.report.run_pictures import drawn_measurements, runs_with_gates
from cope.run.folder import RunFolder
from cope.tasks.scores import LARGEST_EXPONENT

CURVES = "curves.jsonl.xz"
MEASURED = "figures/position_alone/*/scores.json"
ARRAYS = "arrays.npz"  # beside it
LEFT_OUT = ("train/lr", "train/tokens_per_s")  # of the curves: the one follows from the settings, the other is in result.json
LOSS_DIGITS, LOSS_POINTS = 4, 60  # of a run's training loss: what a picture can show


def check_nothing_is_lost(findings: Findings, folder: Path, with_runs: bool) -> None:
    """Raise UserError if ``folder`` holds a run, or what was measured of one, that would not be there again."""
    there = {path.relative_to(folder) for ending in ("json", "npz") for path in folder.rglob(f"*.{ending}")}
    if there and not with_runs:
        files = counted(len(there), "file")
        raise UserError(f"{folder} holds {files} that would be lost; allowed: with_runs=true, or another folder.")
    if any(run.folder.path.resolve().is_relative_to(folder.resolve()) for run, _ in findings.runs()):
        raise UserError(f"the runs are those of {folder} itself, which is to be replaced; allowed: another folder.")
    if lost := sorted(there - _files(findings).keys()):
        raise UserError(
            f"{folder} holds {counted(len(lost), 'file')} that this report has not, such as {lost[0]}, and that would be lost. "
            "If these runs are not finished here: make published-runs. What heads attend to: make figure4. If nothing asks "
            "for them: delete them there first."
        )


def copy_runs(findings: Findings, folder: Path) -> None:
    """Write every finished run to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, path in _files(findings).items():
        if path.suffix == ".json":
            write_text(folder / place, json.dumps(json.loads(path.read_text()), separators=(",", ":")) + "\n")
        else:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / place)
    runs = {run.folder.place: run.folder for run, _ in findings.runs()}
    with lzma.open(folder / CURVES, "wb") as file:
        for place, run_folder in sorted(runs.items()):
            for line in _thinned([_shortened(line) for line in run_folder.read_metrics()]):
                file.write((json.dumps({"run": place.as_posix()} | line) + "\n").encode())


def make_runs(published: Path, outputs: Path) -> tuple[int, list[Path]]:
    """Make finished runs in ``outputs`` of those that are published in ``published``.

    Returns:
        how many were made, and the folders that were left alone because something is there.

    Raises:
        UserError: nothing is published there, or its curves are damaged.
    """
    curves: dict[str, list[str]] = {}
    if not (published / CURVES).exists():
        raise UserError(f"{published} holds no {CURVES}; allowed: the folder of a report that was written with_runs=true.")
    try:
        with lzma.open(published / CURVES, "rt") as file:
            for text in file:
                line = json.loads(text)
                curves.setdefault(line.pop("run"), []).append(json.dumps(_whole(line)) + "\n")
    except (EOFError, lzma.LZMAError, ValueError, KeyError) as error:
        raise UserError(f"{published / CURVES} cannot be read ({reason_of(error)}): it is damaged or was cut off.") from error
    made, left_alone = 0, []
    for result in sorted(published.rglob("result.json")):
        place = result.parent.relative_to(published)
        to = RunFolder(outputs / place)
        if to.config.exists() or to.result.exists():
            left_alone.append(to.path)
            continue
        for path in result.parent.glob("figures/**/*.*"):
            copy = to.path / path.relative_to(result.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        write_text(to.metrics, "".join(curves.get(place.as_posix(), [])))
        write_text(to.result, json.dumps(json.loads(result.read_text()), indent=2) + "\n")  # last: it means "finished"
        made += 1
    return made, left_alone


def _shortened(line: dict[str, Any]) -> dict[str, Any]:
    """A line of ``metrics.jsonl`` with what verdicts are made of as it is, and the training loss as a picture needs it."""
    kept = {key: value for key, value in line.items() if key not in LEFT_OUT and not _follows_from_loss(key, line)}
    return kept | ({"train/loss": float(f"{line['train/loss']:.{LOSS_DIGITS}g}")} if "train/loss" in line else {})


def _thinned(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """``lines`` with so many of the training loss as a picture can show; all of them, where they were thinned before."""
    apart = max((line["step"] for line in lines), default=0) / LOSS_POINTS
    last = -math.inf
    for line in lines:
        if line.keys() == {"step", "train/loss"}:
            if line["step"] - last < apart:
                continue
            last = line["step"]
        yield line


def _follows_from_loss(key: str, line: dict[str, Any]) -> bool:
    """Whether a number is the exponential of the loss beside it, to the bit: a quarter of all that would be published."""
    split, _, metric = key.rpartition("/")
    return metric == "perplexity" and f"{split}/loss" in line and line[key] == _perplexity(line[f"{split}/loss"])


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, LARGEST_EXPONENT))


def _whole(line: dict[str, Any]) -> dict[str, Any]:
    """A line as it was before ``_shortened``, but for what nobody reads."""
    found: dict[str, Any] = {}
    for key, value in line.items():
        split, _, metric = key.rpartition("/")
        if metric == "loss" and split.startswith("eval/"):
            found.setdefault(f"{split}/perplexity", _perplexity(value))
        found[key] = value
    return found


def _files(findings: Findings) -> dict[Path, Path]:
    """What is published, by where to: results and measurements, then the arrays behind pictures."""
    found: dict[Path, Path] = {}
    for run, _ in findings.runs():
        for path in [run.folder.result, *run.folder.path.glob(MEASURED)]:
            found[run.folder.place / path.relative_to(run.folder.path)] = path
    drawn = [(run, run.folder.gates) for run in runs_with_gates(findings)]
    drawn += [(run, scores.with_name(ARRAYS)) for run, scores in drawn_measurements(findings).values()]
    found |= {run.folder.place / path.relative_to(run.folder.path): path for run, path in drawn if path.exists()}
    return found
