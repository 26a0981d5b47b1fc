"""The flip-flop data set its authors released, from the Hugging Face Hub or from a local folder.

Why: results on the very sequences of Liu et al. 2023 (arXiv 2306.00946) can be compared with theirs. The data set
``synthseq/flipflop`` has one column, ``text``, such as ``w0i1r0``, and the splits ``train``, ``val``, ``val_dense`` and
``val_sparse``. It has no test split of its own, so ``val`` is parted: we choose checkpoints by its second half and score its
first. A local folder holds the same as parquet files (``val-00000-of-00001.parquet`` or ``val.parquet``, there or in a folder
below), or is what ``save_to_disk`` of the ``datasets`` package wrote.

Picture: the text ``w1i0r1`` becomes

    inputs   w  1  i  0  r
    labels   .  .  .  .  1
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from cope.corpora.hub import first_line, load_hub_dataset
from cope.corpora.rows import files_below, files_of_split, is_saved, saved_split
from cope.errors import UserError, check_choice, nearest
from cope.files import user_path
from cope.seeding import stream_seed

DATASET = "synthseq/flipflop"
COLUMN = "text"
# Ours -> (theirs, from which fraction of its rows, to which). Validation and test share no row.
SPLITS = {
    "train": ("train", 0.0, 1.0),
    "validation": ("val", 0.5, 1.0),
    "test": ("val", 0.0, 0.5),
    "ood_sparse": ("val_sparse", 0.0, 1.0),
    "ood_dense": ("val_dense", 0.0, 1.0),
}
PUBLISHED_P_IGNORE = {"validation": 0.8, "test": 0.8, "ood_sparse": 0.98, "ood_dense": 0.1}
INSTEAD = "Generate the data (task.source=generator), or name a folder with a copy of it (task.source=/path/to/folder)."


class FlipFlopFiles:
    """The released texts by our split names; nothing is opened before it is asked for.

    Args:
        source: ``hub``, or the path of a local folder.
    """

    def __init__(self, source: str) -> None:
        if source != "hub" and not user_path("task.source", source).is_dir():
            hint = nearest(source, ("generator", "hub"))
            raise UserError(f"task.source={source} is not a folder; allowed: generator, hub, or the path of a folder.{hint}")
        self.source = source
        self._opened: dict[str, Any] = {}  # by their split names

    @property
    def fingerprint(self) -> str:
        """Of the files, by their names and sizes: they may be too large to be read for it."""
        if self.source == "hub":
            return DATASET
        folder = user_path("task.source", self.source)
        files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in files_below(folder))
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]

    def check_split(self, split: str) -> None:
        """Raise UserError unless the data set has our ``split``."""
        if split not in SPLITS:
            check_choice(f"task.source={self.source}: the test split", split, [name for name in SPLITS if name != "train"])

    def first(self, split: str, num: int, key: str) -> list[str]:
        """The first ``num`` texts of our ``split``; UserError naming ``key`` if there are fewer."""
        rows, start, stop = self._rows(split)
        if num > stop - start:
            theirs = SPLITS[split][0]
            raise UserError(
                f"{key}={num} is too large for task.source={self.source}: its split {theirs!r} has {stop - start} sequences "
                f"for {split}; allowed: 1 to {stop - start}."
            )
        return list(rows[start : start + num][COLUMN])

    def passing_through(self, num: int, seeds: tuple[int, int], epoch: int) -> list[str]:
        """The texts of one epoch of training: the next ``num`` rows from a place that depends on ``seeds``, round and round.

        The rows are random and independent already, so reading them in order is as good as shuffling, and reads far less.
        """
        rows, _, total = self._rows("train")
        data_seed, seed = seeds
        offset = stream_seed(data_seed, "flip_flop/offset", seed) % total
        num = min(num, total)
        return list(rows[((offset + epoch * num + np.arange(num)) % total).tolist()][COLUMN])

    def _rows(self, split: str) -> tuple[Any, int, int]:
        """Their rows, and which of them are our ``split``."""
        theirs, low, high = SPLITS[split]
        if theirs not in self._opened:
            rows = self._open(theirs)
            if COLUMN not in rows.column_names:
                columns = ", ".join(rows.column_names)
                raise UserError(f"task.source={self.source}: split {theirs!r} has no column {COLUMN!r}; it has: {columns}.")
            self._opened[theirs] = rows
        rows = self._opened[theirs]
        start, stop = int(low * len(rows)), int(high * len(rows))
        if start == stop:
            raise UserError(f"task.source={self.source}: split {theirs!r} has {len(rows)} sequences: too few for {split}.")
        return rows, start, stop

    def _open(self, theirs: str) -> Any:
        if self.source == "hub":
            return load_hub_dataset("task.source=hub", DATASET, split=theirs, instead=INSTEAD)
        import datasets  # a second to import

        folder = user_path("task.source", self.source)
        try:
            if is_saved(folder):
                if not (folder / "dataset_dict.json").is_file():
                    raise UserError(
                        f"task.source={self.source} was saved as one split, and would be every split; allowed: a data set with "
                        "all of its splits."
                    )
                return saved_split(folder, theirs)
            files = files_of_split(f"task.source={self.source}", folder, files_below(folder), theirs)
            return datasets.Dataset.from_parquet([str(file) for file in files])
        except UserError:
            raise
        except Exception as error:  # datasets raises the errors of half a dozen libraries, which share no base class
            raise UserError(
                f"task.source={self.source}: cannot load split {theirs!r} ({first_line(error)}). {INSTEAD}"
            ) from error
