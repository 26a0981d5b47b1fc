"""Numbers by distance, added to the logits: ALiBi, T5's buckets, KERPLE.

    logit_ij = q_i . k_j / sqrt(d) + b_h(i - j)

Since b depends on head and distance alone, the kernels of :func:`cope.functional.distance_attention` serve all of them, at the
cost of attention without position.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cope.errors import check_at_least, check_choice
from cope.functional import BACKENDS, distance_attention
from cope.kernels.reference import by_distance
from cope.positions.base import Heads, ModelShape, PositionEncoding

LEAST = 1e-2  # KERPLE's parameters are kept from it up


class DistanceBias(PositionEncoding):
    """What they share. Subclasses give the numbers.

    Args:
        backend: which implementation of :func:`cope.functional.distance_attention` runs.
    """

    def __init__(self, shape: ModelShape, *, backend: str) -> None:
        super().__init__(shape)
        check_choice("pe.backend", backend, ["auto", *BACKENDS])
        self.backend = backend

    @property
    def kernel(self) -> str | None:
        return self.backend

    @abstractmethod
    def numbers(self, layer: int, num_distances: int) -> Float[Tensor, "heads num_distances"]:
        """b_h(0), b_h(1), ... of a layer."""

    def bias(self, heads: Heads, logits: Tensor) -> Tensor:
        num_queries, num_keys = logits.shape[-2:]
        numbers = self.numbers(heads.layer, num_keys).to(logits.dtype)
        return by_distance(numbers[:, None, :].expand(-1, num_queries, -1), num_keys)

    def attend(self, heads: Heads, dropout: float) -> Tensor:
        numbers = self.numbers(heads.layer, heads.k.shape[-2])
        return distance_attention(heads.q, heads.k, heads.v, numbers, dropout=dropout, backend=self.backend)


class Alibi(DistanceBias):
    """ALiBi (Press et al. 2021, arXiv 2108.12409, section 3): b = -m_h (i - j), slopes m_h fixed.

    The slopes are 2^(-8/H), 2^(-16/H), ..., 2^-8; for H not a power of two, as in the authors' code, those of the power of two
    below, and every other one of twice that. Defined for any length: made to be trained short and tested long.
    """

    slopes: Tensor

    def __init__(self, shape: ModelShape, *, backend: str) -> None:
        super().__init__(shape, backend=backend)
        self.register_buffer("slopes", torch.tensor(alibi_slopes(shape.num_heads)))

    def numbers(self, layer: int, num_distances: int) -> Tensor:
        return -self.slopes[:, None] * torch.arange(num_distances, device=self.slopes.device)


def alibi_slopes(num_heads: int) -> list[float]:
    """One slope for each head, from the steepest."""
    power = 2 ** (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    return slopes if power == num_heads else slopes + alibi_slopes(2 * power)[::2][: num_heads - power]


class LogBuckets(DistanceBias):
    """T5's relative positions (Raffel et al. 2019, arXiv 1910.10683, section 2.1): b is learned for each head and bucket.

    Distances below half of ``num_buckets`` have a bucket each; from there on buckets grow with the logarithm, and the last
    takes all from ``max_distance`` on, beyond the trained length too. Buckets that no training sequence reaches keep their
    initial values. The layers share the numbers, as in T5. T5 itself does not divide q.k by sqrt(d); here it is divided.

    Args:
        num_buckets: T5's 32.
        max_distance: T5's 128.
        init_std: standard deviation of the initial numbers, from N(0, init_std^2); null is 1/sqrt(dim), as in T5's port to
            ``transformers``.
        backend: as in :class:`DistanceBias`.
    """

    def __init__(self, shape: ModelShape, *, num_buckets: int, max_distance: int, init_std: float | None, backend: str) -> None:
        super().__init__(shape, backend=backend)
        check_at_least("pe.num_buckets", num_buckets, 2)
        check_at_least("pe.max_distance", max_distance, num_buckets // 2 + 1)
        if init_std is not None:
            check_at_least("pe.init_std", init_std, 0.0)
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        std = shape.dim**-0.5 if init_std is None else init_std
        self.by_bucket = nn.Parameter(torch.randn(shape.num_heads, num_buckets) * std)
        reached = len(set(_buckets(shape.context, num_buckets, max_distance)))
        needed = len(set(_buckets(shape.longest, num_buckets, max_distance)))
        self.num_untrained = (needed - reached) * shape.num_heads

    def numbers(self, layer: int, num_distances: int) -> Tensor:
        buckets = _buckets(num_distances, self.num_buckets, self.max_distance)
        return self.by_bucket[:, torch.tensor(buckets, device=self.by_bucket.device)]


def _buckets(num_distances: int, num_buckets: int, max_distance: int) -> list[int]:
    """The bucket of each distance."""
    exact = num_buckets // 2
    growth = (num_buckets - exact) / math.log(max_distance / exact)
    return [
        distance if distance < exact else min(exact + int(math.log(distance / exact) * growth), num_buckets - 1)
        for distance in range(num_distances)
    ]


class KerpleLog(DistanceBias):
    """KERPLE's logarithmic kernel (Chi et al. 2022, arXiv 2205.09921): b = -p_h log(1 + a_h (i - j)).

    p and a are learned and at least 0.01; at the start p is from U(0, 2), a from U(0, 1), as in the authors' code. Each layer
    has its own. Defined for any length.
    """

    def __init__(self, shape: ModelShape, *, backend: str) -> None:
        super().__init__(shape, backend=backend)
        self.p = nn.Parameter(2 * torch.rand(shape.num_layers, shape.num_heads, 1))
        self.a = nn.Parameter(torch.rand(shape.num_layers, shape.num_heads, 1))

    def numbers(self, layer: int, num_distances: int) -> Tensor:
        distance = torch.arange(num_distances, device=self.p.device)
        return -_at_least(self.p[layer]) * torch.log1p(_at_least(self.a[layer]) * distance)


def _at_least(parameter: Tensor) -> Tensor:
    """Clamped from below, with the gradient of what is not: a parameter at the bound can come back, as where the authors clamp
    the stored number itself."""
    return parameter + (parameter.clamp(min=LEAST) - parameter).detach()
