"""CoPE in models of Hugging Face ``transformers`` (the extra ``transformers``).

    from transformers import AutoModelForCausalLM
    from cope.huggingface import add_cope, from_pretrained

    model = add_cope(AutoModelForCausalLM.from_pretrained("..."), num_positions=64)
    ...                                   # train; model.generate(...) works as before
    model.save_pretrained("folder")
    model = from_pretrained("folder")

Every attention module gets a table of position vectors as a parameter, ``cope_table``, that starts from 0: with the model's own
positions kept, nothing changes until it is trained. Attention is :func:`cope.cope_attention`, under the name ``cope`` in
``AttentionInterface``; padding reaches it by a function of the same name in ``AttentionMaskInterface``. Decoder models are
served whose layers attend to all earlier tokens; whatever else a model asks for is refused, never left out. (Loaded by
``transformers``' own ``from_pretrained``, a saved model has no tables, of which it warns.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, PreTrainedModel
from transformers.masking_utils import causal_mask_function

from cope.errors import UserError, check_at_least, check_choice
from cope.functional import SCALES, cope_attention
from cope.meter import PositionUse, position_use

NAME = "cope"
# What some models hand to their attention and this one does not do.
REFUSED = (
    "sliding_window", "softcap", "s_aux", "sinks", "position_bias", "head_mask", "indices", "block_indices", "cu_seq_lens_q"
)  # fmt: skip
# Where a model is to be found, which its config needs to be told as well.
WHERE = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download", "trust_remote_code")

Model = TypeVar("Model", bound=PreTrainedModel)


def add_cope(model: Model, num_positions: int, *, scale: str = "released", keep_positions: bool = True) -> Model:
    """Give every attention module of ``model`` a table of ``num_positions`` vectors, and make CoPE its attention.

    Args:
        num_positions: positions beyond the last are clamped to it.
        scale: as in :func:`cope.cope_attention`.
        keep_positions: whether the model's rotary positions stay; without them CoPE alone says where tokens stand. Learned
            absolute positions are part of the embeddings and stay in any case.

    Returns:
        ``model`` itself, changed. ``model.config.contextual_positions`` notes the arguments, for :func:`from_pretrained`.

    Raises:
        UserError: the model has CoPE already, has no attention that can be exchanged, or no rotary positions to turn off.
    """
    check_at_least("num_positions", num_positions, 1)
    check_choice("scale", scale, SCALES)
    if (noted := getattr(model.config, "contextual_positions", None)) is not None:
        if any(hasattr(module, "cope_table") for module in model.modules()):
            raise UserError(f"this {type(model).__name__} has CoPE already: {noted}.")
        raise UserError(
            f"this {type(model).__name__} was saved with CoPE ({noted}) and loaded without its tables; load it with "
            "cope.huggingface.from_pretrained."
        )
    _equip(model, num_positions, scale, keep_positions)
    model.config.contextual_positions = {"num_positions": num_positions, "scale": scale, "keep_positions": keep_positions}
    return model


def from_pretrained(path: str, **settings: Any) -> Any:
    """A model with CoPE that ``save_pretrained`` wrote.

    Args:
        path: the folder, or a name on a hub.
        **settings: of the model class's own ``from_pretrained``, which decide what is returned as they do there.

    Raises:
        UserError: a model that was saved without CoPE, or without its tables.
    """
    config = settings.pop("config", None)
    if config is None:
        config = AutoConfig.from_pretrained(path, **{key: settings[key] for key in WHERE if key in settings})
    if getattr(config, "contextual_positions", None) is None:
        raise UserError(f"{path} was saved without CoPE; load it with transformers, then: add_cope(model, num_positions=...).")
    plain = getattr(transformers, config.architectures[0])

    def make(self: PreTrainedModel, config: Any, *arguments: Any, **others: Any) -> None:
        plain.__init__(self, config, *arguments, **others)
        _equip(self, **config.contextual_positions)

    # Tables must be there before weights are read, wherever those are put: a class of the same name, and the same in all else.
    with_cope: Any = type(plain.__name__, (plain,), {"__init__": make, "__module__": plain.__module__})
    loaded, found = with_cope.from_pretrained(path, config=config, **settings | {"output_loading_info": True})
    if lost := sorted(key for key in found["missing_keys"] if key.endswith("cope_table")):  # a set of strings has no order
        raise UserError(
            f"{path} lacks {lost[0]}: its config names CoPE, but what saved its weights left the tables out; allowed: a model "
            "that save_pretrained wrote."
        )
    return (loaded, found) if settings.get("output_loading_info") else loaded


@contextmanager
def measuring(model: PreTrainedModel) -> Iterator[list[PositionUse]]:
    """Inside, every call of the model adds to the list that is given: of each layer, how much its logits use the table.

    with measuring(model) as uses:
        model(**inputs)
    print(*uses, sep="\n")  # in short; use.share and use.unused have every number
    """
    uses: list[PositionUse] = []
    modules = [module for module in model.modules() if hasattr(module, "cope_table")]

    def note(module: nn.Module, query: Tensor, key: Tensor, key_mask: Tensor | None) -> None:
        found = position_use(query, key, module.cope_table, key_mask=key_mask, scale=str(module.cope_scale))  # type: ignore[arg-type]  # a Tensor
        layer = modules.index(module)
        if layer == len(uses):
            uses.append(found)
        else:
            uses[layer] = uses[layer] + found

    for module in modules:
        module.cope_note = note
    try:
        yield uses
    finally:
        for module in modules:
            del module.cope_note


def _equip(model: PreTrainedModel, num_positions: int, scale: str, keep_positions: bool) -> None:
    modules = [module for module in model.modules() if hasattr(module, "is_causal") and hasattr(module, "layer_idx")]
    sizes = [getattr(module, "head_dim", None) or getattr(module, "head_size", None) for module in modules]
    if not modules or None in sizes or not model._can_set_attn_implementation():
        raise UserError(
            f"{type(model).__name__} has no attention that can be exchanged; allowed: decoder models that attend through "
            "transformers' AttentionInterface, such as Llama, GPT-NeoX and GPT-2."
        )
    if not keep_positions:
        _turn_off_rotation(model)
    for module, head_dim in zip(modules, map(int, filter(None, sizes)), strict=True):
        weight = next(module.parameters())
        module.cope_table = nn.Parameter(torch.zeros(num_positions, head_dim, dtype=weight.dtype, device=weight.device))
        module.cope_scale = scale
    model.set_attn_implementation(NAME)


class _NoRotation(nn.Module):
    """In place of a module of rotary positions: every angle is 0."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary  # which knows how many angles there are

    def forward(self, *arguments: Any, **others: Any) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary(*arguments, **others)
        return torch.ones_like(cos), torch.zeros_like(sin)


