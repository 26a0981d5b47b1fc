"""What CoPE counts in one test example: kept beside a run's pictures, which are drawn from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cope.files import write_atomically
from cope.model.inspection import gates_and_positions
from cope.model.transformer import Transformer
from cope.tasks.base import Task

LONGEST_EXAMPLE = 48  # tokens that can be read along an axis


def save_gates(model: Transformer, task: Task, path: Path) -> None:
    """Write each head's gates and positions of the query that answers (those of all are large); nothing without gates."""
    most = model.encoding.max_tokens  # as of a text read in shorter contexts than an example is long
    specimen = task.specimen(LONGEST_EXAMPLE if most is None else min(LONGEST_EXAMPLE, most + 1))
    inputs = torch.from_numpy(specimen.tokens[:-1]).to(next(model.parameters()).device)
    arrays = gates_and_positions(model, inputs)
    if arrays is None:
        return
    content = {name: values[:, :, specimen.query, : specimen.query + 1] for name, values in arrays.items()}
    answer = int(model(inputs[None])[0, specimen.query].argmax())
    content |= {"words": np.array(specimen.words), "query": np.array(specimen.query)}
    is_right = answer == int(specimen.tokens[specimen.query + 1])
    content |= {"answer": np.array(task.decode([answer])), "is_right": np.array(is_right)}
    write_atomically(path, lambda file: np.savez_compressed(file, **content))  # type: ignore[arg-type]  # none is named allow_pickle
