"""Grid navigation: a walk over a grid of objects; what stands where the walk has been before?

Why: to know that a cell was seen before, and what was in it, actions must be added up *with their signs*: left undoes right.
Gates that only count up, as CoPE's, cannot undo, and the paper that introduced the task reports CoPE behind its own positions.

Source: MapFormer (Rambaud et al. 2025, arXiv 2511.19279). Actions and observations alternate. Each run of steps takes one of
two (1-D) or four (2-D) directions, all equally likely, for 1 to ``longest_run`` steps. The grid wraps around; each cell is
blank with probability ``p_blank`` and else holds one of 16 kinds of object. What is learned is every next token, what is
scored are the objects in cells that were observed before.

Picture (1-D; labels that are scored):

    inputs   >  o3  >  .   <  o3  <  o7  >  o3
    labels                   o3           o3          (the token after the action)

The paper does not say whether blanks count as answers. Here they do not (``score_blanks=true`` counts them): its accuracies are
lowest where blanks are most frequent and "blank" would be the best guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cope.tasks.base import Examples
from cope.tasks.synthetic import SyntheticTask, check_number, check_whole_number, smallest_integer

DIRECTIONS = ("right", "left", "up", "down")
NUM_OBJECTS = 16


@dataclass(kw_only=True)
class GridNavigation(SyntheticTask):
    """Grid navigation; its fields are the keys of ``configs/task/grid_navigation.yaml``, explained there."""

    kind: ClassVar[str] = "grid_navigation"
    version: ClassVar[int] = 1
    epoch_size: ClassVar[int] = 4096
    headline: ClassVar[str] = "token_error"
    split_keys: ClassVar[tuple[str, ...]] = ("num_steps", "grid", "p_blank", "longest_run")

    num_dimensions: int
    num_steps: int
    grid: int
    p_blank: float
    longest_run: int
    score_blanks: bool

    def check_settings(self, where: str) -> None:
        check_whole_number(f"{where}.num_dimensions", self.num_dimensions, 1, 2)
        check_whole_number(f"{where}.num_steps", self.num_steps, 2)
        check_whole_number(f"{where}.grid", self.grid, 2)
        check_number(f"{where}.p_blank", self.p_blank, 0, 1)
        check_whole_number(f"{where}.longest_run", self.longest_run, 1)

    @property
    def longest_sequence(self) -> int:
        return 2 * self.num_steps

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*DIRECTIONS[: self.num_actions], "blank", *(f"o{index}" for index in range(1, NUM_OBJECTS + 1)))

    @property
    def num_actions(self) -> int:
        """Two for each dimension."""
        return 2 * self.num_dimensions

    def generate(self, num: int, random: np.random.Generator) -> Examples:
        num_cells, blank = self.grid**self.num_dimensions, self.num_actions
        objects = random.integers(blank + 1, blank + 1 + NUM_OBJECTS, size=(num, num_cells), dtype=np.int8)
        objects[random.random((num, num_cells), dtype=np.float32) < self.p_blank] = blank
        actions = self._walk(num, random)
        cells = self._cells(actions, random.integers(self.grid, size=(num, 1, self.num_dimensions)))
        observed = np.take_along_axis(objects, cells, axis=1)

        scored = seen_before(cells)
        if not self.score_blanks:
            scored &= observed != blank
        tokens = np.stack([actions, observed], axis=2).reshape(num, -1)
        answers = np.zeros(tokens.shape, dtype=np.bool_)
        answers[:, 1::2] = scored
        return Examples(tokens, np.full(num, tokens.shape[1], dtype=smallest_integer(tokens.shape[1])), answers)

    def _walk(self, num: int, random: np.random.Generator) -> np.ndarray:
        """(num, num_steps) actions: runs of one direction each."""
        shape = (num, self.num_steps)
        directions = random.integers(self.num_actions, size=shape, dtype=np.int8)
        ends = random.integers(1, self.longest_run, size=shape, endpoint=True).cumsum(axis=1)  # of the runs
        starts = np.zeros((num, self.num_steps + 1), dtype=np.int64)
        np.put_along_axis(starts, np.minimum(ends, self.num_steps), 1, axis=1)
        run = starts[:, : self.num_steps].cumsum(axis=1)
        return np.take_along_axis(directions, run, axis=1)

    def _cells(self, actions: np.ndarray, start: np.ndarray) -> np.ndarray:
        """(num, num_steps) the cell reached by each action."""
        moves = np.zeros((*actions.shape, self.num_dimensions), dtype=np.int64)
        for axis in range(self.num_dimensions):
            moves[..., axis] = (actions == 2 * axis).astype(np.int64) - (actions == 2 * axis + 1)
        places = (start + moves.cumsum(axis=1)) % self.grid
        return places @ self.grid ** np.arange(self.num_dimensions)


def seen_before(cells: np.ndarray) -> np.ndarray:
    """True where the same number stands further left in the row."""
    order = np.argsort(cells, axis=1, kind="stable")
    ordered = np.take_along_axis(cells, order, axis=1)
    found = np.zeros(cells.shape, dtype=np.bool_)
    np.put_along_axis(found, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return found
