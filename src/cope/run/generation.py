"""What ``generate.py`` does: a trained run's model continues a prompt, as text that grows while tokens are drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cope.errors import UserError, check_at_least, counted
from cope.model.generate import check_sampling, generate
from cope.run.folder import RunFolder
from cope.run.trained import load_trained
from cope.seeding import stream_seed

log = logging.getLogger(__name__)

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer puts where bytes are no character, or not yet one


@dataclass(frozen=True)
class GenerationSettings:
    """The keys of ``generate.py``; those of sampling are those of :func:`cope.model.generate.generate`.

    Args:
        run: the run's folder.
        seed: of the draws: the same seed, settings and run give the same text.
        stream: show each piece of text as it comes, not all of it at the end.
    """

    run: Path
    prompt: str
    num_tokens: int = 200
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 1
    stream: bool = True

    def __post_init__(self) -> None:
        if not self.prompt:
            raise UserError("prompt= is empty; allowed: the text to be continued.")
        check_sampling(self.num_tokens, self.temperature, self.top_k, self.top_p)
        check_at_least("seed", self.seed, 0)


def text_pieces(settings: GenerationSettings) -> Iterator[str]:
    """The prompt as the model reads it, then what it adds to it, piece by piece.

    Raises:
        UserError: at once: no such run, a prompt that its task has no tokens for, or more tokens than its encoding has
            positions for.
    """
    trained = load_trained(RunFolder(settings.run))
    try:
        prompt = trained.task.encode(settings.prompt)
    except UserError as error:
        raise UserError(f"prompt: {error}") from error
    if not prompt:
        raise UserError(f"prompt={settings.prompt!r} has no token of task={trained.task.name}; allowed: at least one.")
    try:
        tokens = generate(
            trained.model.to("cuda" if torch.cuda.is_available() else "cpu"),
            prompt,
            settings.num_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            stop=trained.task.separator,
            generator=torch.Generator().manual_seed(stream_seed(settings.seed, "generation")),
        )
    except UserError as error:
        read = counted(len(prompt), "token")
        raise UserError(f"num_tokens={settings.num_tokens} after a prompt of {read}: {error}") from error
    num_read, trained_length = len(prompt) + settings.num_tokens - 1, trained.model.encoding.shape.context
    if trained.model.encoding.num_untrained and num_read > trained_length:
        log.warning(
            "the model will read %d tokens, but this encoding's positions are trained for %d: the rest is written with "
            "untrained ones.", num_read, trained_length,
        )  # fmt: skip
    return _as_text(trained.task.decode, prompt, tokens)


def _as_text(decode: Callable[[Sequence[int]], str], prompt: list[int], tokens: Iterable[int]) -> Iterator[str]:
    """What each token adds to the text.

    A token has no text of its own: a word comes with a space unless it is the first, and a character may be made of several
    tokens. So the text of two neighbouring pieces together is compared with that of the first alone, and a piece whose last
    character is not whole yet waits for the next token.
    """
    before, new, shown = prompt, list[int](), decode(prompt)
    yield shown
    for token in tokens:
        new.append(token)
        text = decode([*before, *new])
        if not text.endswith(REPLACEMENT):
            yield text[len(shown) :]
            before, new, shown = new, [], decode(new)
    if new:  # it ends within a character
        yield decode([*before, *new])[len(shown) :]
