"""Continues a sequence token by token with a cache of earlier keys and values.

Why a cache: without one every new token costs a pass over the whole sequence. With it the prompt is read in one pass, and each
further token in a pass of its own, whose attention alone grows with the sequence.

What is drawn from: the logits divided by the temperature, cut to the ``top_k`` largest (Fan et al. 2018, arXiv 1805.04833),
then to the most probable that reach a mass of ``top_p`` together (Holtzman et al. 2020, arXiv 1904.09751), in that order and
with the edges that Hugging Face's ``transformers`` gives them, so that settings found elsewhere mean the same here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cope.errors import UserError, check_at_least
from cope.model.transformer import LayerCache, Transformer


def check_sampling(num_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise UserError unless tokens can be drawn with these settings."""
    check_at_least("num_tokens", num_tokens, 1)
    check_at_least("temperature", temperature, 0.0)
    if top_k is not None:
        check_at_least("top_k", top_k, 1)
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise UserError(f"top_p={top_p} is out of range; allowed: above 0, up to 1, or null.")


def generate(
    model: Transformer,
    tokens: Sequence[int],
    num_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator,
    stop: int | None = None,
) -> Iterator[int]:
    """The tokens that follow ``tokens``, each as soon as it is drawn.

    Args:
        model: is put in evaluation mode, and stays on its device.
        tokens: ids of the prompt, at least one.
        num_tokens: how many to draw.
        temperature: divides the logits; 0 takes the most probable token and draws nothing.
        top_k: draw from so many of the most probable tokens alone (and those that tie with the last); None: from all.
        top_p: draw from the fewest most probable tokens whose probabilities reach this together; None: from all.
        generator: on the CPU, where tokens are drawn whatever the model's device: it alone decides what is drawn.
        stop: a token that ends the sequence early; it is not handed out itself.

    Raises:
        UserError: at once, not with the first token: a setting out of range, an empty prompt, or a sequence longer than the
            encoding is defined for.
    """
    check_sampling(num_tokens, temperature, top_k, top_p)
    if not tokens:
        raise UserError("the prompt has no token; allowed: one or more.")
    model.encoding.check_length(len(tokens) + num_tokens - 1)  # the last token is only predicted, not read
    model.eval()

    def drawn() -> Iterator[int]:
        caches, newest, start = model.empty_caches(), list(tokens), 0
        for _ in range(num_tokens):
            logits = _next_logits(model, newest, start, caches)
            start += len(newest)
            token = _draw(logits, temperature, top_k, top_p, generator)
            if token == stop:
                return
            yield token
            newest = [token]

    return drawn()


# Around each step, not the whole: inside a generator, no_grad would hold for its consumer too.
@torch.no_grad()
def _next_logits(model: Transformer, newest: list[int], start: int, caches: list[LayerCache]) -> Float[Tensor, " vocab"]:
    """Logits of the token after ``newest``, which stand at ``start`` and are added to ``caches``; on the CPU."""
    ids = torch.tensor([newest], device=model.embedding.weight.device)
    # The output layer at every token would cost more than the rest where the vocabulary is large.
    last = torch.tensor([len(newest) - 1], device=ids.device)
    logits: Tensor = model(ids, last, start, caches)
    return logits[0].cpu()


def _draw(
    logits: Float[Tensor, " vocab"], temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    return int(probabilities(logits, temperature, top_k, top_p).multinomial(1, generator=generator))


def probabilities(
    logits: Float[Tensor, " vocab"], temperature: float, top_k: int | None, top_p: float | None
) -> Float[Tensor, " vocab"]:
    """What a token is drawn from, float64: 0 for what is cut off; what is left need not sum to 1."""
    # The largest is made 0 first: divided by a tiny temperature the others go to -inf, and none to +inf.
    scores = (logits.double() - logits.max()) / temperature
    if top_k is not None:
        scores[scores < scores.topk(min(top_k, len(scores))).values[-1]] = -torch.inf
    found = scores.softmax(-1)
    if top_p is not None:
        ordered, order = found.sort(descending=True, stable=True)
        mass_before = ordered.cumsum(-1) - ordered
        found[order[mass_before >= top_p]] = 0.0
    return found
