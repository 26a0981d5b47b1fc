"""Rotations by what was read: RoPE's turning of queries and keys, by angles that the model makes of its tokens.

    logit_ij = (R(angle_i) q_i) . (R(angle_j) k_j) / sqrt(d)

Selective RoPE and MapFormer sum up an angle for each token, RePo gives each token a position of its own. The cost is ordinary
attention's and that of the angles: head_dim / 2 for each token and head. When decoding with a cache, all keys are turned again
at each token, which keeps what is cached to numbers of each token alone. Defined for any length.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cope.errors import check_at_least
from cope.positions.base import Heads, ModelShape, PositionEncoding
from cope.positions.rotary import check_even_head_size

log = logging.getLogger(__name__)


class ContentRotary(PositionEncoding):
    """What they share. Subclasses give the angles."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__(shape)
        check_even_head_size(shape)

    @abstractmethod
    def angles(self, heads: Heads) -> Float[Tensor, "... key half_head_dim"]:
        """The angle of each pair of dimensions at each token, in float32 or better."""

    def transform(self, heads: Heads) -> Heads:
        angle = self.angles(heads)
        cos, sin = angle.cos().to(heads.q.dtype), angle.sin().to(heads.q.dtype)
        num_queries = heads.q.shape[-2]
        q = _turned(heads.q, cos[..., -num_queries:, :], sin[..., -num_queries:, :])
        return heads._replace(q=q, k=_turned(heads.k, cos, sin))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As in ``rotary.py``, but with a gradient for the angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _by_head(x: Tensor, num_heads: int) -> Tensor:
    """(batch, time, heads x size) -> (batch, heads, time, size), in float32 or better: what is summed up later."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (num_heads, -1)).transpose(1, 2)


def short_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """Each channel's own causal convolution: (batch, heads, time, size) with weights (heads x size, 1, width)."""
    channels = x.transpose(-1, -2).flatten(1, 2)  # (batch, heads x size, time)
    convolved = F.conv1d(F.pad(channels, (weight.shape[-1] - 1, 0)), weight.to(x.dtype), groups=channels.shape[1])
    return convolved.unflatten(1, (x.shape[1], x.shape[3])).transpose(-1, -2)


def convolution_weights(num_layers: int, num_channels: int, width: int) -> nn.Parameter:
    """For each layer, as PyTorch starts such a layer."""
    return nn.Parameter((2 * torch.rand(num_layers, num_channels, 1, width) - 1) * width**-0.5)


class SelectiveRotary(ContentRotary):
    """Selective RoPE (Movahedi et al. 2025, arXiv 2511.17388; code: timurcarstensen/selective-rope).

    angle_t = temperature * sum of phi up to t, phi = gate * (convolution(W_up W_down norm(x)) + exp(offset)): x of unit length
    in each head's share of it, a bottleneck of ``rank``, a short causal convolution, a sigmoid gate of each head.
    ``temperature`` is RoPE's frequencies, fixed.

    Args:
        rank: of the bottleneck; the authors' 16.
        width: tokens of the convolution; the authors' 4.
        base: RoPE's; the authors' 500,000.
        gate: with the sigmoid gate, as in the authors' language models; their class has none by default.
        offset: with the learned offset, exp(0) at the start: RoPE, as far as phi is small.
    """

    temperature: Tensor

    def __init__(self, shape: ModelShape, *, rank: int, width: int, base: float, gate: bool, offset: bool) -> None:
        super().__init__(shape)
        check_at_least("pe.rank", rank, 1)
        check_at_least("pe.width", width, 1)
        check_at_least("pe.base", base, 1.0)
        self.pairs, layers = shape.head_dim // 2, range(shape.num_layers)
        channels = shape.num_heads * self.pairs
        self.down = nn.ModuleList(nn.Linear(shape.dim, rank, bias=False) for _ in layers)
        self.up = nn.ModuleList(nn.Linear(rank, channels, bias=False) for _ in layers)
        self.convolutions = convolution_weights(shape.num_layers, channels, width)
        self.gates = nn.ModuleList(nn.Linear(shape.dim, shape.num_heads) for _ in layers) if gate else None
        self.offset = nn.Parameter(torch.zeros(shape.num_layers, shape.num_heads, 1, self.pairs)) if offset else None
        self.register_buffer("temperature", base ** -(torch.arange(self.pairs) / self.pairs))

    def project(self, x: Tensor, layer: int) -> Tensor:
        heads = self.shape.num_heads
        x = F.normalize(x.unflatten(-1, (heads, -1)), dim=-1).flatten(-2)
        phi = _by_head(self.up[layer](self.down[layer](x)), heads)
        return phi if self.gates is None else torch.cat([phi, _by_head(self.gates[layer](x), heads)], dim=-1)

    def angles(self, heads: Heads) -> Tensor:
        assert heads.projected is not None
        phi = short_convolution(heads.projected[..., : self.pairs], self.convolutions[heads.layer])
        if self.offset is not None:
            phi = phi + self.offset[heads.layer].exp()
        if self.gates is not None:
            phi = phi * heads.projected[..., self.pairs :].sigmoid()
        return self.temperature * phi.cumsum(-2)


