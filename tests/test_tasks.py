"""Selective copy against its definition; what all synthetic tasks share: random streams, identity, and bad input."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from conftest import CONFIGS
from small_tasks import TASKS, configured, same, small, words

from cope.errors import UserError
from cope.tasks.a5 import AlternatingGroup
from cope.tasks.base import Examples
from cope.tasks.counting import Counting
from cope.tasks.flip_flop import FlipFlop
from cope.tasks.grid_navigation import GridNavigation
from cope.tasks.indirect_indexing import IndirectIndexing
from cope.tasks.length_generalisation import LengthGeneralisation
from cope.tasks.mqar import MultiQueryRecall
from cope.tasks.selective_copy import SelectiveCopy
from cope.tasks.synthetic import SyntheticTask, smallest_integer

# Selective copy


def test_selective_copy_is_a_copy_without_blanks() -> None:
    task = configured(SelectiveCopy, num_copied=6, num_blanks=4, num_test=500, splits={"sparse": {"num_blanks": 9}})
    assert task.vocab_size == 16
    assert (task.context_of("train"), task.longest_context) == (16, 21)
    for split, num_blanks in (("test", 4), ("sparse", 9)):
        examples = task.evaluation_examples(split)
        for sequence, answers in zip(words(task, examples), examples.answers, strict=True):
            place = sequence.index("<copy>")
            assert place == 6 + num_blanks
            assert [word for word in sequence[:place] if word != "<blank>"] == sequence[place + 1 :]
            assert sequence.count("<blank>") == num_blanks
            assert answers.nonzero()[0].tolist() == list(range(place + 1, place + 7))


def test_selective_copy_is_uniform() -> None:
    task = configured(SelectiveCopy, num_copied=2, num_blanks=2)
    tokens = task.generate(6000, np.random.default_rng(0)).tokens
    places = Counter(tuple(row.tolist()) for row in tokens[:, :4] != 0)
    assert len(places) == 6  # of 4 places 2
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in places.values())
    symbols = Counter(tokens[:, 5:].ravel().tolist())
    assert set(symbols) == set(range(2, 16))
    assert all(abs(count - 12000 / 14) < 5 * math.sqrt(12000 / 14) for count in symbols.values())


# Streams


@pytest.mark.parametrize("task", TASKS)
def test_streams_are_reproducible_and_distinct(task: type[SyntheticTask], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "epoch_size", 50)  # as many as in the other sets, so that equal streams are equal sets

    def everything(**changes: Any) -> dict[str, Examples]:
        made = small(task, **changes)
        endless = small(task, num_train=None, **changes)
        sets = {f"train {seed}": made.training_examples(seed, 0) for seed in (1, 2)}
        sets |= {f"endless {seed} {epoch}": endless.training_examples(seed, epoch) for seed in (1, 2) for epoch in (0, 1)}
        return sets | {split: made.evaluation_examples(split) for split in ("validation", *made.test_splits)}

    first, again, other = everything(), everything(), everything(data_seed=1)
    assert all(same(first[name], again[name]) for name in first)
    contents = [examples.tokens.tobytes() for sets in (first, other) for examples in sets.values()]
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize("task", TASKS)
def test_fixed_training_sets_stay_and_endless_ones_do_not(task: type[SyntheticTask], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "epoch_size", 20)
    fixed = small(task)
    assert same(fixed.training_examples(1, 0), fixed.training_examples(1, 7))
    assert len(fixed.training_examples(1, 0)) == 50
    endless = small(task, num_train=None)
    assert len(endless.training_examples(1, 0)) == 20
    assert not same(endless.training_examples(1, 0), endless.training_examples(1, 7))


@pytest.mark.parametrize("task", TASKS)
def test_examples_keep_the_contract(task: type[SyntheticTask]) -> None:
    made = small(task)
    assert made.test_splits[0] == "test"
    assert len(set(made.vocabulary)) == made.vocab_size
    for split in ("validation", *made.test_splits):
        examples = made.evaluation_examples(split)
        assert examples.tokens.dtype == smallest_integer(made.vocab_size)
        assert examples.lengths.dtype in (np.int8, np.int16)
        assert examples.tokens.max() < made.vocab_size
        assert examples.lengths.max() == examples.tokens.shape[1] <= made.context_of(split) + 1
        beyond = np.arange(examples.tokens.shape[1]) >= examples.lengths[:, None].astype(int)
        assert not (examples.answers & beyond).any()
    assert made.training_examples(1, 0).lengths.max() <= made.context_of("train") + 1


def test_smallest_integer() -> None:
    assert [smallest_integer(largest).name for largest in (1, 127, 128, 32767, 32768)] == [
        *("int8", "int8", "int16", "int16", "int32")
    ]


# Identity


@pytest.mark.parametrize("task", TASKS)
def test_another_generator_is_other_data(task: type[SyntheticTask], monkeypatch: pytest.MonkeyPatch) -> None:
    made = small(task)
    assert made.has_data(made.fingerprint) and made.has_data("")  # the first results did not say it
    assert not any(made.has_data(small(other).fingerprint) for other in TASKS if other is not task)
    before = made.fingerprint
    monkeypatch.setattr(task, "version", task.version + 1)
    assert not made.has_data(before) and not made.has_data("")


# Bad input

WEIGHTS = {"set": 1, "increment": 7, "pass": 50}
WRONG: list[tuple[type[SyntheticTask], dict[str, Any], str]] = [
    *(
        (task, changes, message)
        for task in TASKS
        for changes, message in (
            ({"name": "a/b"}, r"task\.name=a/b"),
            ({"num_train": 0}, r"task\.num_train=0 is too small"),
            ({"num_validation": 0}, r"task\.num_validation=0"),
            ({"num_test": 1.5}, r"task\.num_test=1\.5 has the wrong type"),
            ({"loss": "answer"}, r"task\.loss=answer .*Did you mean 'answers'"),
            ({"data_seed": -1}, r"task\.data_seed=-1"),
            ({"data_seed": True}, r"task\.data_seed=True"),
            ({"splits": "test"}, r"task\.splits=test"),
            ({"splits": {"ood": 3}}, r"task\.splits\.ood=3"),
            ({"splits": {"validation": {}}}, r"task\.splits\.validation: the name 'validation' is taken"),
            ({"splits": {"ood": {"num_blanksss": 3}}}, r"task\.splits\.ood\.num_blanksss is not a key; allowed: "),
        )
    ),
    (Counting, {"num_variables": 27}, r"task\.num_variables=27 is out of range; allowed: 1 to 26"),
    (Counting, {"num_variables": "three"}, r"task\.num_variables='three' has the wrong type"),
    (Counting, {"min_operations": 0}, r"task\.min_operations=0"),
    (Counting, {"min_operations": 31}, r"task\.max_operations=30 is below task\.min_operations=31"),
    (Counting, {"max_operations": 2.0}, r"task\.max_operations=2\.0"),
    (Counting, {"weights": {"increments": 7}}, r"task\.weights\.increments .*Did you mean 'increment'"),
    (Counting, {"max_value": 10**11}, r"task\.max_value=100000000000 is out of range; allowed: 1 to 32000"),
    (MultiQueryRecall, {"num_words": 10**11}, r"task\.num_words=100000000000 is out of range"),
    (IndirectIndexing, {"max_shift": 10**11}, r"task\.max_shift=100000000000 is out of range"),
    (Counting, {"weights": WEIGHTS | {"set": 0}}, r"task\.weights\.set=0 is out of range"),
    (Counting, {"weights": WEIGHTS | {"pass": -1}}, r"task\.weights\.pass=-1"),
    (Counting, {"weights": WEIGHTS | {"pass": float("nan")}}, r"task\.weights\.pass=nan"),
    (Counting, {"weights": WEIGHTS | {"increment": "x"}}, r"task\.weights\.increment=x is not a number"),
    (Counting, {"weights": {"set": 1, "pass": 2}}, r"task\.weights\.increment must be set"),
    (Counting, {"weights": 3}, r"task\.weights=3"),
    (Counting, {"max_value": 0}, r"task\.max_value=0"),
    (Counting, {"context": 3}, r"task\.context=3 is too small"),
    (Counting, {"overflow": "cutleft"}, r"task\.overflow=cutleft .*Did you mean 'cut_left'"),
    (Counting, {"splits": {"ood": {"pass_wieght": 3}}}, r"task\.splits\.ood\.pass_wieght .*Did you mean 'pass_weight'"),
    (Counting, {"splits": {"ood": {"pass_weight": -3}}}, r"task\.splits\.ood\.pass_weight=-3"),
    (Counting, {"splits": {"ood": {"min_operations": 99}}}, r"task\.splits\.ood\.max_operations=30 is below"),
    (Counting, {"splits": {"ood": {"context": 1}}}, r"task\.splits\.ood\.context=1"),
    (SelectiveCopy, {"num_copied": 0}, r"task\.num_copied=0"),
    (SelectiveCopy, {"num_blanks": -1}, r"task\.num_blanks=-1"),
    (SelectiveCopy, {"splits": {"ood": {"num_blanks": "x"}}}, r"task\.splits\.ood\.num_blanks=x"),
    (FlipFlop, {"num_pairs": 1}, r"task\.num_pairs=1"),
    (FlipFlop, {"p_ignore": 1.1}, r"task\.p_ignore=1\.1 is out of range; allowed: 0 to 1"),
    (FlipFlop, {"p_ignore": "x"}, r"task\.p_ignore='x' has the wrong type"),
    (FlipFlop, {"splits": {"ood": {"p_ignore": -1}}}, r"task\.splits\.ood\.p_ignore=-1"),
    (MultiQueryRecall, {"length": 19}, r"task\.length=19 has no room for task\.num_pairs=5 .*20 or more"),
    (MultiQueryRecall, {"num_words": 10}, r"task\.num_pairs=5 pairs need as many keys, and task\.num_words=10 has 4"),
    (MultiQueryRecall, {"power": 1.5}, r"task\.power=1\.5 is out of range"),
    (GridNavigation, {"num_dimensions": 3}, r"task\.num_dimensions=3 is out of range; allowed: 1 to 2"),
    (GridNavigation, {"splits": {"ood": {"grid": 1}}}, r"task\.splits\.ood\.grid=1 is too small"),
    (GridNavigation, {"longest_run": 0}, r"task\.longest_run=0"),
    (IndirectIndexing, {"min_letters": 41}, r"task\.min_letters=41 is out of range; allowed: 1 to 40"),
    (IndirectIndexing, {"splits": {"ood": {"max_letters": 53}}}, r"task\.splits\.ood\.max_letters=53 .*1 to 52"),
    (AlternatingGroup, {"length": 0}, r"task\.length=0 is too small"),
    (LengthGeneralisation, {"operation": "reserve"}, r"task\.operation=reserve .*Did you mean 'reverse'"),
    (LengthGeneralisation, {"min_length": 21}, r"task\.min_length=21 is out of range; allowed: 1 to 20"),
    (FlipFlop, {"source": "generater"}, r"task\.source=generater .*Did you mean 'generator'"),
    (FlipFlop, {"source": "/no/such/folder"}, r"task\.source=/no/such/folder is not a folder"),
]


@pytest.mark.parametrize(("task", "changes", "message"), WRONG)
def test_bad_input_names_the_key(task: type[SyntheticTask], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(task, **changes)


@pytest.mark.parametrize("task", TASKS)
def test_an_unknown_split_names_the_nearest(task: type[SyntheticTask]) -> None:
    with pytest.raises(UserError, match="Did you mean 'validation'"):
        small(task).evaluation_examples("validatoin")
    with pytest.raises(UserError, match="allowed: validation, test"):
        small(task).evaluation_examples("train")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Counting, ("test", "ood_longer", "ood_shorter", "ood_more_operations")),
        (SelectiveCopy, ("test", "ood_dense", "ood_sparse")),
        (FlipFlop, ("test", "ood_sparse", "ood_dense")),
        (MultiQueryRecall, ("test", "shorter", "fewer_pairs", "ood_longer", "ood_more_pairs")),
        (IndirectIndexing, ("test", "ood_longer")),
        (AlternatingGroup, ("test", "ood_longer")),
        (LengthGeneralisation, ("test", "ood_2x", "ood_4x")),
        (GridNavigation, ("test", "ood_dense", "ood_sparse")),
    ],
)
def test_every_configuration_has_the_splits_we_promise(task: type[SyntheticTask], expected: tuple[str, ...]) -> None:
    made = configured(task)
    assert (made.name, made.test_splits) == (task.kind, expected)
    file = CONFIGS / "task" / f"{task.kind}.yaml"
    assert file.read_text().startswith(f"# python train.py pe=cope task={task.kind}\n")


@pytest.mark.parametrize("task", TASKS)
def test_null_is_no_table_of_splits(task: type[SyntheticTask]) -> None:
    with pytest.raises(UserError, match=r"task\.splits=null is not a table.*~task\.splits"):
        configured(task, splits=None)
    for split in ("test", "ood_longer"):  # it would be the test split once more, under another name
        with pytest.raises(
            UserError, match=rf"task\.splits\.{split}=null is not a table.*remove it by its name: ~task\.splits"
        ):
            configured(task, splits={split: None})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"p_blank": 1.0}, "task.splits.test: none of the 50 examples of test has an answer"),
        ({"num_steps": 2, "grid": 1000, "num_test": 1}, "task.splits.test: none of the 1 examples of test has an answer"),
    ],
)
def test_examples_without_any_answer_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        small(GridNavigation, splits={}, **changes).evaluation_examples("test")
