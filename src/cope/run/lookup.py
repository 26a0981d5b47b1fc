"""Finds a run by what somebody types for it: its folder, or the beginning of the hash in its folder's name."""

from __future__ import annotations

import re
from pathlib import Path

from cope.errors import UserError
from cope.files import user_path

OUTPUTS = Path("outputs")  # where hashes are looked up; a run elsewhere is named by its folder
HASH = re.compile(r"([0-9a-f]{1,8})(?:/(seed=\d+))?/?")


def run_path(text: str, outputs: Path = OUTPUTS, key: str = "run") -> Path:
    """The run's folder that ``text`` names: a path, or a hash's beginning, with ``/seed=<n>`` where several seeds have weights.

    Raises:
        UserError: no run of ``outputs`` has such a hash, or several have.
    """
    path = user_path(key, text)
    asked = HASH.fullmatch(text)
    if path.exists() or asked is None:
        return path
    beginning, seed = asked[1], asked[2]
    found = _found(outputs, beginning, seed or "seed=*")
    with_weights = [folder for folder in found if (folder / "checkpoints").exists()]
    if len(found) == 1 or len(with_weights) == 1:  # the one that was trained here, beside published ones
        return (with_weights or found)[0]
    if not found and seed and (others := _found(outputs, beginning, "seed=*")):
        there = ", ".join(dict.fromkeys(folder.name.removeprefix("seed=") for folder in others))
        raise UserError(f"{key}={text}: of {beginning} {outputs} has no {seed}; allowed: {there}.")
    if not found:
        raise UserError(
            f"{key}={text}: no run in {outputs} has a hash that begins so; allowed: a run's folder, or the beginning of its "
            "hash. python scripts/runs.py lists them."
        )
    listed = ", ".join(str(folder) for folder in found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
    raise UserError(
        f"{key}={text} is the beginning of {len(found)} runs: {listed}. Type more of it, or the seed as well: "
        f"{found[0].parent.name}/{found[0].name}."
    )


def _found(outputs: Path, beginning: str, seed: str) -> list[Path]:
    """Folders of runs."""
    return sorted(
        folder
        for folder in outputs.glob(f"*/*/{beginning}*/{seed}")
        if (folder / "config.yaml").exists() or (folder / "result.json").exists()
    )
