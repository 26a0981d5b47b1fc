"""Scores a finished or unfinished run's best checkpoint under changed settings of its task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cope.building import build
from cope.errors import UserError, nearest
from cope.files import write_json
from cope.run.configuration import resolved
from cope.run.evaluation import score_split
from cope.run.experiment import commit
from cope.run.folder import RunFolder
from cope.run.trained import load_trained
from cope.tasks.base import Task


def reevaluate(arguments: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """Score the run that ``run=<folder>`` names with the task overrides that follow.

    Splits with sequences longer than the encoding is defined for are left out, and named under ``left_out``.

    Returns:
        ``{"headline": ..., "splits": {split: scores}, "left_out": {split: tokens}, ...}`` and the file it was written to.

    Raises:
        UserError: no such run, an unknown key, or ``test`` itself has sequences longer than the encoding is defined for.
    """
    folder, changes = _parse(arguments)
    config, trained, model, _ = load_trained(folder)
    asked = config.copy()
    for change in changes:
        _apply(asked, change)
    task: Task = build(asked.task, "task")
    if task.vocabulary != trained.vocabulary:
        raise UserError("these settings change the task's vocabulary, which the run's model does not know.")
    model.encoding.check_length(task.longest_of("test"))
    limit = model.encoding.max_tokens
    too_long = {} if limit is None else {s: n for s in task.test_splits if (n := task.longest_of(s)) > limit}
    fabric = Fabric(accelerator="auto", devices=1)
    fabric.launch()
    wrapped = fabric.setup_module(model)
    splits = {split: score_split(wrapped, task, split, fabric) for split in task.test_splits if split not in too_long}
    scores = {
        "headline": task.headline,
        "splits": splits,
        "left_out": too_long,
        "num_positions": limit,
        "task": resolved(asked)["task"],
        "commit": commit(),
    }
    name = hashlib.sha256(json.dumps(scores["task"], sort_keys=True).encode()).hexdigest()[:8]
    path = folder.path / "evaluations" / f"{name}.json"
    write_json(path, scores)
    return scores, path


def _parse(arguments: Sequence[str]) -> tuple[RunFolder, list[Any]]:
    runs = [argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")]
    if len(runs) != 1:
        raise UserError("name one run: python evaluate.py run=<run folder> [task.key=value ...]")
    try:
        changes = OverridesParser.create().parse_overrides([a for a in arguments if not a.startswith("run=")])
    except HydraException as error:
        raise UserError(str(error)) from error
    for change in changes:
        if not change.key_or_group.startswith("task."):
            raise UserError(f"{change.key_or_group} cannot be changed after training; allowed: run and task.<key>.")
    return RunFolder(Path(runs[0])), changes


def _apply(config: DictConfig, change: Any) -> None:
    """Apply one parsed override as Hydra would: an unknown key needs a ``+``, and ``~`` removes one."""
    key = change.key_or_group
    parent, _, last = key.rpartition(".")
    siblings = OmegaConf.select(config, parent)
    if not isinstance(siblings, DictConfig) or (last not in siblings and not change.is_add() and not change.is_force_add()):
        allowed = ", ".join(map(str, siblings)) if isinstance(siblings, DictConfig) else f"nothing below {parent}"
        raise UserError(f"{key} is not a setting; allowed: {allowed}.{nearest(last, siblings or [])}")
    try:
        if change.is_delete():
            del siblings[last]
        else:
            OmegaConf.update(config, key, change.value(), merge=True, force_add=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{key}={change.value()} cannot be set: {str(error).splitlines()[0]}") from error
