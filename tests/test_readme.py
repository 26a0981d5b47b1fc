"""What README and docs say is real: commands compose, choices are all there are, tables and verdicts are the published ones."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch
from conftest import CONFIGS, ENCODINGS, ROOT, TASKS
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from cope.overrides import check_overrides

README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BLOCKS = [block for text in PAGES.values() for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
TRAINING = [command for command in COMMANDS if command.startswith("python train.py")]


def test_the_readme_shows_commands():
    assert len(TRAINING) >= 5
    assert any(command.startswith("make demo") for command in COMMANDS)
    assert any(command.startswith("make test") for command in COMMANDS)


@pytest.mark.parametrize("command", TRAINING)
def test_training_commands_compose(command, monkeypatch):
    arguments = shlex.split(command, comments=True)[2:]
    monkeypatch.setattr("sys.argv", [str(ROOT / "train.py"), *arguments])
    check_overrides(arguments, "configs")  # exits if a choice or a key does not exist
    # In a sweep every job must compose; the first value of each choice stands for the others, which were just checked.
    overrides = [re.sub(r"=([^,{}]*),.*", r"=\1", argument) for argument in arguments if not argument.startswith("-")]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra_compose("train", overrides=overrides)
    assert config.pe.name in ENCODINGS
    assert config.task.name in TASKS


def test_every_choice_is_listed():
    rows = README[README.index("## Settings") : README.index("| `scale` |")]
    listed = {"pe": rows[rows.index("| `pe` |") : rows.index("| `task` |")], "task": rows[rows.index("| `task` |") :]}
    for group, choices in (("pe", ENCODINGS), ("task", TASKS)):
        assert sorted(re.findall(r"`(\w+)`", listed[group])[1:]) == choices


def test_the_readme_is_short_and_reads_in_a_terminal():
    assert len(README.encode()) <= 8192
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    for paragraph in text.split("\n\n"):
        lines = [line for line in paragraph.strip().splitlines() if not line.startswith(("|", "- "))]
        assert len(lines) <= 4, paragraph


def test_no_line_of_a_page_is_long():
    pages = PAGES | {path: path.read_text() for path in ROOT.glob("*.md")}
    lines = [(path.name, line) for path, text in pages.items() for line in text.splitlines() if len(line) > 120]
    assert lines == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index, path.name


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE)
    targets += " ".join(re.findall(r"^(?:TABLES|FIGURES) := (.*)", makefile, re.MULTILINE)).split()
    for name in re.findall(r"`?\bmake ([a-z0-9-]+)", README) + re.findall(r"`make ([a-z0-9-]+)", "".join(PAGES.values())):
        assert name in targets, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", PAGES[page]):
        assert (page.parent / path).exists(), path


def test_verdicts_are_the_published_ones():
    published = json.loads((ROOT / "docs" / "results" / "verdicts.json").read_text())
    for verdict in published:
        row = next(line for line in README.splitlines() if line.startswith(f"| {verdict['number']}. "))
        assert row == f"| {verdict['number']}. {verdict['topic']} | {verdict['finding']} | {verdict['label']} |"


def test_the_example_of_the_function_runs():
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    names = {name: torch.randn(2, 3, 5, 4) for name in "qkv"} | {"table": torch.randn(6, 4)}
    exec(example.group(1), names)
    assert names["output"].shape == (2, 3, 5, 4)
