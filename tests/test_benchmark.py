"""The benchmarks measure what they say: the authors' code is the authors' code, and every part of a step is counted once."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from conftest import ROOT

from cope import cope_attention
from cope.errors import UserError

sys.path.insert(0, str(ROOT / "benchmarks"))  # where they are run from
import attention
import candidates
import generation
import profile_step
import profiling
import training

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
        candidates.candidates("cpu", str(path))


def test_a_layer_that_computes_something_else_is_not_timed(tmp_path):
    path = tmp_path / "context_position.py"
    path.write_text(OTHER_LAYER)
    with pytest.raises(UserError, match=rf"released={path} computes something else"):
        candidates.candidates("cpu", str(path))


def test_the_authors_layer_takes_our_tensors(tmp_path):
    path = tmp_path / "context_position.py"
    path.write_text(OTHER_LAYER)
    attend = candidates.released_code(str(path))
    tensors = candidates.draw(2, 16, 8, 0.5, "cpu")
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

    candidates.check_released(ours, "PATH", "cpu")
    assert "PATH gives the outputs of backend=reference, scale=released" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        (training, ["device=cpu"], "device is not a setting; allowed: repeats, threads"),
        (training, ["repeats=3", "repeats=5"], "repeats=5 is one repeats too many"),
        (attention, ["threads=1,two"], "threads='two' has the wrong type; allowed: int"),
        (profile_step, ["recipes=task=counting,task=chess"], "recipes=task=chess cannot be composed; allowed: overrides of"),
        (attention, ["device=gpu"], "device=gpu is not known; allowed: cpu"),
        (attention, ["candidates=sdpa,natve"], "candidates=natve is not known; allowed: .*Did you mean 'native'"),
        (training, ["repeats=0"], "repeats=0 is too small; allowed: 1 or more"),
    ],
)
def test_bad_input_is_refused(command, arguments, told):
    with pytest.raises(UserError, match=told):
        command.main(arguments)


@pytest.fixture
def recipe(compose):
    return profiling.Recipe(compose("task=counting", "pe=cope", "model.dropout=0.1"))


def test_shares_of_a_step_add_up(recipe):
    row = profiling.measure(recipe, repeats=2)
    assert list(row["shares"]) == profiling.SHARES
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert all(share > 0 for share in row["shares"].values()), row  # a category that is empty here has lost its operators
    assert row["tokens_per_s"] * row["ms_per_step"] / 1000 == pytest.approx(recipe.num_tokens() / profiling.STEPS)


@pytest.mark.slow
def test_the_parts_are_all_of_the_step(recipe, monkeypatch):
    recipe.run()
    rounds, profile = [], torch.profiler.profile

    class Kept(profile):
        def __enter__(self):
            rounds.append(self)
            return super().__enter__()

    monkeypatch.setattr(profiling, "profile", Kept)
    found = profiling.own_times(recipe)
    whole = next(event for event in rounds[0].events() if event.name == profiling.WHOLE_STEP)
    assert sum(microseconds for _, microseconds in found) == pytest.approx(whole.cpu_time_total, rel=1e-3)


@pytest.mark.slow
def test_every_operator_is_counted_once(recipe):
    recipe.run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        recipe.run()
    # What the optimiser calls belongs to it unless it has a category of its own.
    found = {event.name: profiling.category(event) for event in profiler.events()}
    for name, expected in {
        "aten::addcdiv_": "optimiser",
        "Optimizer.step#AdamW.step": "optimiser",
        "aten::mm": "matmul",
        "cope::native_backward": "attention",
        "aten::_log_softmax_backward_data": "softmax, loss",
        "aten::nll_loss_forward": "softmax, loss",
        "aten::bernoulli_": "dropout's random",
        "aten::native_layer_norm_backward": "norm, activation",
        "aten::embedding_dense_backward": "other operators",
    }.items():
        assert found[name] == expected, name


def test_a_round_repeats_the_first_batches_and_counts_their_work(recipe):
    steps, train_on = [], recipe.loop.train_on

    def recorded(batch):
        steps.append(recipe.loop.step)
        train_on(batch)

    recipe.loop.train_on = recorded
    recipe.run()
    recipe.run()
    assert steps == [*range(profiling.STEPS)] * 2
    assert recipe.num_tokens() * 2 == recipe.loop.num_tokens
    weights = sum(parameter.numel() for parameter in recipe.loop.core.parameters())
    assert recipe.matmul_operations() > 6 * weights * recipe.num_tokens()


def test_embeddings_that_are_only_looked_up_are_no_multiplications(compose):
    tied, untied = (
        profiling.Recipe(compose("task=counting", "pe=cope", f"model.tied_embeddings={tied}")) for tied in (True, False)
    )
    assert tied.matmul_operations() == untied.matmul_operations()


@pytest.mark.slow  # imports PyTorch in two processes
def test_what_keeping_memory_gives_is_measured_in_processes_of_their_own(tmp_path):
    recipe = f"scale=smoke task=counting pe=rope data_dir={tmp_path}"
    found = profiling.keeping_memory(recipe, repeats=1)
    assert found["ratio"] == found["ms_per_step"]["with"] / found["ms_per_step"]["without"] > 0


@pytest.mark.slow
def test_generation_is_timed_with_and_without_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generation.main(["context=5", "lengths=4"])
    rows = json.loads((tmp_path / "outputs/benchmark/generation.json").read_text())["rows"]
    assert [row["encoding"] for row in rows] == list(generation.ENCODINGS)
    assert all(row["ratio"] > 0 for row in rows)


def test_the_same_tokens_with_and_without_the_cache():
    torch.manual_seed(0)
    model = generation.Transformer(generation.VOCABULARY, generation.ENCODINGS["cope"]()).eval()
    assert generation.with_cache(model, 12) == generation.without_cache(model, 12)