class MapFormer(ContentRotary):
    """MapFormer's working memory (Rambaud et al. 2025, arXiv 2511.19279): the path is integrated as a rotation.

    angle_t = omega * sum of W_out W_in x up to t. Increments have signs, so that one token can undo another: what gates that
    only add cannot. omega, one for each layer, head and pair of dimensions, is learned and at most 2 pi; it starts
    geometrically from 2 pi to 2 pi / ``longest``.

    Open in the description: whether all layers use the increments of the embeddings, or each its own; here each its own.

    Args:
        rank: of the bottleneck between x and increments.
        longest: wavelength of the slowest pair, in increments of 1; the authors' grid has 64 cells.
    """

    def __init__(self, shape: ModelShape, *, rank: int, longest: float) -> None:
        super().__init__(shape)
        check_at_least("pe.rank", rank, 1)
        check_at_least("pe.longest", longest, 1.0)
        half, layers = shape.head_dim // 2, range(shape.num_layers)
        self.inputs = nn.ModuleList(nn.Linear(shape.dim, rank, bias=False) for _ in layers)
        self.outputs = nn.ModuleList(nn.Linear(rank, shape.num_heads * half, bias=False) for _ in layers)
        omega = 2 * math.pi * longest ** -torch.linspace(0, 1, half)
        self.omega = nn.Parameter(omega.repeat(shape.num_layers, shape.num_heads, 1, 1))

    def project(self, x: Tensor, layer: int) -> Tensor:
        return _by_head(self.outputs[layer](self.inputs[layer](x)), self.shape.num_heads)

    def angles(self, heads: Heads) -> Tensor:
        assert heads.projected is not None
        return self.omega[heads.layer].clamp(max=2 * math.pi) * heads.projected.cumsum(-2)


class Repositioned(ContentRotary):
    """RePo (2025, arXiv 2512.14391; code: SakanaAI/repo): RoPE at real-valued positions that each head makes of each token.

    position_t = W_h (silu(W_gate x_t) * W_content x_t), with a bottleneck of dim / 8 that the heads share, not summed up. The
    first layers keep RoPE's own positions: where all positions come from the tokens alone, order is seen through the causal
    mask only.

    Args:
        base: as RoPE's.
        first_layer: of those with such positions; the authors' 5 of 16.
        init_std: standard deviation of the three matrices at the start; the authors' 0.02.
    """

    def __init__(self, shape: ModelShape, *, base: float, first_layer: int, init_std: float) -> None:
        super().__init__(shape)
        check_at_least("pe.base", base, 1.0)
        check_at_least("pe.first_layer", first_layer, 0)
        check_at_least("pe.init_std", init_std, 0.0)
        if first_layer >= shape.num_layers:
            log.warning("repo: with pe.first_layer=%d every layer has RoPE's positions, of %d", first_layer, shape.num_layers)
        self.base = base
        self.first_layer = first_layer
        width = max(1, shape.dim // 8)
        sizes = [(shape.dim, width), (shape.dim, width), (width, shape.num_heads)]
        self.networks = nn.ModuleList(
            nn.ModuleList(nn.Linear(*size, bias=False) for size in sizes) for _ in range(first_layer, shape.num_layers)
        )
        for parameter in self.networks.parameters():
            nn.init.normal_(parameter, std=init_std)

    def project(self, x: Tensor, layer: int) -> Tensor | None:
        if layer < self.first_layer:
            return None
        network = self.networks[layer - self.first_layer]
        assert isinstance(network, nn.ModuleList)
        gate, content, output = network
        return _by_head(output(F.silu(gate(x)) * content(x)), self.shape.num_heads)

    def angles(self, heads: Heads) -> Tensor:
        half = heads.q.shape[-1] // 2
        frequency = self.base ** -(torch.arange(half, device=heads.q.device, dtype=torch.float32) / half)
        own = heads.projected
        place = torch.arange(heads.k.shape[-2], device=heads.q.device, dtype=torch.float32)[:, None] if own is None else own
        return place * frequency
