"""The Transformer itself: shape, norms, ties, dropout, and the shapes that its annotations promise."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from conftest import ENCODINGS, make_encoding
from omegaconf import OmegaConf
from runs import clean_environment
from torch import nn

from cope.errors import UserError
from cope.model.transformer import Layer, SelfAttention, Transformer, check_shape
from cope.positions.base import ModelShape, PositionEncoding

SHAPE = ModelShape(dim=12, num_layers=3, num_heads=4, context=10, longest=10)
VOCABULARY = 7


def transformer(**settings) -> Transformer:
    torch.manual_seed(0)
    return Transformer(VOCABULARY, PositionEncoding(SHAPE), **settings).eval()


def some_tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(0))


def silent_layer(norm: str) -> Layer:
    """A layer whose branches add nothing."""
    layer = Layer(
        SHAPE, 0, feed_forward_multiple=2, activation="relu", norm=norm, normalization="layer", biases=True, dropout=0.0
    )
    for linear in (layer.attention.output, layer.feed_forward.output):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return layer


def test_pre_norm_leaves_the_residual_stream_alone_and_post_norm_norms_it():
    x = 3.0 + 5.0 * torch.randn(2, 4, SHAPE.dim, generator=torch.Generator().manual_seed(0))
    encoding = PositionEncoding(SHAPE)
    assert torch.equal(silent_layer("pre")(x, encoding, 0, None), x)
    torch.testing.assert_close(silent_layer("post")(x, encoding, 0, None), F.layer_norm(x, (SHAPE.dim,)), rtol=1e-4, atol=1e-4)
    # Before attention, pre-norm norms and post-norm does not.
    torch.testing.assert_close(silent_layer("pre").attention_input(x), F.layer_norm(x, (SHAPE.dim,)))
    assert silent_layer("post").attention_input(x) is x
    assert isinstance(transformer(norm="pre").final_norm, nn.LayerNorm)
    assert isinstance(transformer(norm="post").final_norm, nn.Identity)


def test_pre_norm_scales_the_last_layer_of_each_branch_by_the_depth():
    pre, post = transformer(norm="pre"), transformer(norm="post")
    for one, other in zip(pre.layers, post.layers, strict=True):
        for branch in ("attention", "feed_forward"):
            scaled, plain = getattr(one, branch).output.weight, getattr(other, branch).output.weight
            torch.testing.assert_close(scaled * (2 * SHAPE.num_layers) ** 0.5, plain)
        assert torch.equal(one.feed_forward.hidden.weight, other.feed_forward.hidden.weight)
    large = Transformer(2000, PositionEncoding(SHAPE))
    assert large.embedding.weight.std().item() == pytest.approx(SHAPE.dim**-0.5, rel=0.03)


def test_tied_embeddings_are_one_tensor():
    tied, untied = transformer(tied_embeddings=True), transformer(tied_embeddings=False)
    assert tied.output.weight is tied.embedding.weight
    assert untied.output.weight.data_ptr() != untied.embedding.weight.data_ptr()
    assert untied.num_parameters() - tied.num_parameters() == VOCABULARY * SHAPE.dim
    tied.to(torch.float64)  # a change of type makes new tensors, and must not part the two
    assert tied.output.weight.data_ptr() == tied.embedding.weight.data_ptr()


@pytest.mark.parametrize("multiple", [2, 4])
def test_number_of_parameters(multiple):
    dim, hidden, num_positions = SHAPE.dim, multiple * SHAPE.dim, 5
    model = Transformer(VOCABULARY, make_encoding("cope", SHAPE, num_positions=num_positions), feed_forward_multiple=multiple)
    attention = (3 * dim * dim + 3 * dim) + (dim * dim + dim)
    feed_forward = (dim * hidden + hidden) + (hidden * dim + dim)
    tables = SHAPE.num_layers * num_positions * (dim // SHAPE.num_heads)
    layers = SHAPE.num_layers * (attention + feed_forward + 2 * 2 * dim)
    assert model.num_parameters() == VOCABULARY * dim + layers + 2 * dim + tables


def test_where_selects_rows_of_the_same_logits():
    model, tokens = transformer(), some_tokens()
    logits = model(tokens)
    assert logits.shape == (2, 10, VOCABULARY)
    where = torch.tensor([3, 10, 19])
    torch.testing.assert_close(model(tokens, where=where), torch.stack([logits[0, 3], logits[1, 0], logits[1, 9]]))
    assert model(tokens, where=where[:0]).shape == (0, VOCABULARY)


def test_dropout_only_in_training():
    model, tokens = transformer(dropout=0.5), some_tokens()
    torch.testing.assert_close(model(tokens), transformer(dropout=0.0)(tokens))
    model.train()
    assert not torch.allclose(model(tokens), model(tokens))


@pytest.mark.parametrize(
    "encoding",
    [PositionEncoding(SHAPE), make_encoding("relative", SHAPE), make_encoding("cope", SHAPE)],
    ids=lambda e: type(e).__name__,
)
def test_attention_drops_weights_only_in_training(encoding):
    # Each of the three has a path of its own through attention.
    torch.manual_seed(0)
    attention, x = SelfAttention(SHAPE.dim, SHAPE.num_heads, biases=True, dropout=0.5, layer=0), torch.randn(2, 6, SHAPE.dim)
    sure = attention.eval()(x, encoding)
    assert torch.equal(attention(x, encoding), sure)
    attention.train()
    mean = attention(x.repeat(2000, 1, 1), encoding).unflatten(0, (2000, 2)).mean(0)
    torch.testing.assert_close(mean, sure, rtol=0, atol=0.05)  # 5 standard errors
    assert not torch.allclose(attention(x, encoding), sure, atol=0.05)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.num_heads=5"], r"model.num_heads=5 does not divide model.dim=16; allowed: 1, 2, 4, 8, 16\."),
        (["model.norm=middle"], r"model.norm=middle .*pre, post"),
        (["model.activation=rely"], r"model.activation=rely .*relu, gelu.*Did you mean 'relu'"),
        (["model.dropout=1.5"], r"model.dropout=1.5 .*0.0 to 0.99"),
        (["model.num_layers=0"], "model.num_layers=0 is too small"),
        (["model.dim=wide"], "model.dim='wide' has the wrong type; allowed: int"),
    ],
)
def test_impossible_models_are_refused(make_model, overrides, message):
    with pytest.raises(UserError, match=message):
        make_model(*overrides)


def test_a_shape_may_refer_to_the_recipe(make_model):
    """As the halved models of Table 7 do."""
    assert make_model("pe=none", "model.dim=${recipe.num_positions}").encoding.shape.dim == 8


def test_heads_that_divide_are_accepted():
    for num_heads in (1, 2, 3, 4, 6, 12):
        check_shape(12, 1, num_heads)


CHECK_ANNOTATED_SHAPES = """
    import json
    import sys

    import torch._dynamo  # which PyTorch imports later, and which then takes the hook three seconds
    from jaxtyping import TypeCheckError, install_import_hook
    from omegaconf import OmegaConf

    # An int is a float too, as to every static checker.
    checker = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
    with install_import_hook("cope", checker):
        from cope import cope_attention
        from cope.building import build
        from cope.model.inspection import gates_and_positions
        from cope.model.transformer import Transformer
        from cope.positions.base import ModelShape, PositionEncoding

        shape = ModelShape(dim=8, num_layers=2, num_heads=2, context=6, longest=6)
        configs = [OmegaConf.create(config) for config in json.load(sys.stdin)]
        encodings = [PositionEncoding(shape), *(build(config, "pe", shape=shape) for config in configs)]
    tokens = torch.randint(5, (3, 6))
    for encoding in encodings:
        model = Transformer(5, encoding)
        model(tokens).sum().backward()
        model(tokens, where=torch.tensor([0, 17]))
        caches = model.empty_caches()
        model(tokens[:, :4], caches=caches)
        model(tokens[:, 4:], start=4, caches=caches)
        gates_and_positions(model, tokens[0])

    def refused(call):
        try:
            call()
        except TypeCheckError:
            return
        raise AssertionError("a wrong shape went through")

    x = torch.randn(1, 2, 6, 4)
    cope_attention(x, x, x, torch.randn(3, 4))
    refused(lambda: cope_attention(x, x, x, torch.randn(3, 5)))  # vectors of another size than the heads
    refused(lambda: cope_attention(x, x[:, :, :5], x, torch.randn(3, 4)))  # fewer keys than values
    refused(lambda: cope_attention(x[0], x[0], x[0], torch.randn(3, 4)))  # no batch
    refused(lambda: cope_attention(x, x, x, torch.randn(3, 4), gate_keys=x[..., :2]))
    refused(lambda: Transformer(5, encodings[0])(tokens[0]))  # no batch
    refused(lambda: Transformer(5, encodings[0])(tokens.float()))  # not ids
    refused(lambda: PositionEncoding(shape).rotate(x, x[..., :2], 0))
    refused(lambda: PositionEncoding(shape).embed(x, 0))
"""


@pytest.mark.slow
def test_annotated_shapes_hold(compose):
    # In a process of its own: the hook rewrites modules while they are imported, and here they are imported already.
    code = textwrap.dedent(CHECK_ANNOTATED_SHAPES)
    configs = json.dumps([OmegaConf.to_container(compose(f"pe={name}").pe, resolve=True) for name in ENCODINGS])
    found = subprocess.run(
        [sys.executable, "-c", code], input=configs, capture_output=True, text=True, timeout=300, env=clean_environment()
    )
    assert found.returncode == 0, found.stderr
