"""Splits that are scored while a model trains: every one out of distribution, never the test split, and never to choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import TASKS
from omegaconf import DictConfig
from runs import run, same_tensors

from cope.building import build
from cope.errors import UserError
from cope.report.figures import draw_run
from cope.run import evaluation
from cope.run.experiment import Experiment
from cope.tasks.base import Task
from cope.tasks.language import Language
from cope.tasks.scores import Score
from cope.tasks.synthetic import SyntheticTask

Compose = Callable[..., DictConfig]
SHORT = (
    "pe=none",
    "trainer.steps=12",
    "trainer.eval_every=3",
    "trainer.log_every=4",
    "task.num_validation=32",
    "task.num_test=40",
)


def test_what_is_watched_says_nothing_of_test_and_chooses_nothing(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    config = compose(*SHORT, "trainer.eval_splits=[]")
    alone, without = run(config)
    real, told = evaluation.score, iter(range(1000))

    def score(model: Any, examples: Any, fabric: Any) -> Score:
        if len(examples) != 20:  # validation, and at the end every split as a whole
            return real(model, examples, fabric)
        wrong = next(told) % 3  # best of all at other steps
        return Score(20, wrong, 20, wrong, wrong / 10, 0)

    monkeypatch.setattr(evaluation, "score", score)
    config = compose(*SHORT, "trainer.eval_examples=20")
    config.output_dir = f"{tmp_path}/elsewhere"
    watched, with_them = run(config)
    assert next(told) > 0
    assert watched.path.parts[-4:] == alone.path.parts[-4:]  # it is the same run
    assert with_them["splits"] == without["splits"] and with_them["best_step"] == without["best_step"]
    assert same_tensors(watched.best_checkpoint, alone.best_checkpoint)
    assert same_tensors(watched.last_checkpoint, alone.last_checkpoint)


def test_every_split_out_of_distribution_at_every_validation(compose: Compose) -> None:
    folder, result = run(compose(*SHORT, "trainer.eval_examples=20"))
    lines = [line for line in folder.read_metrics() if "eval/validation/accuracy" in line]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    for line in lines:
        for split in ("validation", "ood_longer", "ood_shorter", "ood_more_operations"):
            assert line[f"eval/{split}/accuracy"] == 1.0 - line[f"eval/{split}/error"]
            assert line[f"eval/{split}/perplexity"] > 1.0
        assert not [key for key in line if key.startswith("eval/test")]
    assert draw_run(folder)["figures/learning_curves"].exists()
    coarser, again = run(compose(*SHORT, "trainer.eval_examples=20", "trainer.eval_splits_every=3", "seed=2"))
    steps = [line["step"] for line in coarser.read_metrics() if "eval/ood_longer/accuracy" in line]
    assert steps == [9, 12]  # and the last
    assert again["splits"].keys() == result["splits"].keys()


@pytest.mark.parametrize("task_name", TASKS)
def test_what_a_task_has_to_be_watched(compose: Compose, task_name: str) -> None:
    task: Task = build(compose(f"task={task_name}").task, "task")
    assert task.watched_splits and "test" not in task.watched_splits
    for split in task.watched_splits:
        examples = task.watched_examples(split, 7)
        assert len(examples) == 7
        assert examples.lengths.max() - 1 <= task.context_of(split)
        assert (examples.lengths == task.watched_examples(split, 7).lengths).all()
        if isinstance(task, SyntheticTask):
            whole = task.evaluation_examples(split)
            assert (examples.batch([0, 6])[0] == whole.batch([0, 6])[0][:, : examples.lengths[[0, 6]].max() - 1]).all()  # type: ignore[arg-type]
        else:
            assert isinstance(task, Language)
            assert task.context_of(split) > task.context
            assert examples.stream is task.prepared.validation.tokens  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ("[test]", "test is scored once, at the end, and never while"),
        ("[ood_longr]", "trainer.eval_splits=ood_longr is not known; allowed: ood_longer, .*Did you mean 'ood_longer'"),
        ("ood_longer", r"trainer.eval_splits=ood_longer is no list; allowed: auto, or \[ood_longer\]"),
        ("-1", r"trainer.eval_splits=-1 is no list; allowed: auto, or \[-1\]"),
        ("null", r"trainer.eval_splits=None has the wrong type; allowed: str \| list\[str\]"),
    ],
)
def test_splits_that_cannot_be_watched(compose: Compose, splits: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Experiment(compose(*SHORT, f"trainer.eval_splits={splits}"))
