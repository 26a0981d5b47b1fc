"""What each encoding computes, against its published formula."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import make_encoding
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cope.errors import UserError
from cope.kernels.reference import by_distance, contextual_positions, interpolate
from cope.positions import rotary
from cope.positions.base import Heads, ModelShape, PositionEncoding
from cope.positions.contextual import Contextual

SHAPE = ModelShape(dim=8, num_layers=3, num_heads=2, context=5, longest=9)


@pytest.fixture(autouse=True)
def _random_numbers_from_one_seed():
    torch.manual_seed(0)


def some_heads(num_queries: int, num_keys: int, layer: int = 0, gate_keys: Tensor | None = None) -> Heads:
    q, k, v = (torch.randn(2, SHAPE.num_heads, time, SHAPE.head_dim).double() for time in (num_queries, num_keys, num_keys))
    return Heads(q, k, v, gate_keys, layer)


def logits_of(heads: Heads) -> Tensor:
    return heads.q @ heads.k.transpose(-1, -2) / math.sqrt(SHAPE.head_dim)


def bias_of(encoding: PositionEncoding, heads: Heads) -> Tensor:
    """The bias where it counts: 0 for keys after the query."""
    bias = encoding.double().bias(heads, logits_of(heads))
    num_queries, num_keys = bias.shape[-2:]
    return bias.tril(num_keys - num_queries)


def relative_by_hand(heads: Heads, vectors: Tensor) -> Tensor:
    """q_i . e[i - j] / sqrt(head_dim), a pair at a time; beyond the last vector the last."""
    num_queries, num_keys = heads.q.shape[-2], heads.k.shape[-2]
    bias = torch.zeros(*heads.q.shape[:-1], num_keys, dtype=torch.float64)
    for row in range(num_queries):
        i = num_keys - num_queries + row
        for j in range(i + 1):
            bias[..., row, j] = heads.q[..., row, :] @ vectors[min(i - j, len(vectors) - 1)] / math.sqrt(SHAPE.head_dim)
    return bias


@given(num_keys=st.integers(1, 40), data=st.data())
def test_open_gates_count_tokens(num_keys, data):
    num_queries = data.draw(st.integers(1, num_keys))
    gates, positions = contextual_positions(torch.full((num_queries, num_keys), 1e4), num_positions=None)
    distance = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
    assert torch.equal(gates, (distance >= 0).float())
    assert torch.equal(positions, (distance + 1).clamp(min=0).float())
    clamped = contextual_positions(torch.full((num_queries, num_keys), 1e4), num_positions=5)[1]
    assert torch.equal(clamped, positions.clamp(max=4))


@given(num_positions=st.integers(1, 20), fraction=st.floats(0, 1), seed=st.integers(0, 1000))
def test_interpolation(num_positions, fraction, seed):
    z = torch.randn(2, 3, num_positions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    whole = torch.arange(num_positions, dtype=torch.float64).expand(2, 3, -1)
    assert torch.equal(interpolate(z, whole), z)
    between = interpolate(z, whole[..., :-1] + fraction)
    torch.testing.assert_close(between, z[..., :-1] * (1 - fraction) + z[..., 1:] * fraction, atol=1e-12, rtol=0)


def test_by_distance():
    bias = torch.arange(6.0).reshape(2, 3)  # two queries, three distances, three keys
    assert by_distance(bias, 3).tolist() == [[1.0, 0.0, 0.0], [5.0, 4.0, 3.0]]


# ---- tokens counted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beyond", "num_vectors"), [("untrained", SHAPE.longest), ("capped", SHAPE.context)])
def test_relative_equals_a_loop(beyond, num_vectors):
    encoding = make_encoding("relative", SHAPE, beyond=beyond)
    assert encoding.vectors.shape == (num_vectors, SHAPE.head_dim)
    for num_queries, num_keys in [(4, 4), (9, 9), (3, 9)]:
        heads = some_heads(num_queries, num_keys)
        torch.testing.assert_close(bias_of(encoding, heads), relative_by_hand(heads, encoding.vectors))


def test_relative_capped_goes_on_with_the_last_vector_for_ever():
    encoding = make_encoding("relative_capped", SHAPE)
    heads = some_heads(1, 40)
    found = bias_of(encoding, heads)
    last = (heads.q @ encoding.vectors[-1] / math.sqrt(SHAPE.head_dim))[..., None]
    reused = 40 - SHAPE.context + 1  # the nearest keys have vectors of their own
    torch.testing.assert_close(found[..., :reused], last.expand(*last.shape[:-1], reused))


@pytest.mark.parametrize("name", ["absolute", "relative", "cope_relative"])
def test_beyond_error_refuses_a_longer_sequence(name):
    encoding = make_encoding(name, SHAPE, beyond="error").double()
    assert encoding.max_tokens == SHAPE.context

    def use(num_tokens: int) -> None:
        encoding.embed(torch.randn(1, num_tokens, SHAPE.dim), 0)
        encoding.attend(some_heads(num_tokens, num_tokens), 0.0)

    use(SHAPE.context)
    with pytest.raises(UserError, match="6 tokens is longer than the 5 positions"):
        use(SHAPE.context + 1)
    with pytest.raises(UserError, match=r"pe.beyond=errors .*untrained, error"):
        make_encoding(name, SHAPE, beyond="errors")


def test_absolute_adds_the_vector_of_each_position():
    encoding = make_encoding("absolute", SHAPE)
    x = torch.randn(2, 3, SHAPE.dim)
    torch.testing.assert_close(encoding.embed(x, 4) - x, encoding.vectors[4:7].expand(2, -1, -1))
    with pytest.raises(UserError):
        encoding.embed(x, SHAPE.longest - 2)


@pytest.mark.parametrize("dim", [8, 7])
def test_sinusoidal_formula(dim):
    encoding = make_encoding("sinusoidal", ModelShape(dim=dim, num_layers=1, num_heads=1, context=5, longest=9), base=100.0)
    found = encoding.embed(torch.zeros(1, 4, dim), start=20)[0]
    for row, position in enumerate(range(20, 24)):
        for m in range(dim):
            angle = position / 100.0 ** (2 * (m // 2) / dim)
            expected = (math.cos(angle) if m % 2 else math.sin(angle)) / math.sqrt(dim)
            assert found[row, m].item() == pytest.approx(expected, abs=1e-5)


def test_the_gradient_of_a_turn_turns_back():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(5, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(rotary._turn, (x, angle.cos(), angle.sin()))
    assert torch.autograd.gradgradcheck(rotary._turn, (x, angle.cos(), angle.sin()))
    whole_graph = torch.compile(rotary._turn, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole_graph(x, angle.cos(), angle.sin()), rotary._turn(x, angle.cos(), angle.sin()))


@pytest.mark.parametrize("name", ["rope", "cope_rope"])
def test_rope_turns_by_the_distance_alone(name):
    encoding = make_encoding(name, SHAPE)
    q, k = torch.randn(2, 1, 1, 1, SHAPE.head_dim).double()

    def product(i: int, j: int) -> float:
        return float((encoding.rotate(q, q, i)[0] * encoding.rotate(k, k, j)[1]).sum())

    assert product(0, 0) == pytest.approx(float((q * k).sum()))
    for distance in range(4):
        assert product(30 + distance, 30) == pytest.approx(product(distance, 0), abs=1e-5)
        assert product(distance + 1, 0) != pytest.approx(product(distance, 0), abs=1e-2)
    rotated = encoding.rotate(q.expand(1, 1, 6, -1), k.expand(1, 1, 6, -1), 7)
    torch.testing.assert_close(rotated[0][..., 2:3, :], encoding.rotate(q, k, 9)[0])
    with pytest.raises(UserError, match=r"even head size.*model.dim=6 with model.num_heads=2 gives 3"):
        make_encoding(name, ModelShape(dim=6, num_layers=1, num_heads=2, context=5, longest=9))


# ---- context counted ---------------------------------------------------------------------------------------------------


def test_cope_with_open_gates_is_relative_position():
    cope, relative = (
        make_encoding("cope", SHAPE, num_positions=10, gates="separate_keys", init_std=1.0).double(),
        make_encoding("relative", SHAPE).double(),
    )
    with torch.no_grad():
        relative.vectors.copy_(cope.tables[1, 1:])  # p_ij = i - j + 1
    heads = some_heads(6, 9, layer=1)
    heads = heads._replace(q=heads.q.abs(), projected=torch.full_like(heads.k, 1e4))
    torch.testing.assert_close(bias_of(cope, heads), bias_of(relative, heads))
    torch.testing.assert_close(cope.attend(heads, 0.0), relative.attend(heads, 0.0))


@pytest.mark.parametrize(("gates", "source"), [("keys", "k"), ("separate_keys", "projected"), ("values", "v")])
def test_cope_gates_open_by_their_own_keys(gates, source):
    encoding = make_encoding("cope", SHAPE, num_positions=4, gates=gates)
    heads = some_heads(5, 5)
    heads = heads._replace(projected=torch.randn_like(heads.k) if gates == "separate_keys" else None)
    expected = (heads.q @ getattr(heads, source).transpose(-1, -2) / math.sqrt(SHAPE.head_dim)).sigmoid().tril()
    torch.testing.assert_close(encoding.gates_and_positions(heads)[0], expected)


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_cope_relative_adds_both_terms(backend):
    encoding = make_encoding("cope_relative", SHAPE, num_positions=4, init_std=1.0, beyond="capped", backend=backend)
    heads = some_heads(7, 9, layer=2)
    contextual = Contextual.bias(encoding.double(), heads, logits_of(heads)).tril(2)
    torch.testing.assert_close(bias_of(encoding, heads), contextual + relative_by_hand(heads, encoding.relative.vectors))


@pytest.mark.parametrize(("num_heads", "expected"), [(2, [1.0, 1 / 16]), (4, [1.0, 1 / 4, 1 / 16, 1 / 64])])
def test_cope_alibi_slopes(num_heads, expected):
    shape = ModelShape(dim=8, num_layers=2, num_heads=num_heads, context=5, longest=9)
    slopes = make_encoding("cope_alibi", shape, first_slope=0.5).slopes
    torch.testing.assert_close(slopes, -0.5 * torch.tensor(expected).expand(2, -1))


@pytest.mark.parametrize("learned", [False, True])
def test_cope_alibi_lowers_logits_by_the_count(learned):
    encoding = make_encoding("cope_alibi", SHAPE, learned=learned)
    assert isinstance(encoding.slopes, nn.Parameter) == learned
    if learned:
        assert (encoding.slopes == 0).all()
        nn.init.normal_(encoding.slopes)
    heads = some_heads(6, 6, layer=1)
    gates, positions = encoding.double().gates_and_positions(heads)
    torch.testing.assert_close(positions, gates.flip(-1).cumsum(-1).flip(-1))
    torch.testing.assert_close(bias_of(encoding, heads), encoding.slopes[1][:, None, None] * positions)


@pytest.mark.parametrize("scale", ["released", "paper"])
def test_cope_mlp_multiplies_the_query_with_the_vector_of_its_network(scale):
    encoding = make_encoding("cope_mlp", SHAPE, num_positions=4, width=7, scale=scale, init_std=1.0).double()
    # Units that turn on and off between the positions, beyond both ends of them, at an end, and never.
    nn.init.normal_(encoding.output.bias)
    encoding.hidden.weight.data = torch.tensor([1.0, -2.0, 0.5, -0.5, 1.5, 0.0, 0.0], dtype=torch.double)[:, None]
    encoding.hidden.bias.data = torch.tensor([-0.3, 1.1, 2.0, -1.0, 0.0, 0.7, -0.7], dtype=torch.double)
    heads = some_heads(6, 6)
    for tensor in (heads.q, heads.k):
        tensor.requires_grad_()
    _, positions = encoding.gates_and_positions(heads)
    vectors = encoding.output(torch.relu(encoding.hidden(positions[..., None] / 3)))  # (batch, heads, query, key, head_dim)
    expected = (heads.q[..., None, :] * vectors).sum(-1) / (math.sqrt(SHAPE.head_dim) if scale == "released" else 1)
    found = bias_of(encoding, heads)
    torch.testing.assert_close(found, expected.tril())
    cotangent = torch.randn_like(expected).tril()
    inputs = [heads.q, heads.k, *encoding.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad((found * cotangent).sum(), inputs, retain_graph=True),
        torch.autograd.grad((expected * cotangent).sum(), inputs),
    )


def test_cope_mlp_first_layer_only_has_tables_in_later_layers():
    encoding = make_encoding("cope_mlp", SHAPE, num_positions=4, first_layer_only=True, init_std=1.0).double()
    torch.manual_seed(0)
    before = [encoding.attend(some_heads(4, 4, layer), 0.0) for layer in range(SHAPE.num_layers)]
    assert encoding.tables.shape[0] == SHAPE.num_layers - 1  # the first layer would not read one
    nn.init.zeros_(encoding.tables)
    torch.manual_seed(0)
    after = [encoding.attend(some_heads(4, 4, layer), 0.0) for layer in range(SHAPE.num_layers)]
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, False, False]
    assert not hasattr(make_encoding("cope_mlp", SHAPE), "tables")  # nothing unread is counted as a parameter


@pytest.mark.parametrize("name", ["cope", "cope_relative", "cope_rope"])
def test_share_layers_gives_one_table(name):
    for share_layers, num_tables in [(False, SHAPE.num_layers), (True, 1)]:
        encoding = make_encoding(name, SHAPE, num_positions=6, share_layers=share_layers, init_std=1.0)
        assert encoding.tables.shape == (num_tables, 6, SHAPE.head_dim)
        distinct = {encoding.table(layer).data_ptr() for layer in range(SHAPE.num_layers)}
        assert len(distinct) == num_tables


def test_cope_without_position_vectors_is_attention_without_position(make_model):
    tokens = torch.randint(9, (2, 48))
    plain = make_model("pe=none").double()(tokens)
    torch.testing.assert_close(make_model("pe=cope", "pe.init_std=0").double()(tokens), plain, rtol=0, atol=1e-12)
    assert not torch.allclose(make_model("pe=cope", "pe.init_std=1").double()(tokens), plain, atol=1e-3)


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ({"gates": "queries"}, "keys, separate_keys, values"),
        ({"scale": "none"}, "released, paper"),
        ({"num_positions": 0}, "1 or more"),
    ],
)
def test_cope_refuses_unknown_settings(setting, allowed):
    with pytest.raises(UserError, match=allowed):
        make_encoding("cope", SHAPE, **setting)
