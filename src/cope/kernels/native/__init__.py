"""CoPE attention for CPUs, in C++: start with ``csrc/attention.cpp``, which explains how it works.

This side turns PyTorch's tensors into what the C++ takes (sizes that fill whole vectors, one table entry for each distance that
occurs) and its results back.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cope.kernels.native.build import CannotBuild, library
from cope.kernels.operator import Arguments, empty_heads, make_operator

SIZE_MULTIPLE = 16  # of head_dim and value_dim in C++: whole vectors of every kind of processor
PANEL = 64  # keys to a panel in C++


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("time_stride", ctypes.c_int64),
    ]


_SIZES = ["batch", "num_heads", "num_key_heads", "num_queries", "num_keys", "head_dim", "value_dim", "num_positions"]
_HEADS = ["q", "k", "v", "gate_keys", "output", "grad_output", "dq", "dk", "dv", "dgate_keys"]


class _Arguments(ctypes.Structure):
    """Mirrors ``struct Arguments`` of attention.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_SIZES, "num_threads", "seed")),
        *((name, ctypes.c_float) for name in ("logit_scale", "table_scale", "dropout")),
        *((name, _Tensor) for name in _HEADS),
        *((name, ctypes.c_void_p) for name in ("table", "relative", "bias")),
        ("bias_head_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("key_mask", "log_sum_exp", "dtable", "drelative", "dbias")),
    ]


def load(path: Path) -> ctypes.CDLL:
    """A compiled kernel, ready to be called."""
    loaded = ctypes.CDLL(str(path))
    loaded.cope_instructions.restype = ctypes.c_char_p
    return loaded


@cache
def _loaded() -> ctypes.CDLL:
    return load(library())


@cache
def _cannot_build() -> str | None:
    try:
        _loaded()
    except (CannotBuild, OSError) as error:
        return str(error)
    return None


