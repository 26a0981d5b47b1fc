"""The tasks of the field beside CoPE: their answers against another way to find them, and what they are drawn from."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from small_tasks import configured, words

from cope.tasks.a5 import AlternatingGroup
from cope.tasks.base import IGNORE, Examples
from cope.tasks.grid_navigation import GridNavigation
from cope.tasks.indirect_indexing import IndirectIndexing
from cope.tasks.length_generalisation import LengthGeneralisation
from cope.tasks.mqar import MultiQueryRecall
from cope.tasks.synthetic import SyntheticTask, draw_distinct


def scored(task: SyntheticTask, examples: Examples) -> list[list[tuple[int, str]]]:
    """(place of the token read last, the label there) of each example, as a model is scored on them."""
    _, targets = examples.batch(np.arange(len(examples)))
    return [
        [(place, task.vocabulary[row[place]]) for place in np.flatnonzero(row != IGNORE).tolist()] for row in targets.numpy()
    ]


def test_draws_without_putting_back_follow_their_weights() -> None:
    weights = np.array([4.0, 2.0, 1.0, 1.0], dtype=np.float32)
    drawn = draw_distinct(np.random.default_rng(0), 20000, weights, 2)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    found = Counter(map(tuple, drawn.tolist()))
    for first in range(4):
        for second in set(range(4)) - {first}:
            expected = weights[first] / 8 * weights[second] / (8 - weights[first])
            assert found[first, second] / 20000 == pytest.approx(expected, abs=0.01)
    assert sorted(draw_distinct(np.random.default_rng(0), 1, weights, 4)[0].tolist()) == [0, 1, 2, 3]


# ---- multi-query associative recall -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("random_filling", [False, True])
def test_mqar_asks_every_key_once_for_the_value_it_was_shown_with(random_filling: bool) -> None:
    splits = {"longer": {"length": 60}, "other": {"num_pairs": 16, "length": 64}}
    task = configured(
        MultiQueryRecall, num_words=400, length=40, num_pairs=6, num_test=300, random_filling=random_filling, splits=splits
    )
    for split, num_pairs, length in (("test", 6, 40), ("longer", 6, 60), ("other", 16, 64)):
        examples = task.evaluation_examples(split)
        for sequence, asked in zip(words(task, examples), scored(task, examples), strict=True):
            shown = dict(zip(sequence[0 : 2 * num_pairs : 2], sequence[1 : 2 * num_pairs : 2], strict=True))
            assert len(shown) == len(set(shown.values())) == num_pairs
            assert all(key[0] == "k" and value[0] == "v" for key, value in shown.items())
            assert [(sequence[place], label) for place, label in asked] == [(sequence[p], shown[sequence[p]]) for p, _ in asked]
            assert {sequence[place] for place, _ in asked} == set(shown)
            assert min(place for place, _ in asked) >= 2 * num_pairs
            assert len(sequence) == length + 1  # the last is only predicted
            rest = sequence[2 * num_pairs : -1]
            assert random_filling or rest.count("<blank>") == len(rest) - num_pairs


def test_mqar_asks_soon_more_often_than_late() -> None:
    task = configured(MultiQueryRecall, num_words=400, length=64, num_pairs=1, splits={})
    places = Counter(
        (examples_place - 3) // 2 for examples_place in task.generate(20000, np.random.default_rng(0)).answers.nonzero()[1]
    )
    weights = np.arange(1, 32) ** -0.99
    for gap in (0, 1, 5, 30):
        assert places[gap] / 20000 == pytest.approx(weights[gap] / weights.sum(), abs=0.012)


# ---- grid navigation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"num_dimensions": 1, "grid": 12},
        {"num_dimensions": 2, "grid": 5, "longest_run": 3},
        {"num_dimensions": 2, "grid": 3, "score_blanks": True},
    ],
)
def test_grid_navigation_scores_what_was_seen_in_the_same_cell(settings: dict[str, Any]) -> None:
    task = configured(GridNavigation, num_steps=50, num_test=200, splits={}, **settings)
    moves = {"right": (1, 0), "left": (-1, 0), "up": (0, 1), "down": (0, -1)}
    examples = task.evaluation_examples("test")
    num_asked = 0
    for sequence, asked in zip(words(task, examples), scored(task, examples), strict=True):
        seen: dict[tuple[int, int], str] = {}
        cell, expected = (0, 0), []
        for step, (action, found) in enumerate(zip(sequence[::2], sequence[1::2], strict=True)):
            move = moves[action]
            cell = ((cell[0] + move[0]) % task.grid, (cell[1] + move[1]) % task.grid)
            if cell in seen:
                assert seen[cell] == found  # the world stays as it is
                if found != "blank" or task.score_blanks:
                    expected.append((2 * step, found))
            seen[cell] = found
        assert asked == expected
        num_asked += len(expected)
    assert num_asked > 1000
    assert task.vocab_size == 2 * task.num_dimensions + 17


def test_grid_navigation_walks_in_runs_of_every_length_and_direction() -> None:
    task = configured(GridNavigation, num_steps=60, num_dimensions=2, longest_run=3, p_blank=0.25, splits={})
    examples = task.generate(3000, np.random.default_rng(0))
    actions, observed = examples.tokens[:, ::2], examples.tokens[:, 1::2]
    assert np.allclose([(actions == action).mean() for action in range(4)], 0.25, atol=0.01)
    # Runs of 1 to 3 steps end after 2 on average, and the next goes elsewhere in three of four cases.
    assert (actions[:, 30:-1] != actions[:, 31:]).mean() == pytest.approx(0.75 / 2, abs=0.01)
    assert (observed == 4).mean() == pytest.approx(0.25, abs=0.01)


# ---- indirect indexing -------------------------------------------------------------------------------------------------------


def test_indirect_indexing_goes_from_the_letter_by_the_shift() -> None:
    task = configured(IndirectIndexing, num_test=2000)
    assert task.vocab_size == 1 + 52 + 31
    for split, sizes in (("test", range(20, 41)), ("ood_longer", range(41, 53))):
        examples = task.evaluation_examples(split)
        shifts, found_sizes = Counter(), Counter()
        for sequence, asked in zip(words(task, examples), scored(task, examples), strict=True):
            text = " ".join(sequence).split(" , ")
            letters = text[0].split()
            assert len(set(letters)) == len(letters)
            letter, shift, answer = text[1:]
            assert letters[letters.index(letter) + int(shift)] == answer
            assert letters.index(letter) + int(shift) >= 0
            assert asked == [(len(sequence) - 2, answer)]
            shifts[int(shift)] += 1
            found_sizes[len(letters)] += 1
        assert set(shifts) == set(range(-15, 16))
        assert set(found_sizes) == set(sizes)


# ---- the word problem of A5 --------------------------------------------------------------------------------------------------


def test_a5_is_closed_and_its_labels_are_products() -> None:
    task = configured(AlternatingGroup, num_test=200)
    matrices = {word: np.eye(5, dtype=int)[[int(digit) for digit in word]] for word in task.vocabulary}
    assert len(matrices) == 60
    assert all(round(float(np.linalg.det(matrix))) == 1 for matrix in matrices.values())  # even
    for split, length in (("test", 20), ("ood_longer", 40)):
        examples = task.evaluation_examples(split)
        for sequence, asked in zip(words(task, examples), scored(task, examples), strict=True):
            assert [place for place, _ in asked] == list(range(length))
            product = np.eye(5, dtype=int)
            for place, label in asked:
                product = product @ matrices[sequence[place]]  # row i of a matrix has its 1 where i goes
                assert (product == matrices[label]).all()
    tokens = Counter(task.generate(600, np.random.default_rng(0)).tokens.ravel().tolist())
    assert min(tokens.values()) > 140 and max(tokens.values()) < 290  # 210 each


# ---- copy, reverse and addition ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["copy", "reverse", "addition"])
def test_length_generalisation_answers_are_right_and_lengths_uniform(operation: str) -> None:
    task = configured(
        LengthGeneralisation,
        operation=operation,
        num_test=1000,
        max_length=10,
        splits={"ood": {"min_length": 21, "max_length": 40}},
    )
    for split, sizes in (("test", range(1, 11)), ("ood", range(21, 41))):
        examples = task.evaluation_examples(split)
        found = Counter()
        for sequence, asked in zip(words(task, examples), scored(task, examples), strict=True):
            text = "".join(sequence)
            question, answer = text.rstrip(".").split("=" if operation == "addition" else ">")
            if operation == "addition":
                numbers = question.split("+")
                assert int(answer) == sum(map(int, numbers))
                assert all(number == str(int(number)) for number in (*numbers, answer))  # no leading zeros
                found[max(map(len, numbers))] += 1
            else:
                assert answer == (question if operation == "copy" else question[::-1])
                found[len(question)] += 1
            assert "".join(label for _, label in asked) == f"{answer}."
            assert [place for place, _ in asked] == list(range(len(question), len(text) - 1))
        assert set(found) == set(sizes)
        expected = 1000 / len(sizes)
        assert all(abs(count - expected) < 5 * expected**0.5 for count in found.values())
