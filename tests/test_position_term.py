"""The explanation of what CoPE's scale and start change, held against the model itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from cope.errors import UserError
from cope.heads.position_term import measure

Compose = Callable[..., DictConfig]
SHORT = ("task.num_validation=8", "task.num_test=8", "optimizer.warmup_steps=0")


def test_from_a_table_of_zeros_the_scale_alone_is_the_difference(compose: Compose) -> None:
    paper, released = (measure(compose("pe=cope", "pe.init_std=0.0", f"pe.scale={s}", *SHORT)) for s in ("paper", "released"))
    root = 8**0.5  # heads of 8 dimensions
    assert paper.loss == pytest.approx(released.loss, rel=1e-6)  # the same model, before it has learned anything
    assert paper.term == released.term == 0.0
    assert paper.gate_gradient == released.gate_gradient == 0.0  # gates learn nothing of positions yet
    assert paper.table_gradient == pytest.approx(root * released.table_gradient, rel=1e-3)
    # A step of Adam is as large whatever the gradient, and then counts for as much more.
    assert paper.term_step == pytest.approx(root * released.term_step, rel=0.05) and released.term_step > 0


def test_a_table_that_is_not_zero_teaches_gates_at_once(compose: Compose) -> None:
    found = [measure(compose("pe=cope", f"pe.init_std={std}", "pe.scale=paper", *SHORT)) for std in (0.02, 0.25)]
    assert 0 < 5 * found[0].gate_gradient < found[1].gate_gradient
    assert found[1].term == pytest.approx(12.5 * found[0].term, rel=0.01)


def test_an_encoding_without_such_a_table(compose: Compose) -> None:
    with pytest.raises(UserError, match="pe=rope has no table of contextual positions"):
        measure(compose("pe=rope", *SHORT))
