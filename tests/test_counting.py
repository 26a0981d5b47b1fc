"""The counting task's generator against an interpreter of its programs and a plain generator of the same distribution."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from small_tasks import configured, small, words

from cope.errors import UserError
from cope.tasks.base import IGNORE
from cope.tasks.counting import Counting


def counting(**changes: Any) -> Counting:
    """Programs of up to 64 operations, and the test split alone."""
    return configured(Counting, **({"max_operations": 64, "context": 128, "splits": {}} | changes))


def interpret(program: list[str], max_value: int = 10) -> tuple[list[str], dict[str, int], str, str]:
    """Run a counting program: ``(kinds of operations, final values, variable printed, value printed)``; asserts it is valid."""
    kinds: list[str] = []
    values: dict[str, int] = {}
    position = 0
    while program[position] != "print":
        if program[position] == "pass;":
            kinds.append("pass")
            position += 1
        elif program[position + 1] == "++;":
            values[program[position]] += 1  # a KeyError if it was never set
            assert values[program[position]] <= max_value
            kinds.append("increment")
            position += 2
        else:
            assert program[position + 1 : position + 4] == ["=", "0", ";"]
            values[program[position]] = 0
            kinds.append("set")
            position += 4
    assert len(program) == position + 3
    return kinds, values, program[-2], program[-1]


@pytest.mark.parametrize("num_variables", [1, 3, 26])
def test_counting_programs_are_valid_and_answered(num_variables: int) -> None:
    # Increments outweigh passes, so that values reach the limit of 3 all the time.
    task = counting(
        num_variables=num_variables, max_value=3, weights={"set": 1, "increment": 9, "pass": 5}, num_train=None, context=300
    )
    examples = task.generate(1000, np.random.default_rng(0))
    lengths, printed, answers = set(), Counter(), Counter()
    for program in words(task, examples):
        kinds, values, variable, answer = interpret(program, max_value=3)
        assert values[variable] == int(answer)
        assert set(values) <= set(task.vocabulary[-max(5, num_variables) :][:num_variables])
        lengths.add(len(kinds))
        printed[variable] += 1
        answers[answer] += 1
    assert lengths == set(range(3, 65))
    assert len(printed) == num_variables
    assert set(answers) == {"0", "1", "2", "3"}
    assert examples.num_cut == 0


def test_counting_only_the_answer_is_scored() -> None:
    task = small(Counting)
    examples = task.evaluation_examples("validation")
    assert examples.answers.sum() == len(examples)
    inputs, targets = examples.batch(np.arange(len(examples)))
    for row, length in enumerate(examples.lengths):
        assert targets[row, length - 2] == examples.tokens[row, length - 1]
        assert task.vocabulary[inputs[row, length - 3]] == "print"
        assert (examples.tokens[row, length:] == 0).all()
    assert (targets != IGNORE).sum() == len(examples)


def generate_plainly(num_variables: int, weights: dict[str, int], max_value: int, seed: int, num: int) -> list[list[str]]:
    """The released generator's algorithm, one program and one operation at a time, with real redraws."""
    random = np.random.default_rng(seed)
    names = "abcdefghijklmnopqrstuvwxyz"[:num_variables]
    chances = np.array(list(weights.values())) / sum(weights.values())
    programs: list[list[str]] = []
    while len(programs) < num:
        values: dict[str, int] = {}
        program: list[str] = []
        for _ in range(random.integers(3, 13)):
            while True:
                kind = random.choice(list(weights), p=chances)
                if kind == "increment":
                    if not values:
                        continue
                    name = random.choice(list(values))
                    if values[name] == max_value:
                        continue
                    values[name] += 1
                    program += [name, "++;"]
                elif kind == "set":
                    name = random.choice(list(names))
                    values[name] = 0
                    program += [name, "=", "0", ";"]
                else:
                    program.append("pass;")
                break
        if values:
            name = random.choice(list(values))
            programs.append([*program, "print", name, str(values[name])])
    return programs


def statistics(programs: list[list[str]], max_value: int) -> Counter[tuple[Any, ...]]:
    """Shares that would differ if any rule did: lengths, kinds by step and by what may be incremented, names, answers."""
    found: Counter[tuple[Any, ...]] = Counter()
    for program in programs:
        kinds, values, variable, answer = interpret(program, max_value)
        found["operations", len(kinds)] += 1
        found["answer", answer] += 1
        found["printed", variable] += 1
        found["variables", len(values)] += 1
        for step in (0, 1, 2):
            found["kind", step, kinds[step]] += 1
        found["last kind", kinds[-1]] += 1
        found["at the limit", sum(value == max_value for value in values.values())] += 1
        for name in values:
            found["final", name, values[name]] += 1
    return found


