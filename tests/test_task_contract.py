"""What every task keeps: found by its file in configs/task, a new one inherits these tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from cope.building import build
from cope.run.model_building import build_model
from cope.tasks.base import IGNORE, ExampleSet, Task
from cope.tasks.language import Language
from cope.tasks.scores import Score

Compose = Callable[..., DictConfig]
LONG = 16  # tokens: shorter sequences come up twice by chance
SEEN_AT_MOST = 0.1  # of a test split's sequences


@pytest.fixture
def made(compose: Compose, task_name: str) -> Callable[[], Task]:
    """``made()``: the task at scale=smoke, anew each time."""
    config = compose(f"task={task_name}")
    return lambda: build(config.task, "task")


def first(examples: ExampleSet, number: int = 32) -> tuple[Tensor, Tensor]:
    return examples.batch(np.arange(min(number, len(examples))))


def test_the_same_seed_and_epoch_give_the_same_bytes(made: Callable[[], Task]) -> None:
    one, other = made(), made()
    assert one.fingerprint == other.fingerprint
    for seed, epoch in ((1, 0), (1, 1), (2, 0)):
        assert all(map(torch.equal, first(one.training_examples(seed, epoch)), first(other.training_examples(seed, epoch))))
    for split in ("validation", *one.test_splits):
        assert all(map(torch.equal, first(one.evaluation_examples(split)), first(other.evaluation_examples(split))))


def test_evaluation_is_not_what_training_saw(compose: Compose, task_name: str) -> None:
    small = build(compose(f"task={task_name}").task, "task")
    if isinstance(small, Language):
        pytest.skip("texts are split by document: tests/test_corpora.py")
    task = build(compose(f"task={task_name}", "scale=laptop").task, "task")

    def sequences(examples: ExampleSet) -> set[bytes]:
        inputs, _ = first(examples, 256)
        lengths = examples.lengths[: len(inputs)] - 1
        long = zip(inputs, lengths, strict=True)
        return {row[:length].numpy().tobytes() for row, length in long if length >= LONG}

    trained = set().union(*(sequences(task.training_examples(1, epoch)) for epoch in range(2)))
    for split in ("validation", *task.test_splits):
        scored = sequences(task.evaluation_examples(split))
        assert len(scored & trained) <= SEEN_AT_MOST * len(scored), split


def test_every_sequence_has_an_answer_within_its_context_and_vocabulary(made: Callable[[], Task]) -> None:
    task = made()
    assert task.headline in task.metrics("validation", Score(1, 0, 1, 0, 1.0, 0)) and len(task.vocabulary) == task.vocab_size
    for split in ("train", "validation", *task.test_splits):
        examples = task.training_examples(1, 0) if split == "train" else task.evaluation_examples(split)
        inputs, targets = first(examples)
        assert int(examples.lengths.max()) - 1 <= task.context_of(split) <= task.longest_context, split
        answers = targets[targets != IGNORE]
        assert len(answers) and int(answers.min()) >= 0, split
        assert int(max(answers.max(), inputs.max())) < task.vocab_size, split


def test_a_few_steps_lower_the_loss(compose: Compose, task_name: str) -> None:
    config = compose(f"task={task_name}", "pe=rope")
    task: Task = build(config.task, "task")
    model = build_model(config, task).train()
    inputs, targets = first(task.training_examples(1, 0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
