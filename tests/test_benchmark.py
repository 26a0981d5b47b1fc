"""The benchmarks measure what they say: the authors' code is the authors' code."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import ROOT

from cope import cope_attention
from cope.errors import UserError

sys.path.insert(0, str(ROOT / "scripts"))  # where the benchmarks are run from
import benchmark
import benchmark_candidates

# A stand-in with the authors' interface, and one of its steps wrong: positions are not counted but are all 1.
OTHER_LAYER = """
import torch

class ContextPosSelfAttn(torch.nn.Module):
    def __init__(self, cfg, lay_ind):
        super().__init__()
        self.pos_emb = torch.nn.Parameter(torch.zeros(1, cfg.head_dim, cfg.cope_npos))

    def forward(self, query, key, key_cope, val, attn_mask):
        logits = (query @ key.mT + query @ self.pos_emb[:, :, 1:2]) / query.shape[-1] ** 0.5
        return (logits + attn_mask.log()).softmax(-1) @ val
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [("class CoPE: ...", "does not define it"), ("import no_such_module", "cannot be run"), (None, "cannot be run")],
)
def test_a_file_without_the_authors_layer_is_refused(text, told, tmp_path):
    path = tmp_path / "context_position.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=rf"released={path} {told}.*allowed: .*ContextPosSelfAttn"):
        benchmark_candidates.candidates("cpu", str(path))


def test_a_layer_that_computes_something_else_is_not_timed(tmp_path):
    path = tmp_path / "context_position.py"
    path.write_text(OTHER_LAYER)
    with pytest.raises(UserError, match=rf"released={path} computes something else"):
        benchmark_candidates.candidates("cpu", str(path))


def test_the_authors_layer_takes_our_tensors(tmp_path):
    path = tmp_path / "context_position.py"
    path.write_text(OTHER_LAYER)
    attend = benchmark_candidates.released_code(str(path))
    tensors = benchmark_candidates.draw(2, 16, 8, 0.5, "cpu")
    output = attend(*tensors)
    assert output.shape == tensors[0].shape
    gradients = torch.autograd.grad(output.square().sum(), tensors)
    # The same position for every key moves nothing: softmax does not see it.
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors[:3], is_causal=True)
    torch.testing.assert_close(output, expected)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_equal_outputs_are_told(capsys):
    def ours(*tensors):
        return cope_attention(*tensors, scale="released", backend="blockwise")

    benchmark_candidates.check_released(ours, "PATH", "cpu")
    assert "PATH gives the outputs of backend=reference, scale=released" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["atention"], "benchmark=atention is not known; allowed: attention, training.*Did you mean 'attention'"),
        (["training", "device=cpu"], "setting=device is not known; allowed: repeats, threads"),
        (["attention", "threads=1,two"], "threads=1,two has the wrong form; allowed: whole numbers"),
        (["training", "repeats=0"], "repeats=0 has the wrong form; allowed: a whole number from 1"),
    ],
)
def test_bad_input_is_refused(arguments, told):
    with pytest.raises(UserError, match=told):
        benchmark.main(*arguments)
