"""How much CoPE's position term weighs before training, and how much the first step of training changes it.

The term q_i . e[p_ij] is divided by sqrt(head_dim) with ``pe.scale=released`` and not with ``paper``, so the gradient of the
table is smaller by that factor. An optimiser such as Adam makes steps of one size whatever the gradient's, but a step of the
table then also moves the logits by less. And from a table of zeros gates get no gradient through positions at all until the
table has moved: the slope between its entries is what they are multiplied by. This file measures each of the three.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from cope.errors import UserError
from cope.kernels.reference import causal_mask
from cope.positions.base import Heads, PositionEncoding
from cope.positions.contextual import Contextual
from cope.run.batches import Batch, TrainingBatches
from cope.run.experiment import Experiment


@dataclass(frozen=True)
class PositionTerm:
    """Root mean squares, over the pairs of query and key that see one another, before training and after one step."""

    term: float  # of the position term of the logits
    term_step: float  # of its change by one step of the optimiser
    table_gradient: float  # of the loss's gradient with respect to the table
    gate_gradient: float  # of the loss's gradient with respect to the gates
    loss: float


def measure(config: DictConfig) -> PositionTerm:
    """The position term of the run that ``config`` describes, on its first batch.

    Raises:
        UserError: its encoding has no table of contextual positions.
    """
    experiment = Experiment(config)
    encoding = experiment.model.encoding
    if not isinstance(encoding, Contextual):
        raise UserError(f"pe={config.pe.name} has no table of contextual positions; allowed: cope and its variants.")
    seen = _Seen(encoding)
    batches = TrainingBatches(experiment.task, config.seed, experiment.trainer.batch_size)
    (batch,) = batches.at(0).parts
    loss = _loss(experiment.model, batch)
    optimizer = experiment.optimizer.build(experiment.model.parameters(), torch.device("cpu"), in_graphs=False)
    loss.backward()
    gate_gradient = _root_mean_square([gates.grad for gates in seen.gates if gates.grad is not None])
    assert encoding.tables.grad is not None
    table_gradient = _root_mean_square([encoding.tables.grad])
    before = [term.detach() for term in seen.terms]
    optimizer.step()
    seen.clear()
    _loss(experiment.model, batch)
    after = [term.detach() for term in seen.terms]
    changes = [new - old for new, old in zip(after, before, strict=True)]
    return PositionTerm(
        _root_mean_square(before), _root_mean_square(changes), table_gradient, gate_gradient, float(loss.detach())
    )


def _loss(model: torch.nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.inputs, batch.where).float(), batch.targets)


def _root_mean_square(parts: list[Tensor]) -> float:
    if not parts:
        return 0.0
    return float(torch.cat([part.flatten() for part in parts]).square().mean().sqrt())


class _Seen:
    """Makes ``encoding`` attend by its plain formula, and keeps what it computes on the way."""

    def __init__(self, encoding: Contextual) -> None:
        self.terms: list[Tensor] = []
        self.gates: list[Tensor] = []
        real_bias, real_gates = encoding.bias, encoding.gates_and_positions

        def gates_and_positions(_: Contextual, heads: Heads) -> tuple[Tensor, Tensor]:
            gates, positions = real_gates(heads)
            gates.retain_grad()
            self.gates.append(gates)
            # Positions again, from the gates that are kept: theirs is the gradient that is wanted.
            counted = gates.flip(-1).cumsum(-1).flip(-1)
            return gates, counted.clamp(max=positions.new_tensor(encoding.table(heads.layer).shape[0] - 1))

        def bias(_: Contextual, heads: Heads, logits: Tensor) -> Tensor:
            term = real_bias(heads, logits)
            visible = causal_mask(logits.shape[-2], logits.shape[-1], logits.device).expand_as(term)
            self.terms.append(term[visible])
            return term

        def attend(own: Contextual, heads: Heads, dropout: float) -> Tensor:
            return PositionEncoding._attend_block(own, heads, dropout)

        for name, function in (("gates_and_positions", gates_and_positions), ("bias", bias), ("attend", attend)):
            setattr(encoding, name, MethodType(function, encoding))

    def clear(self) -> None:
        """Forget what was kept."""
        self.terms.clear()
        self.gates.clear()