def _turn_off_rotation(model: PreTrainedModel) -> None:
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__.endswith("RotaryEmbedding")
    ]
    if not found:
        raise UserError(
            f"keep_positions=False: {type(model).__name__} has no rotary positions to turn off; allowed: keep_positions=True."
        )
    for parent, name, child in found:
        setattr(parent, name, _NoRotation(child))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What ``AttentionInterface`` calls: (batch, heads, time, size) in, (batch, time, heads, size) out, and no weights.

    Args:
        attention_mask: (batch, key), of :func:`key_mask`.
    """
    table = getattr(module, "cope_table", None)
    if table is None:
        raise UserError(f"{type(module).__name__} has no table of positions: call cope.huggingface.add_cope(model, ...) first.")
    is_causal = others.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise UserError(
            f"{type(module).__name__} attends in both directions, or to another sequence; allowed: attention to all earlier "
            "tokens."
        )
    if unknown := [name for name in REFUSED if others.get(name) is not None]:
        raise UserError(
            f"{', '.join(unknown)}: this model's attention does what CoPE's does not; allowed: plain causal attention."
        )
    if attention_mask is not None:
        if attention_mask.dim() != 2:
            raise UserError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; allowed: (batch, time), 1 for tokens that are there."
            )
        # A cache of fixed size has room for tokens that are still to come.
        key, value = key[:, :, : attention_mask.shape[1]], value[:, :, : attention_mask.shape[1]]
    if scaling is not None and not math.isclose(scaling * math.sqrt(query.shape[-1]), 1.0):
        query = query * (scaling * math.sqrt(query.shape[-1]))
    if note := getattr(module, "cope_note", None):
        note(module, query, key, attention_mask)
    output = cope_attention(query, key, value, table, key_mask=attention_mask, scale=str(module.cope_scale), dropout=dropout)
    return output.transpose(1, 2), None


def key_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Tensor | None:
    """What ``AttentionMaskInterface`` calls: (batch, key) bool, True for tokens that are there; None where all are.

    The names of the arguments are ``transformers``' own.
    """
    if mask_function is not causal_mask_function:
        raise UserError(
            "this model asks for another mask than the causal one (a sliding window, packed sequences, both directions); "
            "allowed with CoPE: attention to all earlier tokens. Packed sequences are told apart by an attention_mask of ones."
        )
    num_keys = int(q_offset) + q_length - kv_offset  # up to the last query
    if attention_mask is None:
        return None if num_keys == kv_length else torch.ones(batch_size, num_keys, dtype=torch.bool, device=device)
    if attention_mask.shape[1] < min(num_keys, kv_length):
        raise UserError(
            f"attention_mask has {attention_mask.shape[1]} tokens, of {num_keys} that are attended to; allowed: all of them, "
            "those in the cache included."
        )
    attention_mask = attention_mask[:, -kv_length:][:, :num_keys]
    return None if num_keys == kv_length and bool(attention_mask.all()) else attention_mask


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, key_mask)
