"""The encodings of the field beside CoPE, each against its paper's formula, a pair or a step at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import make_encoding
from torch import Tensor, nn

from cope.errors import UserError
from cope.positions.base import Heads, ModelShape, PositionEncoding

SHAPE = ModelShape(dim=12, num_layers=2, num_heads=3, context=10, longest=20)
LAYER = 1


@pytest.fixture(autouse=True)
def _random_numbers_from_one_seed() -> None:
    torch.manual_seed(0)


def made(name: str, shape: ModelShape = SHAPE, **changes: Any) -> Any:
    return make_encoding(name, shape, **changes).double()


def heads_of(encoding: PositionEncoding, num_keys: int, num_queries: int | None = None) -> tuple[Heads, Tensor]:
    """Random queries, keys and values of a layer, with what the encoding projects from random inputs, which come second."""
    shape = encoding.shape
    num_queries = num_keys if num_queries is None else num_queries
    times = (num_queries, num_keys, num_keys)
    q, k, v = (torch.randn(2, shape.num_heads, time, shape.head_dim, dtype=torch.double) for time in times)
    x = torch.randn(2, num_keys, shape.dim, dtype=torch.double)
    return Heads(q, k, v, encoding.project(x, LAYER), LAYER), x


def pairs(heads: Heads) -> list[tuple[int, int, int]]:
    """(row, i, j) of every query, with its place in the sequence, and every key up to it."""
    num_queries, num_keys = heads.q.shape[-2], heads.k.shape[-2]
    return [
        (row, row + num_keys - num_queries, j) for row in range(num_queries) for j in range(row + num_keys - num_queries + 1)
    ]


def products(heads: Heads) -> Tensor:
    return heads.q @ heads.k.transpose(-1, -2) / math.sqrt(heads.q.shape[-1])


def assert_logits(encoding: PositionEncoding, heads: Heads, expected: Any) -> None:
    """``expected(row, i, j)`` is (batch, heads): what query i's logit for key j should be."""
    found = encoding.logits(heads)
    for row, i, j in pairs(heads):
        torch.testing.assert_close(found[..., row, j], expected(row, i, j), rtol=1e-9, atol=1e-9)


# ---- distance ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_heads", "exponents"),
    [(2, [4, 8]), (8, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [4, 8, 2]), (6, [2, 4, 6, 8, 1, 3])],
)
def test_alibi_lowers_logits_by_slope_and_distance(num_heads: int, exponents: list[int]) -> None:
    encoding = made("alibi", ModelShape(dim=4 * num_heads, num_layers=2, num_heads=num_heads, context=9, longest=9))
    slopes = torch.tensor([2.0**-exponent for exponent in exponents]).double()
    heads, _ = heads_of(encoding, 9, 4)
    plain = products(heads)
    assert_logits(encoding, heads, lambda row, i, j: plain[..., row, j] - slopes * (i - j))


def test_t5_reads_a_number_for_each_bucket() -> None:
    encoding = made("t5", num_buckets=8, max_distance=32)
    heads, _ = heads_of(encoding, 60, 3)
    plain = products(heads)
    # 4 exact ones, then 4 from 4 to 32: each 32/4 to the power 1/4 times as far as the one before
    edges = [0, 1, 2, 3, 4, 4 * 8**0.25, 4 * 8**0.5, 4 * 8**0.75]
    numbers = encoding.by_bucket

    def expected(row: int, i: int, j: int) -> Tensor:
        bucket = max(index for index, edge in enumerate(edges) if i - j >= edge)
        return plain[..., row, j] + numbers[:, bucket]

    assert_logits(encoding, heads, expected)
    untrained = made("t5", ModelShape(dim=12, num_layers=2, num_heads=3, context=20, longest=80)).num_untrained
    # of 32 buckets up to distance 128, those first reached between 20 and 79: floor(16 log(d / 16) / log(8)) from 1 to 12
    assert untrained == 3 * 11
    with pytest.raises(UserError, match=r"pe\.max_distance=3 is too small"):
        make_encoding("t5", SHAPE, max_distance=3)


