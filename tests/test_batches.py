"""What training is made of: batches, learning rates, scores and random streams."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from small_tasks import configured
from torch import Tensor, nn

from cope.errors import UserError
from cope.run.batches import Batch, BatchesAhead, StepBatch, TrainingBatches, epoch_order, evaluation_batches
from cope.run.evaluation import score
from cope.run.optimizer import OptimizerSettings
from cope.seeding import numpy_stream, seed_torch, stream_seed
from cope.tasks.base import IGNORE, Examples, Specimen, Task
from cope.tasks.flip_flop import FlipFlop


class Numbered(Task):
    """A fixed set of sequences of random lengths, each filled with its own number."""

    fingerprint = ""
    vocabulary = ()
    test_splits = ()

    def __init__(self, num: int) -> None:
        super().__init__(name="numbered")
        lengths = np.random.default_rng(0).integers(3, 41, num)
        tokens = np.repeat(np.arange(num)[:, None], 41, axis=1)
        self.examples = Examples(tokens, lengths, np.arange(41)[None, :] == lengths[:, None] - 1)

    def context_of(self, split: str) -> int:
        return 40

    def training_examples(self, seed: int, epoch: int) -> Examples:
        return self.examples

    def evaluation_examples(self, split: str) -> Examples:
        return self.examples

    def specimen(self, num_tokens: int) -> Specimen:
        raise AssertionError("nothing is drawn here")


def numbers(batch: StepBatch) -> list[int]:
    return [int(number) for part in batch.parts for number in part.inputs[:, 0]]


def padding(batches: list[np.ndarray], lengths: np.ndarray) -> int:
    return sum(int((lengths[batch].max() - lengths[batch]).sum()) for batch in batches)


@pytest.mark.parametrize(("num", "batch_size"), [(1000, 7), (96, 32), (33, 32), (32, 32), (5000, 16)])
def test_an_epoch_has_each_example_at_most_once(num: int, batch_size: int) -> None:
    lengths = np.random.default_rng(1).integers(5, 100, num)
    batches = epoch_order(lengths, batch_size, np.random.default_rng(2))
    seen = np.concatenate(batches)
    assert {len(batch) for batch in batches} == {batch_size}
    assert len(set(seen)) == len(seen) == num - num % batch_size


def test_batches_have_similar_lengths_in_random_order() -> None:
    lengths = np.random.default_rng(1).integers(5, 100, 4096)
    batches = epoch_order(lengths, 16, np.random.default_rng(2))
    shuffled = np.split(np.random.default_rng(3).permutation(4096), 256)
    assert padding(batches, lengths) < padding(shuffled, lengths) / 5
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3  # going from short to long would make it nearly 1


def test_epochs_of_a_fixed_set_differ_in_order_and_in_what_they_leave_out() -> None:
    batches = TrainingBatches(Numbered(70), seed=1, batch_size=16)
    epochs = [[numbers(batches.at(4 * epoch + index)) for index in range(4)] for epoch in range(3)]
    flat = [list(itertools.chain(*epoch)) for epoch in epochs]
    assert all(len(set(epoch)) == 64 for epoch in flat)
    assert len({tuple(epoch) for epoch in flat}) == 3
    assert len({frozenset(epoch) for epoch in flat}) > 1
    # Any step can be asked for at any time: that is what a continued run does.
    assert numbers(batches.at(2)) == epochs[0][2]
    assert numbers(TrainingBatches(batches.task, seed=1, batch_size=16).at(9)) == epochs[2][1]
    assert numbers(TrainingBatches(batches.task, seed=2, batch_size=16).at(9)) != epochs[2][1]


def test_an_endless_set_is_new_in_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlipFlop, "epoch_size", 32)

    def rows(num_train: int | None) -> list[set[tuple[int, ...]]]:
        batches = TrainingBatches(configured(FlipFlop, num_pairs=40, num_train=num_train), seed=1, batch_size=16)
        return [
            {tuple(row.tolist()) for step in (2 * epoch, 2 * epoch + 1) for row in batches.at(step).parts[0].inputs}
            for epoch in (0, 1)
        ]

    first, second = rows(None)
    assert not first & second
    first, second = rows(32)
    assert first == second


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_devices_share_each_batch(parts: int) -> None:
    task = Numbered(100)
    whole = TrainingBatches(task, seed=1, batch_size=24)
    shares = [TrainingBatches(task, seed=1, batch_size=24, num_parts=parts, rank=rank, world_size=3) for rank in range(3)]
    for step in (0, 3, 4, 11):
        given = [share.at(step) for share in shares]
        assert [len(numbers(share)) for share in given] == [8, 8, 8]
        assert sorted(itertools.chain(*map(numbers, given))) == sorted(numbers(whole.at(step)))
        every = [part for share in given for part in share.parts]
        assert len(every) == 3 * parts
        for share in given:  # each knows of all
            assert share.num_targets == sum(len(part.targets) for part in every) == 24
            assert share.num_tokens == sum(part.inputs.numel() for part in every)


def test_the_loss_is_where_the_task_wants_it() -> None:
    task = Numbered(20)
    batch = TrainingBatches(task, seed=1, batch_size=10).at(0).parts[0]
    lengths = task.examples.lengths[batch.inputs[:, 0]]
    time = batch.inputs.shape[1]
    assert batch.where.tolist() == [row * time + length - 2 for row, length in enumerate(lengths)]
    assert torch.equal(batch.targets, batch.inputs[:, 0])
    task.loss = "everywhere"
    everywhere = TrainingBatches(task, seed=1, batch_size=10).at(0).parts[0]
    assert (everywhere.where // time).bincount().tolist() == (lengths - 1).tolist()


@pytest.mark.parametrize(("time", "longest", "expected"), [(40, None, 64), (64, 1000, 64), (65, 1000, 128), (90, 100, 100)])
def test_a_batch_is_filled_up_to_one_of_a_few_shapes(time: int, longest: int | None, expected: int) -> None:
    inputs = torch.randint(1, 9, (3, time))
    targets = torch.where(torch.rand(3, time) < 0.5, inputs, IGNORE)
    plain, filled = Batch.of(inputs, targets), Batch.of(inputs, targets, True, longest)
    assert (plain.num_targets, plain.num_tokens) == (filled.num_targets, filled.num_tokens) == (len(plain.where), 3 * time)
    assert filled.inputs.shape == (3, expected)
    assert torch.equal(filled.inputs[:, :time], inputs)
    assert len(filled.where) % 64 == 0
    assert (filled.targets[plain.num_targets :] == IGNORE).all()
    for batch in (plain, filled):
        asked = torch.full(batch.inputs.shape, IGNORE).flatten()
        asked[batch.where[: batch.num_targets]] = batch.targets[: batch.num_targets]
        assert torch.equal(asked.unflatten(0, batch.inputs.shape)[:, :time], targets)


def test_few_shapes_of_many_batches() -> None:
    shapes = set()
    for num in range(1, 5000):
        targets = torch.full((1, 5000), IGNORE)
        targets[0, :num] = 1
        shape = Batch.of(targets, targets, few_shapes=True).shape
        assert num <= shape[-1] < num + max(64, 0.3 * num)
        shapes.add(shape)
    assert len(shapes) < 40


def test_batches_made_ahead_are_the_same() -> None:
    batches, asked = TrainingBatches(Numbered(100), seed=1, batch_size=16), []

    def make(step: int) -> StepBatch:
        asked.append(step)
        return batches.at(step)

    ahead = BatchesAhead(make, num_steps=50)
    steps = [0, 1, 2, 30, 31, 5, *range(6, 50)]
    found = [numbers(ahead.at(step)) for step in steps]
    ahead.close()
    assert found == [numbers(TrainingBatches(batches.task, seed=1, batch_size=16).at(step)) for step in steps]
    assert max(asked) == 49


def test_what_fails_ahead_is_told_when_its_step_is_asked_for() -> None:
    batches = TrainingBatches(Numbered(100), seed=1, batch_size=16)

    def make(step: int) -> StepBatch:
        if step == 2:
            raise UserError("no more")
        return batches.at(step)

    ahead = BatchesAhead(make, num_steps=10)
    assert len(numbers(ahead.at(0))) == len(numbers(ahead.at(1))) == 16
    with pytest.raises(UserError, match="no more"):
        ahead.at(2)
    ahead.close()


@pytest.mark.parametrize("world_size", [1, 2, 50])
@pytest.mark.parametrize("tokens_per_batch", [1, 100, 10**9])
def test_evaluation_covers_every_example_once(world_size: int, tokens_per_batch: int) -> None:
    examples = Numbered(123).examples
    batches = [
        batch for rank in range(world_size) for batch in evaluation_batches(examples, tokens_per_batch, rank, world_size)
    ]
    assert sorted(np.concatenate(batches)) == list(range(123))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * examples.lengths[batch].max() <= tokens_per_batch


class Repeats(nn.Module):
    """Predicts of four tokens that each comes again: its logit is 3, the others' 0."""

    def forward(self, tokens: Tensor, where: Tensor) -> Tensor:
        assert not self.training
        return 3.0 * nn.functional.one_hot(tokens.flatten()[where], 4).float()


