"""Checkpoints: written atomically, read with ``weights_only=True``, refused if damaged or made by other code."""

from __future__ import annotations

import io
import pickle
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from cope.errors import UserError, reason_of
from cope.files import write_atomically
from cope.model.transformer import Transformer
from cope.run.distributed import shared_out
from cope.run.folder import RunFolder, cannot_be_used
from cope.run.provenance import code_fingerprint
from cope.tasks.base import Task


def save_checkpoint(path: Path, state: dict[str, Any], copy_to: Path | None = None) -> None:
    """Write ``state`` (tensors and plain values) to ``path``; a reader sees the old file or the new one, never a part.

    Args:
        copy_to: where to write the same once more, after that: to make the bytes takes as long as to write them.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    content = io.BytesIO()
    torch.save(state, content)
    for place in (path,) if copy_to is None else (path, copy_to):
        write_atomically(place, lambda file: file.write(content.getbuffer()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, on the CPU.

    Raises:
        UserError: the file is missing, truncated or no checkpoint of this project.
    """
    if not path.exists():
        raise UserError(
            f"{path} does not exist, though this run wrote it: it was moved or deleted. Put it back, or start the run over "
            "with force=true."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise cannot_be_used(f"{path} cannot be read ({reason_of(error)}). It is damaged or was cut off") from error
    if not isinstance(state, dict) or not {"model", "step", "code", "data"} <= state.keys():
        raise cannot_be_used(f"{path} is not a checkpoint of this project")
    if type(state["step"]) is not int or state["step"] < 0:
        raise cannot_be_used(f"{path} is damaged: its step is {state['step']!r}")
    return state


def load_weights(model: Transformer, state: dict[str, Any], path: Path) -> None:
    """Give ``model`` the weights of ``state``, a checkpoint at ``path``.

    Raises:
        UserError: they are of another model, or not all of them are numbers.
    """
    try:
        model.load_state_dict(shared_out(state["model"], model.state_dict()))
    except (RuntimeError, TypeError, AttributeError) as error:  # it lists every tensor that differs; the first says enough
        reason = " ".join(str(error).split("\n")[1:2]).strip() or str(error)
        described = path.parent.parent / "config.yaml"
        raise cannot_be_used(f"{path} is not of the model that {described} describes: {reason}") from error
    for name, values in model.named_parameters():
        if not torch.isfinite(values.to_local() if isinstance(values, DTensor) else values).all():
            raise cannot_be_used(f"{path} is damaged: {name} holds NaN or infinite weights")


def check_data(state: dict[str, Any], task: Task, path: Path) -> None:
    """Raise UserError unless the run of ``state``, a checkpoint or result at ``path``, had the data that ``task`` has now."""
    if not task.has_data(state.get("data", "")):
        raise UserError(
            f"{path} is of a model that was trained on other data than task={task.name} has now: its corpus, its tokenizer or "
            "its generator changed. Put the old one back, or train on the new one with force=true."
        )


def load_last(folder: RunFolder, task: Task, num_steps: int, parts: Set[str]) -> dict[str, Any] | None:
    """The state that the run in ``folder`` of ``num_steps`` goes on from, made of ``parts``; None if it is to begin.

    Raises:
        UserError: the checkpoint is damaged, cannot be of this run, or was made by other code or with other data.
    """
    path = folder.last_checkpoint
    validated = [line["step"] for line in folder.read_metrics() if "eval/validation/loss" in line]
    if not path.exists() and len(validated) <= 1:  # a first validation is saved after it is told
        return None
    state = load_checkpoint(path)
    if state["code"] != code_fingerprint():
        raise UserError(
            f"{path} was written by other code than this, so continuing would mix the two. Check out the code that began the "
            "run, or start it over with force=true."
        )
    check_data(state, task, path)
    if missing := parts - state.keys():
        raise cannot_be_used(f"{path} is damaged: it has no {', '.join(sorted(missing))}")
    if state["step"] > num_steps:
        raise cannot_be_used(f"{path} is damaged: it is of step {state['step']} of {num_steps}")
    if state["best"] is not None and state["best"]["step"] not in validated:
        raise cannot_be_used(
            f"{folder.metrics} has no validation at step {state['best']['step']}, of which {path} tells: lines are missing. "
            "Put them back"
        )
    if state["best"] is not None and not folder.best_checkpoint.exists():
        raise cannot_be_used(f"{folder.best_checkpoint} does not exist, though {path} tells of it. Put it back")
    return state
