"""The command ``cope-lab``: train.py, evaluate.py and generate.py wherever the
package is installed, without a checkout.

    cope-lab train pe=cope task=counting
    cope-lab evaluate run=outputs/...
    cope-lab generate run=outputs/... prompt=...
    source "$(cope-lab completion)"    completes all of them in bash

``cope-lab train --help`` lists the settings. Data and runs go to the folder
that the command is typed in. Encodings and tasks of your own:
docs/add-your-own.md.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from cope.errors import nearest
from cope.lines import commands_are

COMMANDS = ("train", "evaluate", "generate")
COMPLETION = "completion"  # prints where the script for the shell is
PACKAGE = Path(__file__).resolve().parent


def folder() -> Path:
    """Where train.py and configs/ are: beside ``src`` in a checkout, in the package where a wheel was installed."""
    packaged = PACKAGE / "commands"
    return packaged if packaged.exists() else PACKAGE.parent.parent


def main() -> None:
    """Run the command that is named first, with what follows, as Python would."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("-h", "--help"):
        print(__doc__)
        return
    if name == COMPLETION:
        print(folder() / "scripts" / "completion.bash")
        return
    if name not in COMMANDS:
        allowed = (*COMMANDS, COMPLETION)
        sys.exit(f"cope-lab {name}: there is no such command; allowed: {', '.join(allowed)}.{nearest(name, allowed)}")
    commands_are("cope-lab")
    path = folder() / f"{name}.py"
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
