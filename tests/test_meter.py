"""The meter of how much counted positions matter, against its definition number by number."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_cases import padding

from cope.errors import UserError
from cope.kernels.reference import contextual_positions
from cope.meter import PositionUse, position_use, total
from cope.model.inspection import position_use_by_layer

GENERATOR = torch.Generator().manual_seed(0)
Q, K = (torch.randn(2, heads, 150, 4, generator=GENERATOR) for heads in (4, 2))
TABLE = torch.randn(40, 4, generator=GENERATOR)


@pytest.mark.parametrize("scale", ["released", "paper"])
def test_share_is_the_definition_query_by_query(scale):
    key_mask = padding(150, [150, 90], "left")
    gate_bias = torch.tensor([0.0, -1.0, 1.0, -3.0])
    found = position_use(Q, K, TABLE, gate_bias=gate_bias, key_mask=key_mask, scale=scale)
    k = K.repeat_interleave(2, 1)
    content = Q @ k.transpose(-1, -2) / 2
    _, positions = contextual_positions(content + gate_bias[:, None, None], 40, key_mask)
    by_table, by_content, reads = torch.zeros(4), torch.zeros(4), torch.zeros(40)
    for batch, query in torch.cartesian_prod(torch.arange(2), torch.arange(150)).tolist():
        seen = [key for key in range(query + 1) if key_mask[batch, key]]
        for head in range(4) if seen else ():
            own = positions[batch, head, query, seen]
            below = own.floor().long()
            weight = (own - below)[:, None]
            vectors = TABLE[below] * (1 - weight) + TABLE[(below + 1).clamp(max=39)] * weight
            logits = vectors @ Q[batch, head, query] / (2 if scale == "released" else 1)
            by_table[head] += logits.var(correction=0)
            by_content[head] += content[batch, head, query, seen].var(correction=0)
            reads += torch.bincount(below, 1 - weight[:, 0], 40)
            reads += torch.bincount((below + 1).clamp(max=39), weight[:, 0], 40)
    torch.testing.assert_close(found.share.float(), by_table / (by_table + by_content), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.reads.float(), reads, rtol=1e-3, atol=1e-2)
    assert found.unused == (reads == 0).nonzero().flatten().tolist()


def test_a_table_of_zeros_is_inert_and_batches_add_up():
    assert (position_use(Q, K, torch.zeros(40, 4)).share == 0).all()
    whole, parts = (
        position_use(Q, K, TABLE),
        total(position_use(q, k, TABLE) for q, k in zip(Q.split(1), K.split(1), strict=True)),
    )
    torch.testing.assert_close(parts.share, whole.share)
    # 150 gates of one half: positions up to 75, and nothing reads those that lie above.
    closed = position_use(Q, torch.zeros_like(K), torch.randn(100, 4))
    assert closed.unused == list(range(76, 100))
    assert math.isclose(closed.reads.sum(), 2 * 4 * 150 * 151 / 2, rel_tol=1e-6)


def test_it_is_shown_in_one_short_line_and_keeps_its_numbers():
    use = PositionUse(torch.full((16,), 3.0), torch.linspace(0.0, 1.0, 16), torch.tensor([1.0] * 52 + [0.0] * 12))
    assert f"{use}" == repr(use) == "<PositionUse: share 0.00 to 0.25 in 16 heads, 12 of 64 positions unused>"
    assert use.unused == list(range(52, 64)) and use.share.shape == (16,)


def test_the_meter_of_a_model(make_model):
    model = make_model("pe=cope", "pe.gate_bias=-2.0")
    tokens = torch.randint(0, 5, (2, 20), generator=torch.Generator().manual_seed(1))
    uses = position_use_by_layer(model, tokens)
    assert len(uses) == len(model.layers) and all((use.share > 0).all() and (use.share < 1).all() for use in uses)
    assert uses[0].reads.sum() == pytest.approx(2 * model.encoding.shape.num_heads * 20 * 21 / 2)
    with pytest.raises(UserError, match="Rotary has no table of counted positions"):
        position_use_by_layer(make_model("pe=rope"), tokens)