def missing(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the kernel cannot run on such tensors, as a clause; None if it can. Compiles it if that has not been done."""
    if device_type != "cpu":
        return f"it runs on CPU tensors, these are on {device_type}"
    if dtype != torch.float32:
        return f"it computes in float32, these tensors are {str(dtype).removeprefix('torch.')}"
    return _cannot_build()


class _Call:
    """The tensors of one call as C++ wants them."""

    def __init__(self, given: Arguments) -> None:
        q, k, v, table, gate_keys, relative, bias, table_scale, dropout, seed, key_mask = given
        num_keys = k.shape[-2]
        # No position is above the number of keys, and a look-up reads one entry further.
        self.table = None if table is None else _padded(table[: num_keys + 2]).contiguous()
        self.relative = None if relative is None else _padded(_by_distance(relative, num_keys, 0)).contiguous()
        self.bias = None if bias is None else _by_distance(bias, num_keys, 1).contiguous()
        self.heads = {
            name: _padded(tensor)
            for name, tensor in (("q", q), ("k", k), ("v", v), ("gate_keys", gate_keys))
            if tensor is not None
        }
        self.arguments = _Arguments(
            batch=q.shape[0],
            num_heads=q.shape[1],
            num_key_heads=k.shape[1],
            num_queries=q.shape[2],
            num_keys=num_keys,
            head_dim=self.heads["q"].shape[-1],
            value_dim=self.heads["v"].shape[-1],
            num_positions=0 if self.table is None else self.table.shape[0],
            num_threads=torch.get_num_threads(),
            seed=0 if seed is None else int(seed),
            logit_scale=1.0 / math.sqrt(q.shape[-1]),
            table_scale=table_scale,
            dropout=dropout,
            bias_head_stride=0 if self.bias is None or self.bias.shape[0] == 1 else num_keys,
        )
        # As floats, in whole panels, the last key first: the way the C++ walks.
        self.key_mask = None if key_mask is None else F.pad(key_mask.flip(-1).float(), (0, -num_keys % PANEL)).contiguous()
        for name in ("table", "relative", "bias", "key_mask"):
            self.pass_plain(name, getattr(self, name))
        for name, tensor in self.heads.items():
            self.pass_heads(name, tensor)

    def pass_plain(self, name: str, tensor: Tensor | None) -> None:
        """Hand over a contiguous tensor."""
        setattr(self.arguments, name, None if tensor is None else tensor.data_ptr())

    def pass_heads(self, name: str, tensor: Tensor) -> None:
        """Hand over a tensor (batch, heads, time, size) whose last dimension is contiguous."""
        self.heads[name] = tensor  # keeps it alive
        setattr(self.arguments, name, _Tensor(tensor.data_ptr(), *tensor.stride()[:3]))

    def run(self, function: Any) -> None:
        """Call C++, on at least one query."""
        if function(ctypes.byref(self.arguments)) != 0:
            raise MemoryError("cope attention: no memory left for the native kernel's scratch space")


def _padded(tensor: Tensor) -> Tensor:
    """The last dimension filled up with zeros to a whole number of vectors, and contiguous."""
    missing = -tensor.shape[-1] % SIZE_MULTIPLE
    if missing:
        return F.pad(tensor, (0, missing))
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _by_distance(tensor: Tensor, num_keys: int, dim: int) -> Tensor:
    """One entry for each of ``num_keys`` distances along ``dim``: the last serves all further ones."""
    distances = torch.arange(num_keys, device=tensor.device).clamp(max=tensor.shape[dim] - 1)
    return tensor.index_select(dim, distances)


def _from_distance(gradient: Tensor, like: Tensor, dim: int) -> Tensor:
    """The gradient of :func:`_by_distance`, in the shape of ``like``."""
    distances = torch.arange(gradient.shape[dim], device=gradient.device).clamp(max=like.shape[dim] - 1)
    shape = list(gradient.shape)
    shape[dim] = like.shape[dim]
    return gradient.new_zeros(shape).index_add_(dim, distances, gradient)


def _forward(given: Arguments) -> tuple[Tensor, Tensor]:
    q, v = given.q, given.v
    (log_sum_exp,) = _empty_saved(given)
    if q.numel() == 0:
        return empty_heads(q, v.shape[-1]), log_sum_exp
    call = _Call(given)
    output = empty_heads(q, call.heads["v"].shape[-1])
    call.pass_heads("output", output)
    call.pass_plain("log_sum_exp", log_sum_exp)
    call.run(_loaded().cope_forward)
    return _trimmed(output, v.shape[-1]), log_sum_exp


def _empty_saved(given: Arguments) -> list[Tensor]:
    return [given.q.new_empty(given.q.shape[:-1])]  # log-sum-exp


def _backward(grad_output: Tensor, given: Arguments, output: Tensor, log_sum_exp: Tensor) -> list[Tensor]:
    q, k, v, table, gate_keys, relative, bias, *_ = given
    if q.numel() == 0:
        return [gradient.zero_() for gradient in given.empty_gradients()]
    call = _Call(given)
    call.pass_heads("grad_output", _padded(grad_output))
    call.pass_heads("output", _padded(output))
    call.pass_plain("log_sum_exp", log_sum_exp.contiguous())
    # Laid out like the model's own tensors, with heads inside time.
    gradients = {"dq": empty_heads(call.heads["q"]), "dk": empty_heads(call.heads["k"]), "dv": empty_heads(call.heads["v"])}
    if gate_keys is not None:
        gradients["dgate_keys"] = empty_heads(call.heads["gate_keys"])
    for name, tensor in gradients.items():
        call.pass_heads(name, tensor)
    dtable = None if call.table is None else torch.zeros_like(call.table)
    drelative = None if call.relative is None else torch.zeros_like(call.relative)
    dbias = None if bias is None else q.new_zeros(*q.shape[:2], k.shape[-2])
    for name, plain in (("dtable", dtable), ("drelative", drelative), ("dbias", dbias)):
        call.pass_plain(name, plain)
    call.run(_loaded().cope_backward)

    found = [
        _trimmed(gradients["dq"], q.shape[-1]),
        _trimmed(gradients["dk"], q.shape[-1]),
        _trimmed(gradients["dv"], v.shape[-1]),
    ]
    if table is not None and dtable is not None:
        found.append(F.pad(dtable[:, : table.shape[1]], (0, 0, 0, table.shape[0] - dtable.shape[0])))
    if gate_keys is not None:
        found.append(_trimmed(gradients["dgate_keys"], q.shape[-1]))
    if relative is not None and drelative is not None:
        found.append(_from_distance(drelative[:, : relative.shape[1]], relative, 0))
    if bias is not None and dbias is not None:
        found.append(_from_distance(dbias.sum(0).sum_to_size(bias.shape[0], k.shape[-2]), bias, 1))
    return found


def _trimmed(tensor: Tensor, size: int) -> Tensor:
    """Without the zeros that :func:`_padded` added, in the same layout."""
    return tensor if tensor.shape[-1] == size else empty_heads(tensor, size).copy_(tensor[..., :size])


attention = make_operator("native", _forward, _backward, _empty_saved)
