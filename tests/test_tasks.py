"""The tasks' generators against plain interpreters of their definitions, their random streams, their cache, and bad input."""

from __future__ import annotations

import logging
import math
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cope.errors import UserError
from cope.tasks import flip_flop_files
from cope.tasks.base import IGNORE, Examples
from cope.tasks.counting import Counting
from cope.tasks.flip_flop import FlipFlop
from cope.tasks.flip_flop_files import FlipFlopFiles
from cope.tasks.selective_copy import SelectiveCopy
from cope.tasks.synthetic import SyntheticTask, smallest_integer

SMALL: dict[type[SyntheticTask], dict[str, Any]] = {
    Counting: {"num_train": 50, "num_validation": 50, "num_test": 50, "max_operations": 30},
    SelectiveCopy: {"num_train": 50, "num_validation": 50, "num_test": 50, "num_copied": 8, "num_blanks": 8, "splits": {}},
    FlipFlop: {"num_train": 50, "num_validation": 50, "num_test": 50, "num_pairs": 10},
}
TASKS = list(SMALL)


def small(task: type[SyntheticTask], folder: Path, **changes: Any) -> SyntheticTask:
    return task(**(SMALL[task] | {"data_dir": str(folder)} | changes))


def words(task: SyntheticTask, examples: Examples) -> list[list[str]]:
    vocabulary = task.vocabulary
    return [
        [vocabulary[token] for token in tokens[:length]]
        for tokens, length in zip(examples.tokens, examples.lengths, strict=True)
    ]


def same(first: Examples, second: Examples) -> bool:
    return all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in ("tokens", "lengths", "answers", "num_cut")
    )


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


# Counting


@pytest.mark.parametrize("num_variables", [1, 3, 26])
def test_counting_programs_are_valid_and_answered(num_variables: int) -> None:
    # Increments outweigh passes, so that values reach the limit of 3 all the time.
    task = Counting(
        num_variables=num_variables, max_value=3, weights={"set": 1, "increment": 9, "pass": 5}, num_train=None, context=300
    )
    examples = task.generate(task.settings, 1000, np.random.default_rng(0))
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


def test_counting_only_the_answer_is_scored(tmp_path: Path) -> None:
    task = small(Counting, tmp_path)
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
    task = Counting(num_variables=3, weights=weights, max_value=max_value, max_operations=12)
    ours = statistics(words(task, task.generate(task.settings, num, np.random.default_rng(1))), max_value)
    plain = statistics(generate_plainly(3, weights, max_value, 2, num), max_value)
    assert set(ours) == set(plain)
    for key, count in plain.items():
        share = (count + ours[key]) / 2 / num
        # Two samples of num programs: the difference has this standard deviation; five are one chance in 10 ** 6.
        allowed = 5 * math.sqrt(2 * num * share * (1 - share)) + 1
        assert abs(ours[key] - count) < allowed, key


def test_counting_programs_are_in_no_order() -> None:
    task = Counting(context=300)
    lengths = task.generate(task.settings, 2000, np.random.default_rng(0)).lengths
    assert abs(np.corrcoef(np.arange(2000), lengths)[0, 1]) < 5 / math.sqrt(2000)


@pytest.mark.parametrize("max_value", [115, 118, 250])
def test_counting_token_ids_beyond_a_byte(max_value: int) -> None:
    task = Counting(num_variables=5, max_value=max_value, context=300)
    for program in words(task, task.generate(task.settings, 200, np.random.default_rng(0))):
        _, values, variable, answer = interpret(program, max_value)
        assert values[variable] == int(answer)
        assert set(values) <= set("abcde")


def test_counting_draws_operations_by_weight() -> None:
    task = Counting(num_variables=1, min_operations=400, max_operations=400, max_value=1000, context=2000)
    examples = task.generate(task.settings, 500, np.random.default_rng(0))
    kinds: Counter[str] = Counter()
    for program in words(task, examples):
        drawn, _, _, _ = interpret(program, 1000)
        first = drawn.index("set")
        kinds.update(drawn[first + 1 :])  # once the variable is set, and far from the limit, nothing is drawn again
    total = sum(kinds.values())
    for kind, weight in (("set", 1), ("increment", 7), ("pass", 50)):
        share = weight / 58
        assert abs(kinds[kind] - total * share) < 5 * math.sqrt(total * share * (1 - share)), kind


