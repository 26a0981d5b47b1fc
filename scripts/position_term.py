"""How much CoPE's position term weighs before training and what one step changes,
by scale, start and gate bias.

    # flip-flop at laptop scale
    python scripts/position_term.py
    python scripts/position_term.py task=wikipedia seed=3

All are settings of train.py. Root mean squares over the pairs of query and key
of the first batch.
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "measuring", has_settings_of_train=True)  # before anything slow is imported

import itertools
from dataclasses import asdict
from pathlib import Path

from cope.cli import run_command
from cope.errors import UserError
from cope.overrides import Composer
from cope.report.sheets import Sheet, show
from cope.sweep.plan import composed

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
COMPARED = {
    "pe.scale": ("paper", "released"),
    "pe.init_std": ("0.0", "0.02", "0.25", "1.0"),
    "pe.gate_bias": ("null", "-3.0"),
}


def main(arguments: list[str]) -> None:
    overrides = ("task=flip_flop", "pe=cope", "logger=none", *arguments)
    if problems := Composer(CONFIGS).problems(overrides):
        raise UserError("\n".join(problems))
    from cope.heads.position_term import measure  # it imports PyTorch, for which a slip need not wait

    rows = []
    for values in itertools.product(*COMPARED.values()):
        own = dict(zip(COMPARED, values, strict=True))
        found = measure(composed(CONFIGS, (*overrides, *(f"{key}={value}" for key, value in own.items()))))
        short = {key.removeprefix("pe."): value for key, value in own.items()}  # a line of the table has 80 characters
        rows.append(short | {name: f"{value:.2g}" for name, value in asdict(found).items()})
    show([Sheet.of("", rows)])


if __name__ == "__main__":
    run_command(main, __doc__)
