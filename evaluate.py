"""Score the best checkpoint of a run again: on other splits, other settings of its task, or longer sequences.

    python evaluate.py run=outputs/counting/cope/1a2b3c4d/seed=1
    python evaluate.py run=outputs/counting/cope/1a2b3c4d/seed=1 '+task.splits.ood_rare={pass_weight: 400, context: 512}'
    python evaluate.py run=outputs/flip_flop/rope/1a2b3c4d/seed=1 task.num_pairs=128

Overrides change the task as the run's config.yaml has it; a ``+`` adds a split, a ``~`` removes one. The scores are printed
and written to ``evaluations/`` in the run's folder.
"""

from dataclasses import dataclass
from pathlib import Path

from cope.cli import run_command, split_settings
from cope.errors import UserError
from cope.overrides import Composer
from cope.run.folder import RunFolder


@dataclass(frozen=True)
class EvaluationSettings:
    run: Path


def main(arguments: list[str]) -> None:
    from cope.report.tables import scores_table
    from cope.run.reevaluation import reevaluate

    example = "python evaluate.py run=<run folder> [task.key=value ...]"
    settings, overrides = split_settings(arguments, EvaluationSettings, example)
    folder = RunFolder(settings.run)
    if folder.config.exists() and (problems := Composer(folder.path.resolve(), folder.config.stem).problems(overrides)):
        raise UserError("\n".join(problems))
    scores, path = reevaluate(folder, overrides)
    print(scores_table(scores["headline"], scores["splits"]))
    for split, num_tokens in scores["left_out"].items():
        print(f"left out: {split}, with {num_tokens} tokens; this run's encoding has {scores['num_positions']} positions")
    print(f"\nwritten to: {path}")


if __name__ == "__main__":
    run_command(main, __doc__)
