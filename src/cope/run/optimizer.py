"""The optimiser, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from cope.errors import UserError, check_at_least, check_between, check_choice

ALGORITHMS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class OptimizerSettings:
    """The keys of ``optimizer``.

    Args:
        algorithm: ``adam`` or ``adamw``.
        lr: learning rate at its highest.
        beta1, beta2, epsilon, weight_decay: as in PyTorch.
        schedule: after warm-up ``constant``, or down to ``final_fraction`` of ``lr`` at the last step: ``linear``, ``cosine``,
            or ``wsd``, which stays at ``lr`` and falls linearly over the last fifth of the steps (``cope.run.stopping``).
        warmup_steps: steps over which the rate rises linearly from 0.
        clip_norm: largest norm of the gradient; null does not clip.
    """

    algorithm: str
    lr: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    schedule: str
    warmup_steps: int
    final_fraction: float
    clip_norm: float | None

    def __post_init__(self) -> None:
        check_choice("optimizer.algorithm", self.algorithm, ALGORITHMS)
        check_choice("optimizer.schedule", self.schedule, ["constant", "linear", "cosine", "wsd"])
        if not (0 < self.lr < math.inf):
            raise UserError(f"optimizer.lr={self.lr} is out of range; allowed: above 0.")
        check_between("optimizer.beta1", self.beta1, 0.0, 0.9999999)
        check_between("optimizer.beta2", self.beta2, 0.0, 0.9999999)
        check_at_least("optimizer.epsilon", self.epsilon, 0.0)
        check_at_least("optimizer.weight_decay", self.weight_decay, 0.0)
        check_at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        check_between("optimizer.final_fraction", self.final_fraction, 0.0, 1.0)
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise UserError(f"optimizer.clip_norm={self.clip_norm} is out of range; allowed: above 0, or null.")

    def build(self, parameters: Iterable[nn.Parameter], device: torch.device, in_graphs: bool) -> torch.optim.Optimizer:
        """The PyTorch optimiser over ``parameters``, which will be on ``device``.

        Args:
            in_graphs: steps will be recorded as CUDA graphs, which read the learning rate from the device.
        """
        return ALGORITHMS[self.algorithm](
            parameters,
            lr=torch.tensor(self.lr, device=device) if in_graphs else self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            fused=True if device.type == "cuda" else None,  # one kernel for all weights
            capturable=in_graphs,
        )

    def learning_rate(self, step: int, num_steps: int, decay_from: int) -> float:
        """The rate of step ``step`` (from 0) of ``num_steps``; ``schedule=wsd`` falls from step ``decay_from`` on."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant" or (self.schedule == "wsd" and step < decay_from):
            return self.lr
        if self.schedule == "wsd":
            fall = (num_steps - 1 - step) / max(1, num_steps - decay_from)
            return self.lr * (self.final_fraction + (1.0 - self.final_fraction) * fall)
        if self.schedule == "linear":
            fall = (num_steps - 1 - step) / max(1, num_steps - 1 - self.warmup_steps)
        else:
            progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
            fall = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.lr * (self.final_fraction + (1.0 - self.final_fraction) * fall)
