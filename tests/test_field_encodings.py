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
