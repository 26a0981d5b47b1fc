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

import logging
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cope.errors import UserError, check_choice
from cope.tasks.base import Examples
from cope.tasks.synthetic import Settings, SyntheticTask, check_mapping, check_number, check_whole_number, smallest_integer

log = logging.getLogger(__name__)

KINDS = ("set", "increment", "pass")
SET, INCREMENT, PASS = range(3)
TOKENS_OF_KIND = np.array([4, 2, 1], dtype=np.int32)  # "a = 0 ;", "a ++;", "pass;"
PRINT_TOKENS = 3  # "print a 3"
SYMBOLS = ("<pad>", "=", ";", "++;", "pass;", "print")
ASSIGN, END, PLUS, IDLE, PRINT, ZERO = range(1, 7)  # token ids; the value v is ZERO + v
UNSET = -1
MAX_ROUNDS = 1000  # of drawing programs again that set no variable, before we say that the weights make them too rare


class Counting(SyntheticTask):
    """The counting task; the arguments are the keys of ``configs/task/counting.yaml``, explained there."""

    kind: ClassVar[str] = "counting"
    version: ClassVar[int] = 1
    epoch_size: ClassVar[int] = 10000
    split_keys: ClassVar[tuple[str, ...]] = ("pass_weight", "min_operations", "max_operations", "context")

    def __init__(
        self,
        *,
        name: str = "counting",
        num_variables: int = 1,
        min_operations: int = 3,
        max_operations: int = 64,
        num_train: int | None = 10000,
        num_validation: int = 1000,
        num_test: int = 1000,
        weights: Mapping[str, float] | None = None,
        max_value: int = 10,
        context: int = 128,
        overflow: str = "cut_left",
        loss: str = "answers",
        splits: Mapping[str, Mapping[str, Any]] | None = None,
        data_seed: int = 0,
        data_dir: str | Path = "data",
    ) -> None:
        # Weights left out keep the paper's values, so that one can be changed alone.
        weights = {"set": 1, "increment": 7, "pass": 50} | check_mapping("task.weights", weights, KINDS)
        settings: Settings = {
            "num_variables": num_variables,
            "min_operations": min_operations,
            "max_operations": max_operations,
            **{f"{kind}_weight": weights[kind] for kind in KINDS},
            "max_value": max_value,
            "context": context,
            "overflow": overflow,
        }
        if overflow == "drop" and num_train is None:
            raise UserError(
                "task.overflow=drop with task.num_train=null would give epochs of different sizes; allowed: a number of "
                "task.num_train, or task.overflow=cut_left."
            )
        super().__init__(
            name=name,
            settings=settings,
            splits={"ood_longer": {"pass_weight": 100}, "ood_shorter": {"pass_weight": 10}} if splits is None else splits,
            num_train=num_train,
            num_validation=num_validation,
            num_test=num_test,
            loss=loss,
            data_seed=data_seed,
            data_dir=data_dir,
        )

    def check_settings(self, settings: Settings, where: str) -> None:
        check_whole_number(f"{where}.num_variables", settings["num_variables"], 1, 26)
        check_whole_number(f"{where}.min_operations", settings["min_operations"], 1)
        check_whole_number(f"{where}.max_operations", settings["max_operations"], 1)
        if settings["max_operations"] < settings["min_operations"]:
            raise UserError(
                f"{where}.max_operations={settings['max_operations']} is below "
                f"{where}.min_operations={settings['min_operations']}; allowed: the same or more."
            )
        for kind in KINDS:
            key = f"task.weights.{kind}" if where == "task" else f"{where}.{kind}_weight"
            # Without "set" no program has a variable to print, so its weight alone must not be zero.
            check_number(key, settings[f"{kind}_weight"], 1e-3 if kind == "set" else 0, 1e6)
        check_whole_number(f"{where}.max_value", settings["max_value"], 1, 1000)
        check_whole_number(f"{where}.context", settings["context"], PRINT_TOKENS + 1)
        check_choice(f"{where}.overflow", settings["overflow"], ("cut_left", "drop", "error"))

    def length_limit(self, settings: Settings) -> int:
        return int(settings["context"])

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Always at least five variable names: the models of the paper's 1, 3 and 5 variables then have the same size."""
        values = tuple(str(value) for value in range(self.settings["max_value"] + 1))
        return SYMBOLS + values + tuple(string.ascii_lowercase[: max(5, self.settings["num_variables"])])

    def generate(self, settings: Settings, num: int, random: np.random.Generator) -> Examples:
        kinds = np.full((num, settings["max_operations"]), UNSET, dtype=np.int8)
        variables = np.zeros((num, settings["max_operations"]), dtype=np.int16)
        values = np.zeros((num, settings["num_variables"]), dtype=np.int16)
        missing = np.arange(num)
        for _ in range(MAX_ROUNDS):
            kinds[missing], variables[missing], values[missing] = draw_programs(settings, len(missing), random)
            missing = missing[(values[missing] == UNSET).all(axis=1)]
            if not len(missing):
                break
        else:
            raise UserError(
                f"task.weights.set={settings['set_weight']} is too small beside the other weights: "
                f"{len(missing)} of {num} programs set no variable in {MAX_ROUNDS} tries. Raise it, or task.min_operations."
            )
        printed = random_true(values != UNSET, random)
        tokens, lengths = self._write(kinds, variables, printed, values[np.arange(num), printed])
        return fit(tokens, lengths, settings)

    def _write(
        self, kinds: np.ndarray, variables: np.ndarray, printed: np.ndarray, answers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The programs as ``(tokens, lengths)``: each operation's first token goes where the operations before it end."""
        sizes = np.where(kinds == UNSET, 0, TOKENS_OF_KIND[kinds])
        ends = np.cumsum(sizes, axis=1, dtype=np.int32)
        lengths = ends[:, -1] + PRINT_TOKENS
        first_name = len(self.vocabulary) - max(5, self.settings["num_variables"])
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


def random_true(mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For each row, the column of one of its True entries, all equally likely; 0 where a row has none."""
    ranks = np.cumsum(mask, axis=1, dtype=np.int8)  # the r-th True entry is the first place where this reaches r
    wanted = (random.random(len(mask)) * ranks[:, -1]).astype(np.int8) + 1
    return np.argmax(ranks == wanted[:, None], axis=1)


def draw_programs(settings: Settings, num: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(kinds, variables, values)``: operations (num, max_operations), UNSET beyond a program's end, and final values.

    Drawing again until an operation is possible means: an increment counts with its weight times the chance that the variable
    drawn for it can be incremented, and is then of any variable that can be, all equally likely. That is what we draw from,
    with nothing drawn twice.
    """
    num_operations = random.integers(settings["min_operations"], settings["max_operations"], size=num, endpoint=True)
    # Longest first, so that the programs still running are always the first few rows: a view, not a copy.
    num_operations = np.sort(num_operations)[::-1]
    running = np.searchsorted(-num_operations, -np.arange(settings["max_operations"]), side="left")
    kinds = np.full((num, settings["max_operations"]), UNSET, dtype=np.int8)
    variables = np.zeros((num, settings["max_operations"]), dtype=np.int16)  # 16 bits: token ids are made by adding to these
    values = np.full((num, settings["num_variables"]), UNSET, dtype=np.int16)
    for step, count in enumerate(running):
        state = values[:count]
        is_set = state != UNSET
        can_grow = is_set & (state < settings["max_value"])
        chance = can_grow.sum(axis=1) / np.maximum(is_set.sum(axis=1), 1)
        bound_increment = settings["set_weight"] + settings["increment_weight"] * chance
        draw = random.random(count) * (bound_increment + settings["pass_weight"])
        kind = np.where(draw < settings["set_weight"], SET, np.where(draw < bound_increment, INCREMENT, PASS))
        to_set, to_grow = np.nonzero(kind == SET)[0], np.nonzero(kind == INCREMENT)[0]
        kinds[:count, step] = kind
        variables[to_set, step] = random.integers(settings["num_variables"], size=len(to_set))
        variables[to_grow, step] = random_true(can_grow[to_grow], random)
        state[to_set, variables[to_set, step]] = 0
        state[to_grow, variables[to_grow, step]] += 1
    order = random.permutation(num)  # sorted by length no more
    return kinds[order], variables[order], values[order]


def fit(tokens: np.ndarray, lengths: np.ndarray, settings: Settings) -> Examples:
    """Deal with sequences longer than the context as ``overflow`` says."""
    context = settings["context"]
    too_long = lengths > context
    if too_long.any():
        if settings["overflow"] == "error":
            raise UserError(
                f"task.context={context} is too small: {too_long.sum()} of {len(lengths)} sequences are longer, the longest "
                f"{lengths.max()} tokens. Raise task.context, or set task.overflow=cut_left or task.overflow=drop."
            )
        if settings["overflow"] == "drop":
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
