"""The README's commands are real: each composes, the choices it lists are all there are, and its example of the API runs."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from conftest import CONFIGS, ENCODINGS, ROOT, TASKS
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from cope.command_line import check_overrides

README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
TRAINING = [command for command in COMMANDS if command.startswith("python train.py")]


def test_the_readme_shows_commands():
    assert len(TRAINING) >= 5
    assert any(command.startswith("make demo") for command in COMMANDS)
    assert any(command.startswith("make test") for command in COMMANDS)


@pytest.mark.parametrize("command", TRAINING)
def test_training_commands_compose(command, monkeypatch):
    arguments = shlex.split(command)[2:]
    monkeypatch.setattr("sys.argv", [str(ROOT / "train.py"), *arguments])
    check_overrides(arguments, "configs")  # exits if a choice or a key does not exist
    # In a sweep every job must compose; the first value of each choice stands for the others, which were just checked.
    overrides = [re.sub(r"=([^,{}]*),.*", r"=\1", argument) for argument in arguments if not argument.startswith("-")]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra_compose("train", overrides=overrides)
    assert config.pe.name in ENCODINGS
    assert config.task.name in TASKS


def test_every_choice_is_listed():
    for group, choices in (("pe", ENCODINGS), ("task", TASKS)):
        row = next(line for line in README.splitlines() if line.startswith(f"| `{group}` |"))
        assert sorted(re.findall(r"`(\w+)`", row)[1:]) == choices


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE)
    targets += " ".join(re.findall(r"^(?:TABLES|FIGURES) := (.*)", makefile, re.MULTILINE)).split()
    for name in re.findall(r"`?\bmake ([a-z0-9-]+)", README):
        assert name in targets


def test_files_that_are_named_exist():
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_example_of_the_function_runs():
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    names = {name: torch.randn(2, 3, 5, 4) for name in "qkv"} | {"table": torch.randn(6, 4)}
    exec(example.group(1), names)
    assert names["output"].shape == (2, 3, 5, 4)
