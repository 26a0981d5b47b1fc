"""Why half a context teaches a language model more: because attention reaches
half as far, or because a batch comes from twice as many places of the text?

    python scripts/half_context.py seed=101
    # as a first try, in seconds
    python scripts/half_context.py scale=smoke

Both hold for the rows "trained at half of it" of Figure 3 (``make figure3``),
with as many tokens a step. Here one holds: CoPE is trained on the batches of
the full context, token by token, but every window is read as two halves. It is
scored as the row "trained at the full context" is. If it is as good as that
row, it is the places; if it is as good as half a context, the reach.

All are settings of train.py. A run lies under outputs/half_context, and the
same command goes on with it.
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "reading configs", has_settings_of_train=True)  # before anything slow is imported

from pathlib import Path
from unittest.mock import patch

import numpy as np
from torch import Tensor

from cope.cli import run_command
from cope.errors import UserError
from cope.overrides import Composer
from cope.run.experiment import Experiment
from cope.run.summary import run_line
from cope.sweep.plan import composed
from cope.tasks.language import Language
from cope.tasks.windows import Windows

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class HalvedWindows(Windows):
    """Windows that a batch reads as two sequences each."""

    def __init__(self, whole: Windows) -> None:
        super().__init__(whole.stream, whole.starts, whole.lengths, whole.first_scored, whole.separator)

    def batch(self, indices: np.ndarray, *, loss: str = "answers") -> tuple[Tensor, Tensor]:
        inputs, targets = super().batch(indices, loss=loss)
        return inputs.reshape(2 * len(indices), -1), targets.reshape(2 * len(indices), -1)


def main(arguments: list[str]) -> None:
    overrides = ("task=wikipedia", "logger=none", "output_dir=outputs/half_context", *arguments)
    if problems := Composer(CONFIGS).problems(overrides):
        raise UserError("\n".join(problems))
    config = composed(CONFIGS, overrides)
    if config.pe.name != "cope":  # a vector for each distance or place would be scored where it was never trained
        raise UserError(f"pe={config.pe.name}: only CoPE is asked here, whose positions do not end with the context.")
    if config.task.context % 2 != 0:
        raise UserError(f"task.context={config.task.context} has no halves: take an even number.")
    whole = Language.training_examples
    # What a config cannot say: batches of one context, read as those of another.
    with patch.object(Language, "training_examples", lambda *of: HalvedWindows(whole(*of))):
        print(run_line(Experiment(config).run(show_progress=False)))


if __name__ == "__main__":
    run_command(main, __doc__)