def test_counting_splits_change_the_settings_they_name(tmp_path: Path) -> None:
    splits = {"ood_longer": {"pass_weight": 100}, "ood_more": {"min_operations": 65, "max_operations": 80, "context": 200}}
    task = Counting(splits=splits, data_dir=tmp_path, num_test=200)
    assert task.test_splits == ("test", "ood_longer", "ood_more")
    assert (task.context, task.longest) == (128, 200)
    passes = {}
    for split in task.test_splits:
        drawn = [interpret(program)[0] for program in words(task, task.evaluation_examples(split))]
        passes[split] = np.mean([kinds.count("pass") / len(kinds) for kinds in drawn])
        assert all((len(kinds) > 64) == (split == "ood_more") for kinds in drawn)
    assert passes["ood_longer"] > passes["test"] + 0.02


def test_counting_overflow(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    def make(overflow: str, context: int) -> Counting:
        return Counting(context=context, overflow=overflow, num_train=500, data_dir=tmp_path, splits={})

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
    task = Counting(max_operations=3, weights={"set": 1, "pass": 1e6})
    with pytest.raises(UserError, match=r"task\.weights\.set=1 "):
        task.generate(task.settings, 100, np.random.default_rng(0))


# Selective copy


def test_selective_copy_is_a_copy_without_blanks(tmp_path: Path) -> None:
    task = SelectiveCopy(num_copied=6, num_blanks=4, num_test=500, data_dir=tmp_path, splits={"sparse": {"num_blanks": 9}})
    assert task.vocab_size == 16
    assert (task.context, task.longest) == (17, 22)
    for split, num_blanks in (("test", 4), ("sparse", 9)):
        examples = task.evaluation_examples(split)
        for sequence, answers in zip(words(task, examples), examples.answers, strict=True):
            place = sequence.index("<copy>")
            assert place == 6 + num_blanks
            assert [word for word in sequence[:place] if word != "<blank>"] == sequence[place + 1 :]
            assert sequence.count("<blank>") == num_blanks
            assert answers.nonzero()[0].tolist() == list(range(place + 1, place + 7))


def test_selective_copy_is_uniform() -> None:
    task = SelectiveCopy(num_copied=2, num_blanks=2)
    tokens = task.generate(task.settings, 6000, np.random.default_rng(0)).tokens
    places = Counter(tuple(row.tolist()) for row in tokens[:, :4] != 0)
    assert len(places) == 6  # of 4 places 2
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in places.values())
    symbols = Counter(tokens[:, 5:].ravel().tolist())
    assert set(symbols) == set(range(2, 16))
    assert all(abs(count - 12000 / 14) < 5 * math.sqrt(12000 / 14) for count in symbols.values())


# Flip-flop


def read_out(sequence: list[str]) -> list[int]:
    """Run a flip-flop sequence; the positions of the bits that were read, which must be right."""
    memory, reads = "", []
    assert sequence[0] == "w"
    assert sequence[-2] == "r"
    for position in range(0, len(sequence), 2):
        instruction, bit = sequence[position : position + 2]
        assert instruction in ("w", "r", "i")
        assert bit in ("0", "1")
        if instruction == "w":
            memory = bit
        if instruction == "r":
            assert bit == memory
            reads.append(position + 1)
    return reads


@pytest.mark.parametrize("p_ignore", [0.0, 0.1, 0.8, 1.0])
def test_flip_flop_reads_what_was_written(p_ignore: float) -> None:
    task = FlipFlop(num_pairs=30, p_ignore=p_ignore)
    examples = task.generate(task.settings, 400, np.random.default_rng(0))
    instructions: Counter[str] = Counter()
    bits: dict[str, list[int]] = {"w": [], "i": [], "r": []}
    for sequence, answers in zip(words(task, examples), examples.answers, strict=True):
        assert answers.nonzero()[0].tolist() == read_out(sequence)
        instructions.update(sequence[2:-2:2])
        for instruction, bit in zip(sequence[::2], sequence[1::2], strict=True):
            bits[instruction].append(int(bit))
    total = 400 * 28
    for instruction, share in (("i", p_ignore), ("w", (1 - p_ignore) / 2), ("r", (1 - p_ignore) / 2)):
        assert abs(instructions[instruction] - total * share) <= 5 * math.sqrt(total * share * (1 - share)), instruction
    for instruction in ("w", "i"):
        drawn = bits[instruction]
        assert abs(sum(drawn) - len(drawn) / 2) <= 5 * math.sqrt(len(drawn)) / 2


