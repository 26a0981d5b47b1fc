"""Measure what the heads of a run attend to by position alone: the paragraph they
are in, or the section?

    python scripts/position_alone.py run=outputs/wikipedia/cope/1a2b3c4d/seed=1
    python scripts/position_alone.py run=1a2b3c4d document=3

Prints the heads with the largest excess: how much more of their attention falls
inside the segment than the same head gives on average to as many tokens from
the same place; tested against the boundaries shifted along the document. Draws
the best for paragraphs and the best for sections. Writes to
``figures/position_alone/`` in the run's folder. For runs of language modelling
whose encoding adds to the attention logits (cope and its variants, relative).

    run=                the run: its folder, or the beginning of its hash
    num_windows=32      windows of test text, each as long as the model's
                        context
    num_shifts=10000    how often the boundaries are shifted
    seed=1              of the choice of windows and shifts
    document=null       the test document to draw, from 0 on; null: one of those
                        measured
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "loading the run")  # before anything slow is imported

from cope.cli import read_settings, run_command


def main(arguments: list[str]) -> None:
    from cope.heads.draw import draw_position_alone, position_alone_tables
    from cope.heads.measure import MeasurementSettings, measure_position_alone

    example = "python scripts/position_alone.py run=<run folder> [key=value ...]"
    folder = measure_position_alone(read_settings(arguments, MeasurementSettings, example))
    print(position_alone_tables(folder))
    print(f"\nwritten to: {folder / 'scores.json'}")
    print(f"picture:    {draw_position_alone(folder)}")


if __name__ == "__main__":
    run_command(main, __doc__)
