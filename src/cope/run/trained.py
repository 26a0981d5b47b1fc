"""A run's settings, task and trained model, from its folder alone: where everything done with a trained model begins."""

from __future__ import annotations

from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf, open_dict

from cope.building import build
from cope.errors import UserError, nearest
from cope.model.transformer import Transformer
from cope.run.checkpoint import check_data, load_checkpoint, load_weights
from cope.run.folder import RunFolder
from cope.run.model_building import build_model
from cope.tasks.base import Task


class Trained(NamedTuple):
    """What a run left."""

    config: DictConfig  # as it was composed for the run
    task: Task
    model: Transformer  # with the weights of the best checkpoint, on the CPU
    step: int  # of that checkpoint


def load_trained(folder: RunFolder) -> Trained:
    """The task and the best model of a run, finished or not.

    Raises:
        UserError: no such run, one that has no checkpoint yet, or a checkpoint that is damaged or of another model.
    """
    found = folder.read_config()
    if not folder.best_checkpoint.exists() and folder.result.exists():
        raise UserError(
            f"run={folder.path} is finished but has no weights, as published runs; train it again: its command, which the "
            "report lists, with force=true added."
        )
    if found is None:
        raise UserError(f"run={folder.path} is not a run's folder: {_missing(folder)}")
    if not folder.best_checkpoint.exists() and not folder.last_checkpoint.exists():
        raise UserError(
            f"run={folder.path} has no checkpoint yet ({folder.best_checkpoint} is written at the first validation). Let its "
            "command go on until then; allowed: a run that was validated at least once."
        )
    config = as_now(OmegaConf.create(found))
    task: Task = build(config.task, "task")
    # The model keeps the shape it was trained with: a table of positions does not grow.
    model = build_model(config, task)
    state = load_checkpoint(folder.best_checkpoint)
    check_data(state, task, folder.best_checkpoint)
    load_weights(model, state, folder.best_checkpoint)
    return Trained(config, task, model, state["step"])


def as_now(config: DictConfig) -> DictConfig:
    """A run's settings without what earlier versions had in every task and now only those have that read text."""
    if "corpus" not in config.task:
        with open_dict(config.task):
            config.task.pop("data_dir", None)
    return config


def _missing(folder: RunFolder) -> str:
    """What is not there, and the nearest folder that is."""
    path = folder.path
    if path.exists():
        return "it has no config.yaml."
    while not path.parent.is_dir():
        path = path.parent
    siblings = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir())
    return f"there is no config.yaml, since {path} does not exist.{nearest(path.name, siblings)}"
