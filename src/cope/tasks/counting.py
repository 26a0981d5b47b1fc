"""Counting: how often was a variable incremented since it was last set to zero?

Why: the answer needs a count of some tokens since another, over a distance that the many ``pass;`` between them make long
and random. Positions that count every token give no help; positions that count by context can.

Source: Golovneva et al. 2024 (arXiv 2405.18719), section 5.3, and the generator released with it, which we follow:

* The number of operations is uniform in ``min_operations`` to ``max_operations``.
* Each operation is drawn by weight: ``a = 0 ;`` sets a random one of the ``num_variables``; ``a ++;`` increments a random one
  of those set so far; ``pass;`` does nothing. An increment while no variable is set, or of one already at ``max_value``, is
  drawn again, kind and variable, so that it may well become another kind.
* ``print a`` asks for a random one of the variables that were set; its value, one token, is the answer. A program that set
  no variable is drawn again, length and all.
* A sequence longer than ``context`` is cut on the left, as in the released code. What remains may then lack the ``= 0`` on
  which the answer depends; ``overflow: drop`` leaves such sequences out and ``overflow: error`` refuses them.

Picture (loss on answers only):

    inputs   a  =  0  ;  pass;  a  ++;  pass;  a  ++;  print  a
    labels   .  .  .  .  .      .  .    .      .  .    .      2

Programs are generated side by side, one operation of all of them at a time.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from cope.errors import UserError, check_between, check_choice
from cope.tasks.base import Examples
from cope.tasks.synthetic import SyntheticTask, check_mapping, check_number, check_whole_number, smallest_integer

KINDS = ("set", "increment", "pass")
SET, INCREMENT, PASS = range(3)
TOKENS_OF_KIND = np.array([4, 2, 1], dtype=np.int32)  # "a = 0 ;", "a ++;", "pass;"
PRINT_TOKENS = 3  # "print a 3"
SYMBOLS = ("<pad>", "=", ";", "++;", "pass;", "print")
ASSIGN, END, PLUS, IDLE, PRINT, ZERO = range(1, 7)  # token ids; the value v is ZERO + v
UNSET = -1
LARGEST_VALUE = 32_000  # token ids are made in 16 bits
MAX_ROUNDS = 1000  # of drawing programs again that set no variable, before we say that the weights make them too rare


@dataclass(kw_only=True)
class Counting(SyntheticTask):
    """The counting task; its fields are the keys of ``configs/task/counting.yaml``, explained there."""

    kind: ClassVar[str] = "counting"
    version: ClassVar[int] = 1
    epoch_size: ClassVar[int] = 10000
    split_keys: ClassVar[tuple[str, ...]] = ("pass_weight", "min_operations", "max_operations", "context")

    num_variables: int
    min_operations: int
    max_operations: int
    weights: Mapping[str, float]
    max_value: int
    context: int  # the most tokens of a program, its answer among them: a model reads one less
    overflow: str

    def check_settings(self, where: str) -> None:
        check_between(f"{where}.num_variables", self.num_variables, 1, 26)
        check_whole_number(f"{where}.min_operations", self.min_operations, 1)
        check_whole_number(f"{where}.max_operations", self.max_operations, 1)
        if self.max_operations < self.min_operations:
            raise UserError(
                f"{where}.max_operations={self.max_operations} is below {where}.min_operations={self.min_operations}; "
                "allowed: the same or more."
            )
        check_mapping("task.weights", self.weights, KINDS)
        for kind in KINDS:
            if kind not in self.weights:
                raise UserError(f"task.weights.{kind} must be set.")
            key = f"task.weights.{kind}" if where == "task" else f"{where}.{kind}_weight"
            # Without "set" no program has a variable to print, so its weight alone must not be zero.
            check_number(key, self.weights[kind], 1e-3 if kind == "set" else 0, 1e6)
        check_between("task.max_value", self.max_value, 1, LARGEST_VALUE)
        check_whole_number(f"{where}.context", self.context, PRINT_TOKENS + 1)
        check_choice("task.overflow", self.overflow, ("cut_left", "drop", "error"))
        if self.overflow == "drop" and self.num_train is None:
            raise UserError(
                "task.overflow=drop with task.num_train=null would give epochs of different sizes; allowed: a number of "
                "task.num_train, or task.overflow=cut_left."
            )

    def changed(self, changes: Mapping[str, Any]) -> Self:
        changes = dict(changes)
        if "pass_weight" in changes:
            changes["weights"] = {**self.weights, "pass": changes.pop("pass_weight")}
        return super().changed(changes)

    @property
    def longest_sequence(self) -> int:
        return self.context

    @property
    def longest_drawn(self) -> int:
        return self.max_operations + PRINT_TOKENS  # an operation has at least one

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Always at least five variable names: the models of the paper's 1, 3 and 5 variables then have the same size."""
        values = tuple(str(value) for value in range(self.max_value + 1))
        return SYMBOLS + values + tuple(string.ascii_lowercase[: max(5, self.num_variables)])

    def generate(self, num: int, random: np.random.Generator) -> Examples:
        kinds = np.full((num, self.max_operations), UNSET, dtype=np.int8)
        variables = np.zeros((num, self.max_operations), dtype=np.int16)
        values = np.zeros((num, self.num_variables), dtype=np.int16)
        missing = np.arange(num)
        for _ in range(MAX_ROUNDS):
            kinds[missing], variables[missing], values[missing] = self.draw_programs(len(missing), random)
            missing = missing[(values[missing] == UNSET).all(axis=1)]
            if not len(missing):
                break
        else:
            raise UserError(
                f"task.weights.set={self.weights['set']} is too small beside the other weights: "
                f"{len(missing)} of {num} programs set no variable in {MAX_ROUNDS} tries. Raise it, or task.min_operations."
            )
        printed = random_true(values != UNSET, random)
        return self._fit(*self._write(kinds, variables, printed, values[np.arange(num), printed]))

    def _write(
        self, kinds: np.ndarray, variables: np.ndarray, printed: np.ndarray, answers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The programs as ``(tokens, lengths)``: each operation's first token goes where the operations before it end."""
        sizes = np.where(kinds == UNSET, 0, TOKENS_OF_KIND[kinds])
        ends = np.cumsum(sizes, axis=1, dtype=np.int32)
        lengths = ends[:, -1] + PRINT_TOKENS
        first_name = len(self.vocabulary) - max(5, self.num_variables)
        tokens = np.zeros((len(kinds), int(lengths.max())), dtype=smallest_integer(self.vocab_size - 1))
        for kind, rest in ((SET, (ASSIGN, ZERO, END)), (INCREMENT, (PLUS,))):
            rows, columns = np.nonzero(kinds == kind)
            start = ends[rows, columns] - sizes[rows, columns]
            tokens[rows, start] = first_name + variables[rows, columns]
            for offset, token in enumerate(rest, start=1):
                tokens[rows, start + offset] = token
        rows, columns = np.nonzero(kinds == PASS)
        tokens[rows, ends[rows, columns] - 1] = IDLE
        rows = np.arange(len(kinds))
        tokens[rows, lengths - 3] = PRINT
        tokens[rows, lengths - 2] = first_name + printed
        tokens[rows, lengths - 1] = ZERO + answers
        return tokens, lengths

    def draw_programs(self, num: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``(kinds, variables, values)``: operations (num, max_operations), UNSET beyond a program's end, and final values.

        Drawing again until an operation is possible means: an increment counts with its weight times the chance that the
        variable drawn for it can be incremented, and is then of any variable that can be, all equally likely. That is what we
        draw from, with nothing drawn twice.
        """
        num_operations = random.integers(self.min_operations, self.max_operations, size=num, endpoint=True)
        # Longest first, so that the programs still running are always the first few rows: a view, not a copy.
        num_operations = np.sort(num_operations)[::-1]
        running = np.searchsorted(-num_operations, -np.arange(self.max_operations), side="left")
        kinds = np.full((num, self.max_operations), UNSET, dtype=np.int8)
        variables = np.zeros((num, self.max_operations), dtype=np.int16)  # 16 bits: token ids are made by adding to these
        values = np.full((num, self.num_variables), UNSET, dtype=np.int16)
        for step, count in enumerate(running):
            state = values[:count]
            is_set = state != UNSET
            can_grow = is_set & (state < self.max_value)
            chance = can_grow.sum(axis=1) / np.maximum(is_set.sum(axis=1), 1)
            bound_increment = self.weights["set"] + self.weights["increment"] * chance
            draw = random.random(count) * (bound_increment + self.weights["pass"])
            kind = np.where(draw < self.weights["set"], SET, np.where(draw < bound_increment, INCREMENT, PASS))
            to_set, to_grow = np.nonzero(kind == SET)[0], np.nonzero(kind == INCREMENT)[0]
            kinds[:count, step] = kind
            variables[to_set, step] = random.integers(self.num_variables, size=len(to_set))
            variables[to_grow, step] = random_true(can_grow[to_grow], random)
            state[to_set, variables[to_set, step]] = 0
            state[to_grow, variables[to_grow, step]] += 1
        order = random.permutation(num)  # sorted by length no more
        return kinds[order], variables[order], values[order]

    def _fit(self, tokens: np.ndarray, lengths: np.ndarray) -> Examples:
        """Deal with sequences longer than the context as ``overflow`` says."""
        context = self.context
        too_long = lengths > context
        if too_long.any():
            if self.overflow == "error":
                raise UserError(
                    f"task.context={context} is too small: {too_long.sum()} of {len(lengths)} sequences are longer, the "
                    f"longest {lengths.max()} tokens. Raise task.context, or set task.overflow=cut_left or task.overflow=drop."
                )
            if self.overflow == "drop":
                if too_long.all():
                    raise UserError(f"task.context={context} is too small: with task.overflow=drop no sequence is left.")
                tokens, lengths = tokens[~too_long], lengths[~too_long]
            else:
                rows = np.nonzero(too_long)[0]
                columns = (lengths[rows] - context)[:, None] + np.arange(context)
                tokens[rows, :context] = tokens[rows[:, None], columns]
                lengths = np.minimum(lengths, context)
        longest = int(lengths.max())
        tokens = np.ascontiguousarray(tokens[:, :longest])
        answers = np.arange(longest) == lengths[:, None] - 1
        return Examples(tokens, lengths.astype(smallest_integer(longest)), answers, int(too_long.sum()))


def random_true(mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For each row, the column of one of its True entries, all equally likely; 0 where a row has none."""
    ranks = np.cumsum(mask, axis=1, dtype=np.int8)  # the r-th True entry is the first place where this reaches r
    wanted = (random.random(len(mask)) * ranks[:, -1]).astype(np.int8) + 1
    return np.argmax(ranks == wanted[:, None], axis=1)
