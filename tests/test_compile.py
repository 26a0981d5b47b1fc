"""``trainer.compile=true``: every encoding goes through ``torch.compile`` as a whole, and computes the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import ENCODINGS
from torch import Tensor, nn

from cope.model.transformer import Transformer

TIME = 136  # more than one block of queries


def loss_and_gradients(model: nn.Module, parameters: list[nn.Parameter], tokens: Tensor) -> list[Tensor]:
    where = torch.arange(0, tokens.numel(), 3)
    loss = F.cross_entropy(model(tokens, where), tokens.flatten()[where], reduction="sum")
    return [loss, *torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)]


# Seconds each: by default CoPE, and one that changes keys and queries. All others are `slow`, and .ci/run runs those too.
FIRST = {"cope", "rope"}


@pytest.mark.parametrize(
    "encoding", [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in ENCODINGS]
)
# With dropout attention's output has one more operation in every encoding alike: that only repeats.
@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.1, marks=pytest.mark.slow)])
def test_every_encoding_compiles_as_a_whole(make_model: Callable[..., Transformer], encoding: str, dropout: float) -> None:
    # Values of every table and MLP, which by default start from 0.
    settings = (f"model.dropout={dropout}", "task.context=256", "recipe.init_std=1")
    # A second layer would be traced as the first one is, unless it is given something by it.
    model = make_model(f"pe={encoding}", "model.num_layers=1", *settings).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tokens = torch.randint(10, (2, TIME))
    torch.compiler.reset()
    # aot_eager traces forward and backward pass as for a GPU, and leaves out what takes a C++ compiler half a minute.
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    found = loss_and_gradients(compiled, parameters, tokens)
    assert all(tensor.isfinite().all() for tensor in found)
    if dropout == 0:  # else compiled and plain operations draw other masks
        expected = loss_and_gradients(model, parameters, tokens)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