@pytest.mark.parametrize("tokens_per_batch", [1, 10**6])
def test_score_of_a_case_counted_by_hand(tokens_per_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cope.run.evaluation.TOKENS_PER_BATCH", tokens_per_batch)
    tokens = np.array([[1, 1, 1, 2, 0], [3, 3, 3, 3, 3], [1, 2, 3, 0, 0], [2, 2, 1, 0, 0]])
    answers = np.array([[0, 1, 0, 1, 0], [0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 1, 0, 0, 0]], dtype=bool)
    model = Repeats().train()
    state = torch.get_rng_state()
    found = score(model, Examples(tokens, np.array([4, 5, 3, 3]), answers, num_cut=7), Fabric(accelerator="cpu", devices=1))
    # Wrong: the 2 of the first row, and both answers of the third.
    assert (found.count, found.errors, found.token_count, found.token_errors, found.num_cut) == (4, 2, 9, 3, 7)
    assert (found.error, found.token_error) == (0.5, pytest.approx(1 / 3))
    assert found.loss == pytest.approx(math.log(math.exp(3) + 3) - 3 * 6 / 9)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def settings_of(**changes: object) -> OptimizerSettings:
    values = {
        "algorithm": "adam", "lr": 2.0, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.0, "schedule": "cosine",
        "warmup_steps": 10, "final_fraction": 0.1, "clip_norm": None,
    }  # fmt: skip
    return OptimizerSettings(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("constant", 2.0, 2.0), ("linear", 0.2 + 1.8 * 49 / 99, 0.2), ("cosine", 2.0 * 0.55, 0.2), ("wsd", 2.0, 0.2)],
)
def test_learning_rate(schedule: str, middle: float, last: float) -> None:
    settings = settings_of(schedule=schedule)
    rates = [settings.learning_rate(step, 110, 88) for step in range(110)]
    assert rates[0] == pytest.approx(0.2)  # not 0: the first step would be lost
    assert rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx(middle)
    assert rates[109] == pytest.approx(last, abs=1e-3 if schedule == "cosine" else 1e-12)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rate_with_more_warm_up_than_steps() -> None:
    rates = [settings_of(warmup_steps=100).learning_rate(step, 5, 5) for step in range(6)]
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.12])
    assert settings_of(warmup_steps=0).learning_rate(0, 1, 1) == 2.0


def test_streams_differ_by_seed_purpose_and_counter() -> None:
    keys = [
        (seed, purpose, *counters)
        for seed in (0, 1, 11)
        for purpose in ("train", "order", "dropout", "initialisation of the encoding")
        for counters in ((), (0,), (1,), (11,), (1, 1), (1, 11), (11, 1))
    ]
    seeds = {stream_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert numpy_stream(1, "train", 3).random() == numpy_stream(1, "train", 3).random()
    drawn = []
    for key in ((1, "dropout", 3), (1, "dropout", 4), (1, "dropout", 3)):
        seed_torch(*key)
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[2] != drawn[1]