def test_kerple_is_a_logarithm_of_the_distance() -> None:
    encoding = made("kerple_log")
    assert (encoding.p.min() >= 0) and encoding.p.max() > 1 and encoding.a.max() <= 1
    with torch.no_grad():
        encoding.p[LAYER, 0], encoding.a[LAYER, 1] = -3.0, 0.001  # below what they are kept from
    p, a = (parameter[LAYER, :, 0].clamp(min=0.01) for parameter in (encoding.p, encoding.a))
    heads, _ = heads_of(encoding, 9, 4)
    plain = products(heads)
    assert_logits(encoding, heads, lambda row, i, j: plain[..., row, j] - p * (1 + a * (i - j)).log())
    (encoding.attend(heads, 0.0) * torch.randn(heads.q.shape)).sum().backward()
    assert encoding.p.grad[LAYER, 0] != 0  # it can come back


@pytest.mark.parametrize("threshold", [6.0, 512.0])
def test_fire_measures_distance_against_the_querys_position(threshold: float) -> None:
    encoding = made("fire", threshold=threshold, width=5)
    assert (encoding.c.float() == 0.1).all() and (encoding.mu == 1).all()
    with torch.no_grad():
        encoding.c[LAYER], encoding.mu[LAYER] = 0.3, -1.5
    first, _, second = encoding.networks[LAYER]
    heads, _ = heads_of(encoding, 16, 14)
    plain = products(heads)

    def expected(row: int, i: int, j: int) -> Tensor:
        share = math.log(0.3 * (i - j) + 1) / (math.log(0.3 * max(i, 1.5 * threshold) + 1) + 1e-6)
        hidden = (first.weight[:, 0] * share + first.bias).clamp(min=0)
        return plain[..., row, j] + second.weight @ hidden + second.bias

    assert_logits(encoding, heads, expected)


@pytest.mark.parametrize("base", ["Alibi", "KerpleLog", "Fire"])
def test_dape_mixes_logits_and_bias_over_the_heads(base: str) -> None:
    encoding = made("dape", base=base, width=7)
    first, _, second = encoding.networks[LAYER]
    heads, _ = heads_of(encoding, 9, 4)
    plain = products(heads)
    bias = encoding.base.bias(heads, plain).expand_as(plain)

    def expected(row: int, i: int, j: int) -> Tensor:
        s, b = plain[..., row, j], bias[..., row, j]
        hidden = nn.functional.leaky_relu(torch.cat([s, b], dim=-1) @ first.weight.T + first.bias, 0.01)
        return s + b + hidden @ second.weight.T + second.bias

    assert_logits(encoding, heads, expected)


# ---- rotation ------------------------------------------------------------------------------------------------------------


def test_xpos_decays_rope_by_frequency() -> None:
    encoding = made("xpos", scale_base=7.0)
    q, k = (torch.randn(1, 3, 1, 4, dtype=torch.double) for _ in range(2))
    for i, j in [(0, 0), (5, 0), (25, 20), (9, 4), (30, 3)]:
        found = (encoding.rotate(q, q, i)[0] * encoding.rotate(k, k, j)[1]).sum(-1)[0, :, 0]
        expected = torch.zeros(3, dtype=torch.double)
        for m in range(2):
            angle, zeta = (i - j) * 10000.0 ** (-m / 2), (m / 2 + 0.4) / 1.4
            # a query (a, b) and a key (c, d) as complex numbers: Re((a + ib) conj(c + id) exp(i angle))
            query, key = (torch.complex(t[0, :, 0, m], t[0, :, 0, m + 2]) for t in (q, k))
            turned = (query * key.conj() * complex(math.cos(angle), math.sin(angle))).real
            expected += turned * zeta ** ((i - j) / 7.0)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """Pairs (m, m + d/2) of (..., d) as complex numbers, multiplied by exp(i angle)."""
    half = x.shape[-1] // 2
    product = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([product.real, product.imag], dim=-1)


