"""Files cut short, emptied, with a bit flipped, or of another kind: told or made again, and nothing else lost."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

from broken_runs import Fault, Harness, names_below, run_folder

FOREIGN = (b"\x89PNG\r\n\x1a\n" + bytes(64), b"{}", b"null", b"\x80\x04N.", b"PK\x05\x06" + bytes(18))
OF_AN_UNFINISHED_RUN = ("config.yaml", "metrics.jsonl", "checkpoints/last.pt", "checkpoints/best.pt")
OF_A_FINISHED_RUN = ("config.yaml", "metrics.jsonl", "result.json", "figures/gates.npz")


def damage(harness: Harness, path: Path) -> str:
    """Damage the file in one of four ways, and say in which."""
    content = bytearray(path.read_bytes())
    how = harness.random.choice(["cut", "emptied", "one bit", "foreign"])
    if how == "cut":
        content = content[: harness.random.randrange(len(content))]
    elif how == "emptied":
        content = bytearray()
    elif how == "one bit":
        content[harness.random.randrange(len(content))] ^= 1 << harness.random.randrange(8)
    else:
        content = bytearray(harness.random.choice(FOREIGN))
    path.write_bytes(content)
    return f"{path.name}, {how}"


def damaged(names: tuple[str, ...], harness: Harness, place: Path) -> bool:
    """Told, and force=true makes the very run again; or of no consequence, or a number that nobody can know to be wrong."""
    job = harness.job("counting")
    shutil.copytree(harness.folder / "counting-unbroken", place)
    folder = run_folder(place)
    if names == OF_AN_UNFINISHED_RUN:
        folder.result.unlink()
    what = damage(harness, folder.path / harness.random.choice(names))
    command = harness.finished(job, place)
    if not command.is_told_or_done or command.has_a_trace:
        print(f"{what}: {command.said}", file=sys.stderr)
        return False
    return command.status == 0 or harness.recovers(job, place, "force=true")


def damaged_text(harness: Harness, place: Path) -> bool:
    """Of a prepared text: told, or prepared again; of tokens whose number is right, one may be another."""
    job = harness.job("text")
    shutil.copytree(harness.folder / "text-unbroken" / "data", place / "data")
    prepared = place / "data"
    what = damage(harness, prepared / harness.random.choice(names_below(prepared)))
    command = harness.finished(job, place)
    if not command.is_told_or_done or command.has_a_trace:
        print(f"{what}: {command.said}", file=sys.stderr)
        return False
    shutil.rmtree(place)  # what the message says: delete it, it is prepared again
    return harness.recovers(job, place)


FAULTS = {
    "damaged_unfinished": Fault(
        "a file of an unfinished run cut short, emptied, one bit flipped, or of another kind",
        partial(damaged, OF_AN_UNFINISHED_RUN),
    ),
    "damaged_finished": Fault("likewise of a finished run", partial(damaged, OF_A_FINISHED_RUN)),
    "damaged_text": Fault("likewise of a prepared text", damaged_text),
}
