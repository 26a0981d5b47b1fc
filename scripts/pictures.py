"""Draw a run's pictures again, from the files in its folder: learning curves, and
what CoPE's heads count.

python scripts/pictures.py run=outputs/counting/cope/1a2b3c4d/seed=1
python scripts/pictures.py run=1a2b3c4d heads=1.2,2.1

run=                 the run's folder
heads=telling        whose gates to draw: the four that differ most from token
                     to token; all; or some, as layer.head
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__)  # before anything slow is imported

import re
from dataclasses import dataclass
from pathlib import Path

from cope.cli import read_settings, run_command
from cope.errors import UserError


@dataclass(frozen=True)
class PictureSettings:
    run: Path
    heads: tuple[str, ...] = ("telling",)

    def __post_init__(self) -> None:
        if self.heads in (("telling",), ("all",)):
            return
        if wrong := [head for head in self.heads if not re.fullmatch(r"\d+\.\d+", head)]:
            raise UserError(f"heads={wrong[0]} is not known; allowed: telling, all, or heads as layer.head, such as 1.2,2.1.")


def main(arguments: list[str]) -> None:
    from cope.report.figures import draw_run
    from cope.run.folder import RunFolder

    settings = read_settings(arguments, PictureSettings, "python scripts/pictures.py run=<run folder>")
    folder = RunFolder(settings.run)
    if folder.read_config() is None and not folder.result.exists():  # a published run has no config.yaml
        raise UserError(f"run={folder.path} is not a run's folder: it has neither config.yaml nor result.json.")
    heads = None
    if settings.heads != ("telling",):
        if not folder.gates.exists():
            raise UserError(
                f"heads={','.join(settings.heads)}: run={folder.path} has no figures/gates.npz; allowed: runs that have it, as "
                "finished ones of pe=cope, and of published ones those whose gates the report draws."
            )
        heads = [] if settings.heads == ("all",) else [tuple(map(int, head.split("."))) for head in settings.heads]
    for path in draw_run(folder, heads).values():
        print(f"picture: {path}")


if __name__ == "__main__":
    run_command(main, __doc__)
