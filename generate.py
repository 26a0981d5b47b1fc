"""Continue a prompt with the best checkpoint of a run, and print the text as it
grows.

    python generate.py run=1a2b3c4d prompt="a = 0 ; a ++; print a" num_tokens=1
    python generate.py run=outputs/wikipedia/cope/1a2b3c4d/seed=1 prompt="In"
    python generate.py run=1a2b3c4d prompt="In 1904" temperature=0.8 top_p=0.95

For a language task the prompt is text; for a task with a vocabulary it is words
of it, with spaces between. A model that was trained with task.loss=answers has
learned to give answers, not to write what they are asked about.

    run=              the run: its folder, or the beginning of its hash
    prompt=           what it continues
    num_tokens=200    how many tokens to add
    temperature=1.0   divides the logits: below 1 less is left to chance, 0
                      takes the most probable token
    top_k=null        draw from so many of the most probable tokens alone
    top_p=null        draw from the fewest most probable tokens whose
                      probabilities reach this together
    seed=1            the same seed gives the same text
    stream=true       print each token as it comes; false: all of them at the
                      end
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "loading the run")  # before anything slow is imported

import sys

from cope.cli import read_settings, run_command
from cope.endings import INTERRUPTED
from cope.lines import write_whole


def main(arguments: list[str]) -> None:
    from cope.run.generation import GenerationSettings, text_pieces

    settings = read_settings(arguments, GenerationSettings, 'python generate.py run=<run folder> prompt="..." [key=value ...]')
    try:
        pieces = text_pieces(settings)
        # Whole: where its lines end is the model's to say.
        for piece in pieces if settings.stream else ["".join(pieces)]:
            write_whole(piece, sys.stdout)
        print()
    except KeyboardInterrupt:  # there is nothing to go on with, which is what reporting_errors would promise
        print()
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    run_command(main, __doc__)