@pytest.mark.parametrize("delta", ["zero", "uniform"])
def test_pope_multiplies_lengths_and_adds_angles(delta: str) -> None:
    encoding = made("pope", delta=delta, base=100.0)
    assert (encoding.delta == 0).all() if delta == "zero" else (encoding.delta.min() < -3 and encoding.delta.max() <= 0)
    heads, _ = heads_of(encoding, 9, 4)

    def expected(row: int, i: int, j: int) -> Tensor:
        logit = torch.zeros(2, 3, dtype=torch.double)
        for c in range(4):
            lengths = [torch.log1p(x[:, :, place, c].exp()) for x, place in ((heads.q, row), (heads.k, j))]
            angle = (j - i) * 100.0 ** (-c / 4) + encoding.delta[LAYER, :, 0, c]
            logit += lengths[0] * lengths[1] * angle.cos()
        return logit / 2

    torch.testing.assert_close(encoding.logits(heads)[0, 0, 0, 0], expected(0, 5, 0)[0, 0], rtol=1e-5, atol=1e-5)
    found = encoding.logits(heads)
    for row, i, j in pairs(heads):  # angles are float32's
        torch.testing.assert_close(found[..., row, j], expected(row, i, j), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("gate", "offset"), [(False, False), (True, False), (False, True), (True, True)])
def test_selective_rope_adds_up_the_angles_of_its_tokens(gate: bool, offset: bool) -> None:
    encoding = made("selective_rope", gate=gate, offset=offset, rank=5, base=50.0)
    if offset:
        nn.init.normal_(encoding.offset)
    heads, x = heads_of(encoding, 9, 4)
    shares = x.unflatten(-1, (3, 4))
    x = (shares / shares.norm(dim=-1, keepdim=True)).flatten(-2)
    phi = x @ encoding.down[LAYER].weight.T @ encoding.up[LAYER].weight.T  # (batch, time, heads x pairs)
    weights = encoding.convolutions[LAYER, :, 0]
    angle, angles = torch.zeros(2, 3, 2, dtype=torch.double), []
    for t in range(9):
        step = sum(phi[:, t - back] * weights[:, 3 - back] for back in range(min(t + 1, 4))).unflatten(-1, (3, 2))
        if offset:
            step = step + encoding.offset[LAYER, :, 0].exp()
        if gate:
            step = step * encoding.gates[LAYER](x[:, t]).sigmoid()[..., None]
        angle = angle + step
        angles.append(angle * torch.tensor([1.0, 50.0**-0.5]))

    def expected(row: int, i: int, j: int) -> Tensor:
        return (turned(heads.q[:, :, row], angles[i]) * turned(heads.k[:, :, j], angles[j])).sum(-1) / 2

    found = encoding.logits(heads)
    for row, i, j in pairs(heads):  # the frequencies are float32's
        torch.testing.assert_close(found[..., row, j], expected(row, i, j), rtol=1e-5, atol=1e-5)


def test_a_path_and_back_is_no_path() -> None:
    encoding = made("map", rank=3)
    torch.testing.assert_close(encoding.omega[0, 0, 0].detach().float(), torch.tensor([2 * math.pi, 2 * math.pi / 64]))
    heads, x = heads_of(encoding, 7, 5)
    increments = (x @ encoding.inputs[LAYER].weight.T @ encoding.outputs[LAYER].weight.T).unflatten(-1, (3, 2))
    angle = (encoding.omega[LAYER, :, 0] * increments.cumsum(1)).transpose(1, 2)

    def expected(row: int, i: int, j: int) -> Tensor:
        return (turned(heads.q[:, :, row], angle[:, :, i]) * turned(heads.k[:, :, j], angle[:, :, j])).sum(-1) / 2

    found = encoding.logits(heads)
    for row, i, j in pairs(heads):
        torch.testing.assert_close(found[..., row, j], expected(row, i, j), rtol=1e-6, atol=1e-6)
    # Steps that undo one another leave the products of queries and keys as they are.
    x[:, 5], x[:, 6] = -x[:, 4], 0.0
    there_and_back = encoding.logits(heads._replace(projected=encoding.project(x, LAYER)))
    torch.testing.assert_close(there_and_back[..., 4, 3], products(heads)[..., 4, 3], rtol=1e-9, atol=1e-9)


