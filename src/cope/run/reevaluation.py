"""Scores a finished or unfinished run's best checkpoint under changed settings of its task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from tqdm import tqdm

from cope.building import build
from cope.errors import UserError
from cope.files import digest_of, write_json
from cope.run.configuration import resolved
from cope.run.device import launched
from cope.run.evaluation import score_split
from cope.run.folder import RunFolder
from cope.run.provenance import commit
from cope.run.sizes import check_data_fits
from cope.run.trained import as_now, load_trained
from cope.tasks.base import Task


def reevaluate(folder: RunFolder, overrides: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """Score the run in ``folder`` with overrides of its task, which Hydra applies to the run's own ``config.yaml``.

    Splits with sequences longer than the encoding is defined for are left out, and named under ``left_out``.

    Returns:
        ``{"headline": ..., "splits": {split: scores}, "left_out": {split: tokens}, ...}`` and the file it was written to.

    Raises:
        UserError: no such run, a key that cannot be changed, or ``test`` itself has sequences longer than the encoding is
            defined for.
        HydraException: overrides that Hydra refuses.
    """
    config, trained, model, _ = load_trained(folder)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not override.key_or_group.startswith("task.") or override.key_or_group == "task.name":
            raise UserError(f"{override.key_or_group} cannot be changed after training; allowed: run and task.<key>.")
    with initialize_config_dir(str(folder.path.resolve()), version_base="1.3"):
        asked = as_now(compose(folder.config.stem, overrides=list(overrides)))
    task: Task = build(asked.task, "task")
    if task.vocabulary != trained.vocabulary:
        raise UserError("these settings change the task's vocabulary, which the run's model does not know.")
    check_data_fits(task, ["num_test"])
    model.encoding.check_length(task.context_of("test"))
    limit = model.encoding.max_tokens
    too_long = {} if limit is None else {s: n for s in task.test_splits if (n := task.context_of(s)) > limit}
    fabric = launched("auto", config.trainer.precision)
    wrapped = fabric.setup_module(model)
    scored = [split for split in task.test_splits if split not in too_long]
    with tqdm(scored, bar_format="scoring {desc} |{bar}| {n_fmt}/{total_fmt} splits", disable=None, leave=False) as bar:
        splits = {}
        for split in scored:
            bar.set_description_str(split)
            splits[split] = score_split(wrapped, task, split, fabric)
            bar.update()
    scores = {
        "headline": task.headline,
        "splits": splits,
        "left_out": too_long,
        "num_positions": limit,
        "task": resolved(asked)["task"],
        "commit": commit(),
    }
    path = folder.path / "evaluations" / f"{digest_of(scores['task'], 8)}.json"
    write_json(path, scores)
    return scores, path
