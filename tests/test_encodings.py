"""The contract of a position encoding, held against every file in configs/pe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kernel_marks import ALL
from torch import Tensor

from cope.building import build
from cope.functional import SCALES
from cope.model.inspection import gates_and_positions, positions_by_layer
from cope.model.transformer import Transformer
from cope.positions.base import QUERIES_PER_BLOCK, Heads, PositionEncoding
from cope.positions.contextual import Gated
from cope.run.model_building import build_model

LONGEST = 47  # tokens read of the longest sequence of task=counting at scale=smoke


def some_tokens(model: Transformer, time: int = LONGEST, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.embedding.num_embeddings, (batch, time), generator=generator)


def some_heads(model: Transformer, num_queries: int, num_keys: int, layer: int) -> Heads:
    """Random queries, keys and values of a layer, in float64, and what the encoding projects from random inputs."""
    shape = model.encoding.shape
    generator = torch.Generator().manual_seed(layer)

    def normal(time: int) -> Tensor:
        return torch.randn(2, shape.num_heads, time, shape.head_dim, generator=generator, dtype=torch.float64)

    inputs = torch.randn(2, num_keys, shape.dim, generator=generator, dtype=torch.float64)
    q, k, v = normal(num_queries).requires_grad_(), normal(num_keys).requires_grad_(), normal(num_keys).requires_grad_()
    return Heads(q, k, v, model.encoding.project(inputs, layer), layer)


def test_model_is_causal(make_model, encoding_name):
    model = make_model(f"pe={encoding_name}")
    tokens = some_tokens(model)
    changed = tokens.clone()
    changed[:, 30:] = (tokens[:, 30:] + 1) % model.embedding.num_embeddings
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :30], before[:, :30], rtol=0, atol=1e-6)
    assert (after[:, 30:] - before[:, 30:]).abs().max() > 1e-2


def test_every_parameter_has_a_finite_gradient(make_model, encoding_name):
    model = make_model(f"pe={encoding_name}").train()
    tokens = some_tokens(model)
    F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_seed_alone_decides_the_initial_parameters(make_model, encoding_name):
    first, again, other = (make_model(f"pe={encoding_name}", seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    fixed = ("slopes", "temperature", "omega")  # ALiBi's, frequencies; beside zeros and ones
    random = [name for name in first if first[name].std() > 0 and not name.endswith(fixed)]
    assert random and not any(torch.equal(first[name], other[name]) for name in random)


def test_every_encoding_meets_the_same_transformer(make_model, encoding_name):
    model, plain = make_model(f"pe={encoding_name}"), make_model("pe=none").state_dict()
    own = {name: x for name, x in model.state_dict().items() if not name.startswith("encoding.")}
    assert own.keys() == plain.keys()
    assert all(torch.equal(own[name], plain[name]) for name in own)


# In double precision to rounding; in single precision with the kernels that decode in earnest, which know no other.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["double", "single"])
@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([1, 7, 1, 2, 20, 14, 1, 1], id="uneven"),  # one at a time too: first, after few, and to the end
        pytest.param([1] * LONGEST, id="one_at_a_time", marks=pytest.mark.slow),
    ],
)
def test_decoding_with_a_cache_equals_the_whole_sequence(make_model, encoding_name, chunks, dtype, tolerance):
    model = make_model(f"pe={encoding_name}").to(dtype)
    tokens = some_tokens(model, sum(chunks))
    caches, start, found = model.empty_caches(), 0, []
    with torch.no_grad():
        for size in chunks:
            found.append(model(tokens[:, start : start + size], start=start, caches=caches))
            start += size
        torch.testing.assert_close(torch.cat(found, dim=1), model(tokens), rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(9, 9), (5, 12), (QUERIES_PER_BLOCK + 9, QUERIES_PER_BLOCK + 30)])
def test_attend_is_what_its_logits_and_weights_say(make_model, encoding_name, num_queries, num_keys):
    # A test split of longer programs, so that encodings with a table have as many entries as there are keys.
    model = make_model(f"pe={encoding_name}", "task.splits.ood_more_operations.context=200").double()
    check_attend(model, num_queries, num_keys)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("encoding", ["cope", "cope_sep_keys", "cope_val_gates", "cope_relative", "cope_rope"])
def test_attend_with_a_bias_of_the_gates(make_model, encoding, scale):
    model = make_model(f"pe={encoding}", "pe.gate_bias=-1.5", f"pe.scale={scale}", "pe.num_positions=4").double()
    with torch.no_grad():  # heads that differ
        model.encoding.gate_biases += torch.randn(model.encoding.gate_biases.shape, generator=torch.Generator().manual_seed(0))
    check_attend(model, 9, 12)


@pytest.mark.parametrize("backend", ALL)
def test_a_bias_of_the_gates_with_every_backend(make_model, backend):
    model = make_model("pe=cope", "pe.gate_bias=-1.5", "pe.scale=paper", f"pe.backend={backend}")
    with torch.no_grad():
        model.encoding.gate_biases[:, 0] = 2.0
    heads = some_heads(model, 9, 9, 0)
    heads = Heads(*(None if x is None else x.float() for x in heads[:4]), 0)
    logits = heads.q @ heads.k.transpose(-1, -2) / heads.q.shape[-1] ** 0.5
    future = torch.ones(9, 9, dtype=torch.bool).triu(1)
    expected = (logits + model.encoding.bias(heads, logits)).masked_fill(future, -torch.inf).softmax(-1) @ heads.v
    torch.testing.assert_close(model.encoding.attend(heads, dropout=0.0), expected, rtol=1e-4, atol=1e-5)


def check_attend(model, num_queries, num_keys):
    """That ``attend`` is softmax attention with ``bias``, in values and gradients."""
    for layer in range(model.encoding.shape.num_layers):
        heads = some_heads(model, num_queries, num_keys, layer)
        visible = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
        expected = model.encoding.weights(model.encoding.logits(heads), visible) @ heads.v
        found = model.encoding.attend(heads, dropout=0.0)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
        wanted = [heads.q, heads.k, heads.v, *model.encoding.parameters()]
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=found.dtype)
        found_gradients, expected_gradients = (
            torch.autograd.grad((output * weights).sum(), wanted, retain_graph=True, materialize_grads=True)
            for output in (found, expected)
        )
        torch.testing.assert_close(found_gradients, expected_gradients, rtol=1e-8, atol=1e-9)


def test_gates_and_positions(make_model, encoding_name):
    model = make_model(f"pe={encoding_name}")
    tokens = some_tokens(model, 20, batch=1)[0]
    arrays = gates_and_positions(model, tokens)
    contextual = model.encoding
    if not isinstance(contextual, Gated):
        assert arrays is None
        return
    gates, positions = (torch.from_numpy(arrays[name]).double() for name in ("gates", "positions"))
    assert gates.shape == (2, 2, 20, 20)  # layers, heads, query, key
    visible = torch.ones(20, 20, dtype=torch.bool).tril()
    assert ((gates[..., visible] > 0) & (gates[..., visible] < 1)).all()
    assert (gates[..., ~visible] == 0).all()
    counted = gates.flip(-1).cumsum(-1).flip(-1)
    if contextual.num_positions is not None:
        assert counted.max() > contextual.num_positions - 1  # so that clamping is seen
        counted = counted.clamp(max=contextual.num_positions - 1)
    torch.testing.assert_close(positions, counted, rtol=0, atol=1e-5)


def test_only_none_is_blind_to_order(make_model, encoding_name):
    # One layer without position sees its keys as a set. (Two are not blind: the causal mask tells how many came before.)
    model = make_model(f"pe={encoding_name}", "model.num_layers=1").double()
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [4, 1, 5, 2, 3, 6]])
    first, shuffled = model(tokens)[:, -1]
    assert torch.allclose(first, shuffled, rtol=0, atol=1e-9) == (encoding_name == "none")


def test_capped_vectors_are_all_that_training_reads(compose, task_name):
    cut = ["task.context=16"] if task_name == "counting" else []  # else few programs are as long as they may be
    config = compose(f"task={task_name}", "pe=relative_capped", *cut)
    task = build(config.task, "task")
    model = build_model(config, task)
    examples = task.training_examples(1, 0)
    inputs, _ = examples.batch(np.array([examples.lengths.argmax()]))
    assert inputs.shape[1] == task.context_of("train") == len(model.encoding.vectors)
    model(inputs)[:, -1, 0].sum().backward()  # the last query sees every distance
    assert (model.encoding.vectors.grad.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("axes", ["query key", "heads query key", "1 heads query key"])
def test_a_bias_may_have_any_shape_that_broadcasts(make_model, axes):
    class Recency(PositionEncoding):
        """Nearer keys weigh more, in each head by another slope."""

        def bias(self, heads, logits):
            num_queries, num_keys = logits.shape[-2:]
            distance = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
            slopes = torch.tensor([1.0, 1.0] if axes == "query key" else [1.0, 0.5])
            bias = -slopes[:, None, None] * distance
            return {"query key": bias[0], "heads query key": bias, "1 heads query key": bias[None]}[axes]

    model = make_model("pe=none")
    model.encoding = Recency(model.encoding.shape)
    tokens = some_tokens(model)
    F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    with torch.no_grad():
        for layer in positions_by_layer(model, tokens[0]):
            expected = (-torch.arange(LONGEST).flip(0).double()).softmax(0).numpy()
            np.testing.assert_allclose(layer.attention[0, -1], expected, rtol=1e-4)
