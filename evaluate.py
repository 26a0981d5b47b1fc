"""Score the best checkpoint of a run again: on other splits, or longer sequences.

    python evaluate.py run=outputs/flip_flop/rope/1a2b3c4d/seed=1
    python evaluate.py run=1a2b3c4d task.num_pairs=128
    python evaluate.py run=1a2b3c4d '+task.splits.rare={pass_weight: 400}'

    run=               the run: its folder, or the beginning of its hash
    format=table       or markdown, csv, latex, json
    task.KEY=VALUE     changes the task for this scoring

Changes are to the run's config.yaml; ``+`` adds a split, ``~`` removes one. The
scores are printed and written to ``evaluations/`` in the run's folder.
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "loading the run", has_settings_of_train=True)  # before anything slow is imported

import sys
from dataclasses import dataclass
from pathlib import Path

from cope.cli import run_command, split_settings
from cope.errors import UserError, check_choice, counted
from cope.overrides import Composer
from cope.report.sheets import FORMATS
from cope.run.folder import RunFolder


@dataclass(frozen=True)
class EvaluationSettings:
    run: Path
    format: str = "table"

    def __post_init__(self) -> None:
        check_choice("format", self.format, FORMATS)


def main(arguments: list[str]) -> None:
    example = "python evaluate.py run=<run folder> [task.key=value ...]"
    settings, overrides = split_settings(arguments, EvaluationSettings, example)
    folder = RunFolder(settings.run)
    if folder.config.exists() and (problems := Composer(folder.path.resolve(), folder.config.stem).problems(overrides)):
        raise UserError("\n".join(problems))
    # Imported here, so that a slip is told before PyTorch is waited for.
    from cope.report.run_sheets import scores_sheet
    from cope.report.sheets import show
    from cope.run.reevaluation import reevaluate

    scores, path = reevaluate(folder, overrides)
    show([scores_sheet(scores["headline"], scores["splits"])], settings.format)
    for split, num_tokens in scores["left_out"].items():
        positions = counted(scores["num_positions"], "position")
        print(f"left out: {split}, with {num_tokens:,} tokens; this run's encoding has {positions}", file=sys.stderr)
    print(f"\nwritten to: {path}", file=sys.stderr if settings.format != "table" else sys.stdout)


if __name__ == "__main__":
    run_command(main, __doc__)
