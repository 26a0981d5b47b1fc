"""Whatever is typed for whichever setting: a run takes a step, or one message says what is wrong. Drawn by Hypothesis."""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from typing import Any

import pytest
from conftest import CONFIGS, ENCODINGS, ROOT, TASKS
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cope.cli import message_of
from cope.errors import UserError
from cope.overrides import _known_keys, check_overrides
from cope.run.experiment import Experiment
from cope.run.loggers import NoLogger
from cope.run.loop import TrainingLoop

GROUPS = ("pe", "task", "corpus", "model", "optimizer", "trainer")
FIXED = ("scale=smoke", "logger=none", "task.num_train=32", "task.num_test=8", "task.num_validation=8")
NUMBERS = [
    "-1",
    "0",
    "1",
    "2",
    "3",
    "7",
    "0.5",
    "1.5",
    "-0.0",
    "1e-3",
    "1e400",
    "nan",
    "inf",
    f"{10**20}",
    "'2'",
    "0x10",
    "1_0",
]
WORDS = ["null", "true", "'no'", "''", "foo", "???", "'a b'", "'ü'", "'~/x'"]
WORDS += ["pre", "ddp", "cuda", "bf16-mixed", "error", "keys"]
TABLES = ["[1,2]", "[]", "{a: 1}", "{}", "{_target_: os.getcwd}", "'${nope}'", "'${seed}'", "'${oc.env:NOPE}'", "'${'"]
MISTYPED = ["+pe.nope=1", "trainer.stepz=1", "+foo=1", "peh=1", "seed", "=", "a.=1", "pe=[cope,rope]"]
LONGEST_MESSAGE = 2000  # characters


@cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@cache
def keys(encoding: str, task: str) -> list[str]:
    """Every setting there is with these, its groups too."""
    known = _known_keys(composed((f"pe={encoding}", f"task={task}", "scale=smoke", "logger=none")))
    return sorted(key for key in known if key.partition(".")[0] in (*GROUPS, "seed", "force", "recipe"))


@st.composite
def command_lines(draw: Any) -> tuple[str, ...]:
    """A choice of encoding and task, and one to three overrides of what they have."""
    encoding, task = draw(st.sampled_from(ENCODINGS)), draw(st.sampled_from(TASKS))
    several = st.lists(st.sampled_from(keys(encoding, task)), min_size=1, max_size=3, unique=True)
    overrides = []
    for key in draw(several):
        sign = draw(st.sampled_from(["", "", "", "", "+", "++", "~"]))
        value = draw(st.sampled_from(NUMBERS + WORDS + TABLES))
        overrides.append(f"~{key}" if sign == "~" else f"{sign}{key}={value}")
    if draw(st.booleans()):
        overrides.append(draw(st.sampled_from(MISTYPED)))
    fixed = [text for text in FIXED if not (task in ("wikipedia", "code") and text.startswith("task."))]
    return (f"pe={encoding}", f"task={task}", *fixed, *overrides)


def outcome(overrides: tuple[str, ...]) -> str:
    """What is told of a command line; empty if its run took a step, or could be made where a step needs more than this test."""
    with tempfile.TemporaryDirectory() as folder:
        typed = [*overrides, f"output_dir={folder}/outputs", f"data_dir={folder}/data"]
        try:
            check_overrides(typed, "configs")
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                config = compose("train", overrides=typed)
            experiment = Experiment(config)
            trainer = experiment.trainer
            is_small = trainer.devices * trainer.num_nodes == 1 and not trainer.compile and "corpus" not in config
            if is_small and experiment.model.num_parameters() < 10**6:
                take_a_step(experiment)
        except (UserError, OmegaConfBaseException, HydraException) as error:
            return message_of(error) or "nothing"
    return ""


def take_a_step(experiment: Experiment) -> None:
    fabric = experiment.trainer.fabric()
    loop = TrainingLoop(
        experiment.model, experiment.task, experiment.config.seed, experiment.trainer, experiment.optimizer, fabric,
        experiment.folder, NoLogger(), "a run", show_progress=False,
    )  # fmt: skip
    with loop.batches_at_hand() as batch_of:
        loop.train_on(batch_of(0))
        loop.look()


def check(overrides: tuple[str, ...]) -> None:
    told = outcome(overrides)
    assert len(told) < LONGEST_MESSAGE, told
    for internal in ("Traceback", "object at 0x", "DictConfig", "ListConfig", "Sweep(", "object_type", "nothing"):
        assert internal not in told.replace("nothing has a", ""), told


@pytest.fixture(autouse=True)
def typed_for_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py")])


FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@given(command_lines())
@settings(max_examples=8, suppress_health_check=FIXTURES)
def test_eight_command_lines_run_or_are_refused_in_one_message(overrides: tuple[str, ...]) -> None:
    check(overrides)


@pytest.mark.slow
@given(command_lines())
@settings(max_examples=500, suppress_health_check=FIXTURES)
def test_five_hundred_command_lines_run_or_are_refused_in_one_message(overrides: tuple[str, ...]) -> None:
    check(overrides)
