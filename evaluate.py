"""Score the best checkpoint of a run again: on other splits, other settings of its task, or longer sequences.

    python evaluate.py run=outputs/counting/cope/1a2b3c4d/seed=1
    python evaluate.py run=outputs/counting/cope/1a2b3c4d/seed=1 '+task.splits.ood_rare={pass_weight: 400, context: 512}'
    python evaluate.py run=outputs/flip_flop/rope/1a2b3c4d/seed=1 task.num_pairs=128

Overrides change the task as the run's config.yaml has it; a ``+`` adds a split, a ``~`` removes one. The scores are printed
and written to ``evaluations/`` in the run's folder.
"""

import sys

from cope.cli import reporting_errors


def main(arguments: list[str]) -> None:
    with reporting_errors():
        from cope.report.tables import scores_table
        from cope.run.reevaluation import reevaluate

        scores, path = reevaluate(arguments)
        print(scores_table(scores["headline"], scores["splits"]))
        for split, num_tokens in scores["left_out"].items():
            print(f"left out: {split}, with {num_tokens} tokens; this run's encoding has {scores['num_positions']} positions")
        print(f"\nwritten to: {path}")


if __name__ == "__main__":
    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        main(sys.argv[1:])
