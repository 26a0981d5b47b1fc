"""Why half a context teaches a language model more: because attention reaches
half as far, or because a batch comes from twice as many places of the text?

    python benchmarks/half_context.py pe=cope seed=101
    # windows in four parts
    python benchmarks/half_context.py pe=relative seed=101 parts=4

Both hold for the rows "trained at half of it" of Figure 3 (``make figure3``),
with as many tokens a step. Here one holds: a run has the batches of the full
context, token by token, but every window is read as two halves. It is scored
as those that were trained at the full context are. If it is as good as they
are, it is the places; if it is as good as those of half a context, the reach.

    parts=2    so many parts of a window

All else are settings of train.py. A run lies under outputs/half_context, and
the same command goes on with it.
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "reading configs", has_settings_of_train=True)  # before anything slow is imported

from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from torch import Tensor

from cope.cli import run_command, split_settings
from cope.errors import UserError, check_at_least
from cope.overrides import Composer
from cope.run.experiment import Experiment
from cope.run.summary import run_line
from cope.sweep.plan import composed
from cope.tasks.language import Language
from cope.tasks.windows import Windows

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class HalfContextSettings:
    parts: int = 2

    def __post_init__(self) -> None:
        check_at_least("parts", self.parts, 1)


class CutWindows(Windows):
    """Windows that a batch reads in parts, each as a sequence of its own.

    Args:
        whole: as long as ``parts`` divides, all of them, which training's are.
    """

    def __init__(self, whole: Windows, parts: int) -> None:
        super().__init__(whole.stream, whole.starts, whole.lengths, whole.first_scored, whole.separator)
        self.parts = parts

    def batch(self, indices: np.ndarray, *, loss: str = "answers") -> tuple[Tensor, Tensor]:
        inputs, targets = super().batch(indices, loss=loss)
        num_sequences = self.parts * len(indices)
        return inputs.reshape(num_sequences, -1), targets.reshape(num_sequences, -1)


def main(arguments: list[str]) -> None:
    settings, others = split_settings(arguments, HalfContextSettings, "python benchmarks/half_context.py pe=cope seed=101")
    overrides = ("task=wikipedia", "logger=none", "output_dir=outputs/half_context", *others)
    if problems := Composer(CONFIGS).problems(overrides):
        raise UserError("\n".join(problems))
    config = composed(CONFIGS, overrides)
    if config.task.context % settings.parts != 0:
        raise UserError(f"parts={settings.parts} do not divide task.context={config.task.context}.")
    whole = Language.training_examples

    def cut(task: Language, seed: int, epoch: int) -> Windows:
        return CutWindows(whole(task, seed, epoch), settings.parts)

    with patch.object(Language, "training_examples", cut):
        print(run_line(Experiment(config).run(show_progress=False)))


if __name__ == "__main__":
    run_command(main, __doc__)