def test_repo_is_rope_at_positions_of_its_own_from_a_layer_on(caplog: pytest.LogCaptureFixture) -> None:
    encoding, rope = made("repo", base=10000.0, init_std=1.0), made("rope")
    heads, x = heads_of(encoding, 7, 5)
    gate, content, output = (matrix.weight for matrix in encoding.networks[0])
    hidden = x @ gate.T
    position = (hidden / (1 + (-hidden).exp()) * (x @ content.T)) @ output.T  # (batch, time, heads)
    assert position.abs().max() > 1
    frequency = torch.tensor([1.0, 0.01]).double()
    angle = position.transpose(1, 2)[..., None] * frequency

    def expected(row: int, i: int, j: int) -> Tensor:
        return (turned(heads.q[:, :, row], angle[:, :, i]) * turned(heads.k[:, :, j], angle[:, :, j])).sum(-1) / 2

    found = encoding.logits(heads)
    for row, i, j in pairs(heads):
        torch.testing.assert_close(found[..., row, j], expected(row, i, j), rtol=1e-5, atol=1e-5)
    assert encoding.project(x, 0) is None
    first = heads._replace(projected=None, layer=0)
    q, k = rope.rotate(heads.q, heads.q, 2)[0], rope.rotate(heads.k, heads.k, 0)[1]  # the last query stands at the last key
    torch.testing.assert_close(encoding.logits(first), q @ k.transpose(-1, -2) / 2, rtol=1e-5, atol=1e-5)
    make_encoding("repo", SHAPE, first_layer=2)
    assert "every layer has RoPE's positions, of 2" in caplog.text


# ---- sums along the row -----------------------------------------------------------------------------------------------------


def test_fox_adds_the_logs_of_the_gates_between() -> None:
    encoding = made("fox", initial_bias=1.5)
    assert (encoding.gates[LAYER].bias == 1.5).all()
    heads, x = heads_of(encoding, 9, 4)
    gates = 1 / (1 + (-(x @ encoding.gates[LAYER].weight.T + 1.5)).exp())  # (batch, time, heads)
    plain = products(heads)
    assert_logits(encoding, heads, lambda row, i, j: plain[..., row, j] + gates[:, j + 1 : i + 1].prod(1).log())
    kept = encoding.attend(heads._replace(projected=torch.full_like(heads.projected, -1e3)), 0.0)
    torch.testing.assert_close(kept, heads.v[..., 5:, :])  # all is forgotten but the query's own token