def texts(num: int, seed: int, num_pairs: int = 10) -> list[str]:
    task = FlipFlop(num_pairs=num_pairs)
    return ["".join(row) for row in words(task, task.generate(task.settings, num, np.random.default_rng(seed)))]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """A folder laid out as the released data set: training in two parts, the others in one."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("released")
    (folder / "data").mkdir()
    rows = {"train": texts(100, 0), "val": texts(40, 1), "val_dense": texts(20, 2), "val_sparse": texts(20, 3)}
    for name, part in (
        ("train-00000-of-00002", rows["train"][:60]),
        ("train-00001-of-00002", rows["train"][60:]),
        ("val-00000-of-00001", rows["val"]),
        ("val_dense-00000-of-00001", rows["val_dense"]),
        ("val_sparse-00000-of-00001", rows["val_sparse"]),
    ):
        pandas.DataFrame({"text": part}).to_parquet(folder / "data" / f"{name}.parquet")
    return folder, rows


def from_files(source: Path | str, folder: Path, **changes: Any) -> FlipFlop:
    settings = {"source": str(source), "num_pairs": 10, "num_validation": 20, "num_test": 20, "data_dir": folder}
    return FlipFlop(**(settings | changes))


def joined(task: FlipFlop, examples: Examples) -> list[str]:
    return ["".join(row) for row in words(task, examples)]


@pytest.mark.parametrize("saved", [False, True])
def test_flip_flop_from_a_local_copy(released: tuple[Path, dict[str, list[str]]], saved: bool, tmp_path: Path) -> None:
    source, rows = released
    if saved:
        import datasets

        source = tmp_path / "saved"
        datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": part}) for name, part in rows.items()}).save_to_disk(
            str(source)
        )
    task = from_files(source, tmp_path, num_train=100)
    for split, expected in (
        ("validation", rows["val"][20:]),
        ("test", rows["val"][:20]),
        ("ood_sparse", rows["val_sparse"]),
        ("ood_dense", rows["val_dense"]),
    ):
        examples = task.evaluation_examples(split)
        assert joined(task, examples) == expected
        for sequence, answers in zip(words(task, examples), examples.answers, strict=True):
            assert answers.nonzero()[0].tolist() == read_out(sequence)
    assert joined(task, task.training_examples(1, 0)) == joined(task, task.training_examples(1, 5)) == rows["train"]
    with pytest.raises(UserError, match=r"task\.num_test=21 is too large.*allowed: 1 to 20"):
        from_files(source, tmp_path, num_test=21).evaluation_examples("test")


def test_flip_flop_passes_through_the_training_files(
    released: tuple[Path, dict[str, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlipFlop, "epoch_size", 30)
    source, rows = released
    task = from_files(source, tmp_path)
    seen = [row for epoch in range(10) for row in joined(task, task.training_examples(1, epoch))]
    assert Counter(seen) == Counter(rows["train"] * 3)  # 300 rows are three times round 100
    assert joined(task, task.training_examples(1, 4)) == seen[120:150]
    assert joined(task, task.training_examples(2, 4)) != seen[120:150]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("w0i1r1", "last written"),
        ("i0w1r1", "first instruction is w"),
        ("w0x1r0", "alternate"),
        ("w00ir0", "alternate"),
        ("w0i1r", "5 characters, not 6"),
        ("w0i1r0i1", "task.num_pairs=3"),
        ("w0ï1r0", "plain text"),
    ],
)
def test_flip_flop_refuses_malformed_text(text: str, reason: str, tmp_path: Path) -> None:
    task = from_files(tmp_path, tmp_path, num_pairs=3, num_validation=1, num_test=1)
    rows = ["w1i0r1", "w0i1r0"]
    task.files.first = lambda *_: rows  # type: ignore[union-attr, method-assign]
    assert joined(task, task.fixed_examples("test", task.settings, 2, None)) == rows
    rows[1] = text
    with pytest.raises(UserError, match=reason):
        task.fixed_examples("test", task.settings, 2, None)


def test_flip_flop_names_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    task = from_files(tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"no file val\.parquet"):
        task.evaluation_examples("test")
    pandas.DataFrame({"sentence": texts(40, 0)}).to_parquet(tmp_path / "val.parquet")
    with pytest.raises(UserError, match=r"no column 'text'; it has: sentence"):
        task.evaluation_examples("test")
    (tmp_path / "val_dense.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"cannot load split 'val_dense'.*task\.source=generator"):
        task.evaluation_examples("ood_dense")


def test_flip_flop_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[hub\]'"):
        FlipFlop(source="hub", data_dir=tmp_path).evaluation_examples("test")


def test_flip_flop_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[str, str, bool]] = []

    def load_dataset(path: str, split: str, **_: Any) -> Any:
        asked.append((path, split, datasets.config.HF_HUB_OFFLINE))
        return datasets.Dataset.from_dict({"text": texts(40, 0)})

    before = datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for reachable in (True, False):  # not reachable: what an earlier run downloaded
        monkeypatch.setattr(flip_flop_files, "is_reachable", lambda url, reachable=reachable: reachable)
        task = from_files("hub", tmp_path)
        first, second = (joined(task, task.evaluation_examples(split)) for split in ("test", "validation"))
        assert first + second == texts(40, 0)
        task.evaluation_examples("ood_dense")
    expected = [("synthseq/flipflop", "val"), ("synthseq/flipflop", "val_dense")]
    assert asked == [(*call, before) for call in expected] + [(*call, True) for call in expected]
    assert before == datasets.config.HF_HUB_OFFLINE


def test_flip_flop_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nothing listens there
    assert not flip_flop_files.is_reachable(flip_flop_files.endpoint())
    monkeypatch.setattr(flip_flop_files, "DATASET", "synthseq/never-downloaded")
    with pytest.raises(
        UserError,
        match=r"task\.source=hub: http://127\.0\.0\.1:1 cannot be reached.*task\.source=generator.*task\.source=/path",
    ):
        FlipFlop(source="hub", data_dir=tmp_path).evaluation_examples("test")


def test_flip_flop_refuses_settings_that_files_would_ignore(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.splits\.ood_sparse\.p_ignore=0\.9 .*0\.98"):
        FlipFlop(source="hub", splits={"ood_sparse": {"p_ignore": 0.9}})
    with pytest.raises(UserError, match=r"task\.p_ignore=0\.5 "):
        FlipFlop(source="hub", p_ignore=0.5)
    with pytest.raises(UserError, match="Did you mean 'ood_sparse'"):
        FlipFlop(source=str(tmp_path), splits={"sparse": {}})


# Streams


@pytest.mark.parametrize("task", TASKS)
def test_streams_are_reproducible_and_distinct(
    task: type[SyntheticTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "epoch_size", 50)  # as many as in the other sets, so that equal streams are equal sets

    def everything(folder: str, **changes: Any) -> dict[str, Examples]:
        made = small(task, tmp_path / folder, **changes)
        endless = small(task, tmp_path / folder, num_train=None, **changes)
        sets = {f"train {seed}": made.training_examples(seed, 0) for seed in (1, 2)}
        sets |= {f"endless {seed} {epoch}": endless.training_examples(seed, epoch) for seed in (1, 2) for epoch in (0, 1)}
        return sets | {split: made.evaluation_examples(split) for split in ("validation", *made.test_splits)}

    first, again, other = everything("a"), everything("b"), everything("a", data_seed=1)
    assert all(same(first[name], again[name]) for name in first)
    contents = [examples.tokens.tobytes() for sets in (first, other) for examples in sets.values()]
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize("task", TASKS)
def test_fixed_training_sets_stay_and_endless_ones_do_not(
    task: type[SyntheticTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "epoch_size", 20)
    fixed = small(task, tmp_path)
    assert same(fixed.training_examples(1, 0), fixed.training_examples(1, 7))
    assert len(fixed.training_examples(1, 0)) == 50
    before = sorted(tmp_path.rglob("*.npz"))
    endless = small(task, tmp_path, num_train=None)
    assert len(endless.training_examples(1, 0)) == 20
    assert sorted(tmp_path.rglob("*.npz")) == before  # endless data is not stored


@pytest.mark.parametrize("task", TASKS)
def test_examples_keep_the_contract(task: type[SyntheticTask], tmp_path: Path) -> None:
    made = small(task, tmp_path)
    assert made.test_splits[0] == "test"
    assert len(set(made.vocabulary)) == made.vocab_size
    for split in ("validation", *made.test_splits):
        examples = made.evaluation_examples(split)
        assert examples.tokens.dtype == np.int8
        assert examples.lengths.dtype in (np.int8, np.int16)
        assert examples.tokens.max() < made.vocab_size
        assert examples.lengths.max() == examples.tokens.shape[1] <= made.longest
        beyond = np.arange(examples.tokens.shape[1]) >= examples.lengths[:, None].astype(int)
        assert not (examples.answers & beyond).any()
    assert made.training_examples(1, 0).lengths.max() <= made.context


def test_smallest_integer() -> None:
    assert [smallest_integer(largest).name for largest in (1, 127, 128, 32767, 32768)] == [
        *("int8", "int8", "int16", "int16", "int32")
    ]


# Cache


def test_cache_is_read_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small(Counting, tmp_path).evaluation_examples("test")
    files = list((tmp_path / "counting").iterdir())
    assert [file.suffix for file in files] == [".npz"]

    def never(*_: Any) -> Examples:
        raise AssertionError("generated again")

    monkeypatch.setattr(Counting, "generate", never)
    assert same(small(Counting, tmp_path).evaluation_examples("test"), first)
    with pytest.raises(AssertionError, match="generated again"):
        small(Counting, tmp_path, max_value=9).evaluation_examples("test")  # another setting is another file
    monkeypatch.setattr(Counting, "version", Counting.version + 1)
    with pytest.raises(AssertionError, match="generated again"):
        small(Counting, tmp_path).evaluation_examples("test")


def test_a_damaged_file_is_generated_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = small(Counting, tmp_path).evaluation_examples("test")
    (file,) = (tmp_path / "counting").iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    with zipfile.ZipFile(file) as archive:
        tokens = archive.getinfo("tokens.npy")
    in_tokens = tokens.header_offset + 60 + tokens.compress_size // 2  # 60: about the size of what precedes the data
    small(Counting, tmp_path / "other", max_value=9).evaluation_examples("test")
    (other_data,) = (tmp_path / "other" / "counting").iterdir()
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, description=np.array([{}], dtype=object))
    for damaged in (
        b"",
        b"PK",
        whole[:middle],
        whole[:in_tokens] + bytes([whole[in_tokens] ^ 255]) + whole[in_tokens + 1 :],
        other_data.read_bytes(),
        pickled.read_bytes(),
    ):
        caplog.clear()
        file.write_bytes(damaged)
        assert same(small(Counting, tmp_path).evaluation_examples("test"), first)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(file) in caplog.text
        caplog.clear()
        assert same(small(Counting, tmp_path).evaluation_examples("test"), first)  # and was stored again
        assert not caplog.records
    assert list((tmp_path / "counting").iterdir()) == [file]  # no temporary file is left behind


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(UserError, match=r"data_dir=.*file.*: cannot write .*counting.*data_dir=/another/folder"):
        small(Counting, in_the_way).evaluation_examples("test")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UserError, match=r"data_dir=.*No space left on device"):
        small(Counting, tmp_path).evaluation_examples("test")
    assert not list((tmp_path / "counting").iterdir())


# Bad input

WRONG: list[tuple[type[SyntheticTask], dict[str, Any], str]] = [
    *(
        (task, changes, message)
        for task in TASKS
        for changes, message in (
            ({"name": "a/b"}, r"task\.name=a/b"),
            ({"num_train": 0}, r"task\.num_train=0 is too small"),
            ({"num_train": "many"}, r"task\.num_train=many is not a whole number"),
            ({"num_validation": 0}, r"task\.num_validation=0"),
            ({"num_test": 1.5}, r"task\.num_test=1\.5 is not a whole number"),
            ({"loss": "answer"}, r"task\.loss=answer .*Did you mean 'answers'"),
            ({"data_seed": -1}, r"task\.data_seed=-1"),
            ({"data_seed": True}, r"task\.data_seed=True"),
            ({"data_dir": ""}, r"data_dir="),
            ({"splits": "test"}, r"task\.splits=test"),
            ({"splits": {"ood": 3}}, r"task\.splits\.ood=3"),
            ({"splits": {"validation": {}}}, r"task\.splits\.validation: the name 'validation' is taken"),
            ({"splits": {"ood": {"num_blanksss": 3}}}, r"task\.splits\.ood\.num_blanksss is not a key; allowed: "),
        )
    ),
    (Counting, {"num_variables": 27}, r"task\.num_variables=27 is out of range; allowed: 1 to 26"),
    (Counting, {"num_variables": "three"}, r"task\.num_variables=three"),
    (Counting, {"min_operations": 0}, r"task\.min_operations=0"),
    (Counting, {"min_operations": 31}, r"task\.max_operations=30 is below task\.min_operations=31"),
    (Counting, {"max_operations": 2.0}, r"task\.max_operations=2\.0"),
    (Counting, {"weights": {"increments": 7}}, r"task\.weights\.increments .*Did you mean 'increment'"),
    (Counting, {"weights": {"set": 0}}, r"task\.weights\.set=0 is out of range"),
    (Counting, {"weights": {"pass": -1}}, r"task\.weights\.pass=-1"),
    (Counting, {"weights": {"pass": float("nan")}}, r"task\.weights\.pass=nan"),
    (Counting, {"weights": {"increment": "x"}}, r"task\.weights\.increment=x is not a number"),
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
    (FlipFlop, {"p_ignore": "x"}, r"task\.p_ignore=x"),
    (FlipFlop, {"splits": {"ood": {"p_ignore": -1}}}, r"task\.splits\.ood\.p_ignore=-1"),
    (FlipFlop, {"source": "generater"}, r"task\.source=generater .*Did you mean 'generator'"),
    (FlipFlop, {"source": "/no/such/folder"}, r"task\.source=/no/such/folder is not a folder"),
]


@pytest.mark.parametrize(("task", "changes", "message"), WRONG)
def test_bad_input_names_the_key(task: type[SyntheticTask], changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        small(task, tmp_path, **changes)


@pytest.mark.parametrize("task", TASKS)
def test_an_unknown_split_names_the_nearest(task: type[SyntheticTask], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'validation'"):
        small(task, tmp_path).evaluation_examples("validatoin")
    with pytest.raises(UserError, match="allowed: validation, test"):
        small(task, tmp_path).evaluation_examples("train")


def test_every_configuration_builds_its_task(tmp_path: Path) -> None:
    """The keys in configs/task are exactly the constructor's, and the splits are the ones we promise."""
    import inspect

    from hydra.utils import get_class, instantiate
    from omegaconf import OmegaConf

    splits = {
        "counting": ("test", "ood_longer", "ood_shorter", "ood_more_operations"),
        "selective_copy": ("test", "ood_dense", "ood_sparse"),
        "flip_flop": ("test", "ood_sparse", "ood_dense"),
    }
    for name, expected in splits.items():
        file = Path(__file__).parent.parent / "configs" / "task" / f"{name}.yaml"
        config = OmegaConf.create({"data_dir": str(tmp_path), "task": OmegaConf.load(file)}).task
        assert set(config) - {"_target_"} == set(inspect.signature(get_class(config._target_)).parameters)
        task = instantiate(config)
        assert (task.name, task.test_splits) == (name, expected)
        assert file.read_text().startswith(f"# python train.py pe=cope task={name}\n")


def test_files_are_opened_once(released: tuple[Path, dict[str, list[str]]], tmp_path: Path) -> None:
    files = FlipFlopFiles(str(released[0]), tmp_path)
    files.first("test", 1, "task.num_test")
    opened = files._opened["val"]
    files.first("validation", 1, "task.num_validation")
    assert files._opened["val"] is opened
