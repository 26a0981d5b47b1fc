"""What the cache of keys and values saves when text is generated, and how the time
of a token grows with those before it.

    python benchmarks/generation.py
    # a shorter sequence, fewer lengths
    python benchmarks/generation.py context=64 lengths=128,256

Measured in one process with one thread, in turn, on this machine; ratios count,
not times. Each figure is the median of five rounds, after one to warm up.
Writes ``outputs/benchmark/generation.json``.

    context=256                     tokens of the sequence that is generated
                                    from its first token on
    lengths=128,256,512,...,4096    tokens before the one that is timed
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__)  # before anything slow is imported

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from candidates import cope_encoding
from timing import medians, write_result

from cope.cli import read_settings, run_command
from cope.errors import check_between
from cope.model.generate import generate
from cope.model.transformer import Transformer
from cope.positions.absolute import Absolute
from cope.positions.base import ModelShape, PositionEncoding
from cope.positions.relative import Relative
from cope.positions.rotary import Rotary

REPEATS = 5
LONGEST = 4096
VOCABULARY = 4096
SHAPE = ModelShape(dim=128, num_layers=4, num_heads=4, context=LONGEST + REPEATS + 2, longest=LONGEST + REPEATS + 2)
ENCODINGS: dict[str, Callable[[], PositionEncoding]] = {
    "absolute": lambda: Absolute(SHAPE, beyond="error"),
    "rope": lambda: Rotary(SHAPE, base=10_000.0),
    "relative": lambda: Relative(SHAPE, beyond="error", backend="auto"),
    "cope": lambda: cope_encoding(SHAPE),
    "cope, blockwise": lambda: cope_encoding(SHAPE, backend="blockwise"),
    "cope, separate keys": lambda: cope_encoding(SHAPE, gates="separate_keys"),
}


def with_cache(model: Transformer, context: int) -> list[int]:
    return [0, *generate(model, [0], context - 1, temperature=0.0, generator=torch.Generator())]


@torch.no_grad()
def without_cache(model: Transformer, context: int) -> list[int]:
    """The same tokens, each from a pass over all before it."""
    tokens = [0]
    while len(tokens) < context:
        last = torch.tensor([len(tokens) - 1])
        tokens.append(int(model(torch.tensor([tokens]), last).argmax()))
    return tokens


@dataclass(frozen=True)
class GenerationSettings:
    context: int = 256  # tokens of the sequence that is generated from its first token on
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)  # tokens before the one that is timed

    def __post_init__(self) -> None:
        for key, value in (("context", self.context), ("lengths", min(self.lengths))):
            check_between(key, value, 2, LONGEST)


def main(arguments: list[str]) -> None:
    settings = read_settings(arguments, GenerationSettings, "python benchmarks/generation.py")
    context = settings.context
    torch.set_num_threads(1)
    models = {}
    for label, make in ENCODINGS.items():
        torch.manual_seed(0)
        models[label] = Transformer(VOCABULARY, make()).eval()
    rows = []
    for label, model in models.items():
        seconds = medians(
            {"with": partial(with_cache, model, context), "without": partial(without_cache, model, context)}, REPEATS
        )
        rates = {name: (context - 1) / value for name, value in seconds.items()}
        rows.append({"encoding": label, "tokens_per_s": rates, "ratio": seconds["without"] / seconds["with"]})
        print(f"{label}: {rates['with']:.0f} tokens/s, without the cache {rates['without']:.0f}: {rows[-1]['ratio']:.1f} times")
    growth: list[dict[str, object]] = []
    for length in settings.lengths:
        prompt = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(0)).tolist()
        steps = {}
        for label, model in models.items():
            tokens = generate(model, prompt, REPEATS + 2, temperature=0.0, generator=torch.Generator())
            next(tokens)  # reads the prompt
            steps[label] = partial(next, tokens)
        milliseconds = {label: 1000 * value for label, value in medians(steps, REPEATS).items()}
        growth.append({"tokens_before": length, "ms_per_token": milliseconds})
        print(f"after {length} tokens, ms a token: " + ", ".join(f"{label} {t:.2f}" for label, t in milliseconds.items()))
    write_result("generation", {"context": context, "rows": rows, "growth": growth}, REPEATS)


if __name__ == "__main__":
    run_command(main, __doc__)