def test_counting_has_the_distribution_of_the_plain_generator() -> None:
    weights, num, max_value = {"set": 2, "increment": 6, "pass": 4}, 6000, 2
    task = counting(num_variables=3, weights=weights, max_value=max_value, max_operations=12)
    ours = statistics(words(task, task.generate(num, np.random.default_rng(1))), max_value)
    plain = statistics(generate_plainly(3, weights, max_value, 2, num), max_value)
    assert set(ours) == set(plain)
    for key, count in plain.items():
        share = (count + ours[key]) / 2 / num
        # Two samples of num programs: the difference has this standard deviation; five are one chance in 10 ** 6.
        allowed = 5 * math.sqrt(2 * num * share * (1 - share)) + 1
        assert abs(ours[key] - count) < allowed, key


def test_counting_programs_are_in_no_order() -> None:
    task = counting(context=300)
    lengths = task.generate(2000, np.random.default_rng(0)).lengths
    assert abs(np.corrcoef(np.arange(2000), lengths)[0, 1]) < 5 / math.sqrt(2000)


@pytest.mark.parametrize("max_value", [115, 118, 250])
def test_counting_token_ids_beyond_a_byte(max_value: int) -> None:
    task = counting(num_variables=5, max_value=max_value, context=300)
    for program in words(task, task.generate(200, np.random.default_rng(0))):
        _, values, variable, answer = interpret(program, max_value)
        assert values[variable] == int(answer)
        assert set(values) <= set("abcde")


def test_counting_draws_operations_by_weight() -> None:
    task = counting(num_variables=1, min_operations=400, max_operations=400, max_value=1000, context=2000)
    examples = task.generate(500, np.random.default_rng(0))
    kinds: Counter[str] = Counter()
    for program in words(task, examples):
        drawn, _, _, _ = interpret(program, 1000)
        first = drawn.index("set")
        kinds.update(drawn[first + 1 :])  # once the variable is set, and far from the limit, nothing is drawn again
    total = sum(kinds.values())
    for kind, weight in (("set", 1), ("increment", 7), ("pass", 50)):
        share = weight / 58
        assert abs(kinds[kind] - total * share) < 5 * math.sqrt(total * share * (1 - share)), kind


def test_counting_splits_change_the_settings_they_name() -> None:
    splits = {"ood_longer": {"pass_weight": 100}, "ood_more": {"min_operations": 65, "max_operations": 80, "context": 200}}
    task = counting(splits=splits, num_test=200)
    assert task.test_splits == ("test", "ood_longer", "ood_more")
    assert (task.context_of("train"), task.longest_context) == (127, 199)  # the last token is not read
    passes = {}
    for split in task.test_splits:
        drawn = [interpret(program)[0] for program in words(task, task.evaluation_examples(split))]
        passes[split] = np.mean([kinds.count("pass") / len(kinds) for kinds in drawn])
        assert all((len(kinds) > 64) == (split == "ood_more") for kinds in drawn)
    assert passes["ood_longer"] > passes["test"] + 0.02


def test_counting_overflow(caplog: pytest.LogCaptureFixture) -> None:
    def make(overflow: str, context: int) -> Counting:
        return counting(context=context, overflow=overflow, num_train=500)

    whole = make("error", 300).training_examples(1, 0)
    too_long = whole.lengths > 40
    assert 0 < too_long.sum() < 500
    assert whole.num_cut == 0

    with caplog.at_level(logging.INFO):
        cut = make("cut_left", 40).training_examples(1, 0)
        dropped = make("drop", 40).training_examples(1, 0)
    assert cut.num_cut == dropped.num_cut == too_long.sum()
    assert [record.getMessage().split(": ")[1].split(" sequences")[0] for record in caplog.records] == [
        f"{too_long.sum()} of 500"
    ] * 2
    assert len(cut) == 500
    assert cut.tokens.shape[1] == cut.lengths.max() == 40
    for row in range(500):
        length = cut.lengths[row]
        assert length == min(40, whole.lengths[row])
        assert np.array_equal(cut.tokens[row, :length], whole.tokens[row, whole.lengths[row] - length : whole.lengths[row]])
        assert cut.answers[row].nonzero()[0].tolist() == [length - 1]
    assert np.array_equal(dropped.lengths, whole.lengths[~too_long])
    assert np.array_equal(dropped.tokens, whole.tokens[~too_long][:, : dropped.lengths.max()])
    with pytest.raises(UserError, match=rf"task\.context=40 .* longest {whole.lengths.max()} tokens"):
        make("error", 40).training_examples(1, 0)
    with pytest.raises(UserError, match="no sequence is left"):
        make("drop", 4).training_examples(1, 0)


def test_counting_gives_up_on_programs_that_hardly_ever_set_a_variable() -> None:
    task = counting(max_operations=3, weights={"set": 1, "increment": 7, "pass": 1e6})
    with pytest.raises(UserError, match=r"task\.weights\.set=1 "):
        task.generate(100, np.random.default_rng(0))
