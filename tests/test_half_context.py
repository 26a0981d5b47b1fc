"""scripts/half_context.py: the same tokens, with half the reach."""

from __future__ import annotations

import runpy

import numpy as np
import torch
from conftest import ROOT

from cope.tasks.windows import training_windows


def test_a_halved_batch_has_the_tokens_of_the_whole_one_in_twice_as_many_sequences() -> None:
    whole = training_windows(np.arange(100), context=8, offset=3, separator=0)
    halved = runpy.run_path(str(ROOT / "scripts" / "half_context.py"))["HalvedWindows"](whole)
    assert len(halved) == len(whole) and (halved.lengths == whole.lengths).all()  # so that batches are drawn alike
    indices = np.array([4, 0, 7])
    inputs, targets = halved.batch(indices)
    assert inputs.shape == targets.shape == (6, 4)
    assert torch.equal(inputs[:2], torch.tensor([[35, 36, 37, 38], [39, 40, 41, 42]]))
    assert torch.equal(targets, inputs + 1)
    assert all(
        torch.equal(one.flatten(), other.flatten()) for one, other in zip((inputs, targets), whole.batch(indices), strict=True)
    )
