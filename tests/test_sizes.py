"""Sizes that no memory has room for are refused by arithmetic; what fits is let through."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from omegaconf import DictConfig
from runs import run

from cope.building import build
from cope.errors import UserError
from cope.run import sizes
from cope.run.experiment import Experiment
from cope.run.model_building import build_model, model_shape
from cope.run.sizes import machine_bytes, num_weights

Compose = Callable[..., DictConfig]
SIXTEEN_GIB = 16 * 2**30


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.dim=1000000"], r"model\.dim=1000000, .* at least 357,\d{3}\.\d GiB .* this machine has 16\.0 GiB"),
        (["model.dim=1000000000000"], r"model\.dim=1000000000000, .* more weights than can be counted"),
        (["model.num_layers=100000"], r"model\.num_layers=100000, .* at least \d\d\.\d GiB .* has 16\.0 GiB"),
        (["model.feed_forward_multiple=1000000000"], r"GiB .* has 16\.0 GiB"),
        (["pe.num_positions=1000000000"], r"16,000,\d{3},\d{3} weights .* has 16\.0 GiB"),
        (["pe=absolute", "task.context=10000000000"], r"160,000,\d{3},\d{3} weights in all, .* has 16\.0 GiB"),
        (["task=code", "task.tokenizer.vocab_size=1000000000"], r"weights in all, .* has 16\.0 GiB"),
        (["trainer.threads=1099511627776"], r"trainer\.threads=1099511627776 is out of range; allowed: 1 to 1024"),
        (
            ["trainer.devices=1000", "trainer.strategy=ddp", "trainer.batch_size=1000"],
            r"by trainer\.devices=1000: .* 16\.0 GiB",
        ),
        (["trainer.batch_size=1000000000"], r"tokens at once, .* has 16\.0 GiB"),
        (["task.num_test=1000000000"], r"task\.num_test=1000000000 examples .* at least \d+\.\d GiB .* has 16\.0 GiB"),
        (["task.num_train=1000000000"], r"task\.num_train=1000000000 examples .* has 16\.0 GiB"),
        (["task.max_operations=1000000000"], r"examples of up to 1,000,000,003 tokens, .* has 16\.0 GiB"),
        (["task=flip_flop", "task.num_pairs=1000000000"], r"examples of up to 2,000,000,000 tokens, .* has 16\.0 GiB"),
        (
            ["task=selective_copy", "task.num_blanks=1000000000"],
            r"examples of up to 1,000,\d{3},\d{3} tokens, .* has 16\.0 GiB",
        ),
    ],
)
def test_a_size_that_cannot_be(compose: Compose, monkeypatch: pytest.MonkeyPatch, overrides: list[str], expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sizes, "machine_bytes", lambda: SIXTEEN_GIB)
    config = compose(*(["pe=cope"] if not overrides[0].startswith("pe=") else []), *overrides)
    began = time.process_time()
    with pytest.raises(UserError) as error:
        Experiment(config)
    assert time.process_time() - began < 1
    assert re.search(expected, str(error.value)), str(error.value)


def test_weights_are_counted_as_they_will_be(compose: Compose, encoding_name: str) -> None:
    config = compose(f"pe={encoding_name}")
    task = build(config.task, "task")
    for num_layers in (1, 2, 3, 4, 7):
        shape = replace(model_shape(config, task), num_layers=num_layers)
        counted = num_weights(config, task, shape)
        assert counted == sum(parameter.numel() for parameter in build_model(config, task, shape).parameters()), num_layers


def test_counting_weights_changes_no_weights(compose: Compose) -> None:
    config = compose("pe=cope")
    task = build(config.task, "task")
    alone = build_model(config, task).state_dict()
    for name, tensor in Experiment(config).model.state_dict().items():
        assert torch.equal(tensor, alone[name])


def test_a_finished_run_is_shown_on_a_machine_that_it_is_too_large_for(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("pe=none", "trainer.steps=2", "trainer.eval_every=2", "task.num_validation=16", "task.num_test=16")
    _, result = run(config)
    monkeypatch.setattr(sizes, "machine_bytes", lambda: 1)
    assert run(config)[1] == result
    config.force = True
    with pytest.raises(UserError, match="Take smaller sizes, or a larger machine"):
        Experiment(config)


def test_the_machine_says_how_much_memory_it_has() -> None:
    there = machine_bytes()
    assert there is None or 2**28 < there < 2**50