def test_grape_is_alibi_with_a_slope_of_the_query() -> None:
    encoding = made("grape")
    heads, _ = heads_of(encoding, 9, 4)
    slopes = torch.tensor([2.0**-4, 2.0**-8, 2.0**-2]).double()
    torch.testing.assert_close(torch.log1p(encoding.omega.exp()), torch.ones(2, 3).double())
    nn.init.normal_(encoding.omega)
    omega, direction = encoding.omega[LAYER], encoding.directions[LAYER]
    direction = direction / direction.norm(dim=-1, keepdim=True)
    plain = products(heads)

    def expected(row: int, i: int, j: int) -> Tensor:
        gate = torch.log1p(((heads.q[:, :, row] * direction).sum(-1) / 2).exp())
        return plain[..., row, j] - (i - j) * slopes * torch.log1p(omega.exp()) * gate

    assert_logits(encoding, heads, expected)
    # Queries that the gate does not see leave ALiBi, with slopes of log(2) softplus(omega).
    blind = heads._replace(q=torch.zeros_like(heads.q))
    bias = made("alibi").bias(blind, plain)
    scale = (math.log(2) * torch.log1p(omega.exp()))[:, None, None]
    torch.testing.assert_close(encoding.bias(blind, plain).tril(5), (bias * scale).expand_as(plain).tril(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_long_sums_lose_no_precision(dtype: torch.dtype) -> None:
    # After 4,000 tokens the sum of logs is about -3,000: in bfloat16 its steps would be 16 wide, in float32 they are 2e-4.
    encoding, exact = make_encoding("fox", SHAPE), made("fox")
    exact.load_state_dict(encoding.state_dict())
    heads, _ = heads_of(exact, 4000, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        small = Heads(heads.q.to(dtype), heads.k.to(dtype), heads.v.to(dtype), heads.projected.float(), LAYER)
        found = encoding.attend(small, 0.0)
    assert found.dtype == dtype
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-3
    torch.testing.assert_close(found.double(), exact.attend(heads, 0.0), rtol=tolerance, atol=tolerance)


# ---- what no bias can say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attend_current", [False, True])
def test_stick_breaking_breaks_a_stick(attend_current: bool) -> None:
    encoding = made("stick_breaking", attend_current=attend_current)
    heads, _ = heads_of(encoding, 9, 4)
    shares = 1 / (1 + (-products(heads)).exp())
    expected = torch.zeros(2, 3, 4, 4, dtype=torch.double)
    for row in range(4):
        stick = torch.ones(2, 3, dtype=torch.double)
        for j in reversed(range(row + 5 + attend_current)):
            expected[:, :, row] += (stick * shares[..., row, j])[..., None] * heads.v[:, :, j]
            stick = stick * (1 - shares[..., row, j])
    torch.testing.assert_close(encoding.attend(heads, 0.0), expected)
    whole, _ = heads_of(encoding, 5)
    first = encoding.attend(whole, 0.0)[..., 0, :]
    assert (first == 0).all() != attend_current  # nothing stands before the first token


@pytest.mark.parametrize(("num_keys", "num_queries"), [(9, 6), (150, 100), (130, 130)])  # within a chunk of 64, over several
def test_path_multiplies_a_reflection_for_each_token_between(num_keys: int, num_queries: int) -> None:
    encoding = made("path", rank=5)
    heads, x = heads_of(encoding, num_keys, num_queries)
    inner = x @ encoding.down[LAYER].weight.T @ encoding.up[LAYER].weight.T
    weights = encoding.convolutions[LAYER, :, 0]
    found = encoding.logits(heads)
    carried = heads.k  # each key, reflected by every token after it so far
    for t in range(num_keys):
        w = sum(inner[:, t - back] * weights[:, 2 - back] for back in range(min(t + 1, 3)))
        w = (w / (1 + (-w).exp())).unflatten(-1, (3, 4))
        w = w / w.norm(dim=-1, keepdim=True)
        beta = 2 * encoding.betas[LAYER](x[:, t]).sigmoid()[..., None, None]
        reflection = torch.eye(4).double() - beta * w[..., :, None] * w[..., None, :]
        earlier = (torch.arange(num_keys) < t)[:, None]
        carried = torch.where(earlier, carried @ reflection, carried)
        row = t - (num_keys - num_queries)
        if row >= 0:
            expected = (carried[..., : t + 1, :] @ heads.q[..., row, :, None])[..., 0] / 2
            torch.testing.assert_close(found[..., row, : t + 1], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("strength", [1.0, 100.0])
def test_wall_fades_each_dimension_by_itself(strength: float) -> None:
    encoding = made("wall")
    assert (encoding.gates[LAYER].bias == 8).all()
    nn.init.zeros_(encoding.gates[LAYER].bias)
    encoding.gates[LAYER].weight.data *= strength  # by 100: single tokens that fade a dimension by e^-200
    heads, x = heads_of(encoding, 40, 37)
    logs = nn.functional.logsigmoid(x @ encoding.gates[LAYER].weight.T).unflatten(-1, (3, 4))  # (batch, time, heads, size)

    def expected(row: int, i: int, j: int) -> Tensor:
        kept = logs[:, j + 1 : i + 1].sum(1).exp()
        return (heads.q[:, :, row] * heads.k[:, :, j] * kept).sum(-1) / 2

    assert_logits(encoding, heads, expected)
    encoding.logits(heads).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoding.gates[LAYER].parameters())
