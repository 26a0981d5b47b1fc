"""The layers of the package, and what every configuration file must have, so that new ones can be added without edits."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import CONFIGS, ENCODINGS, ROOT, TASKS

PACKAGE = ROOT / "src" / "cope"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# A folder, and the folders it may not import from. Whatever is not listed is free.
ABOVE_RUN = {"sweep", "heads", "report", "probe"}
FORBIDDEN = {
    "kernels/native": {"tasks", "corpora", "model", "run", "positions", *ABOVE_RUN},
    "kernels": {"tasks", "corpora", "model", "run", "positions", *ABOVE_RUN},
    "positions": {"tasks", "corpora", "model", "run", *ABOVE_RUN},
    "corpora": {"tasks", "positions", "kernels", "model", "run", *ABOVE_RUN},
    "tasks": {"positions", "kernels", "model", "run", *ABOVE_RUN},
    "model": {"tasks", "corpora", "run", *ABOVE_RUN},
    "run": ABOVE_RUN,
    "report": {"tasks", "corpora", "positions", "kernels", "model", "probe"},
    "probe": {"tasks", "corpora", "positions", "kernels", "model", "sweep", "heads"},
}


def imported(text: str) -> set[str]:
    """Every module that ``text`` imports, those named inside functions too."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a module comes from"
            module = node.module or ""
            modules.add(module)
            modules.update(f"{module}.{alias.name}" for alias in node.names)  # "from cope import tasks"
    return modules


def branches_on_encodings(text: str) -> list[int]:
    """Lines that compare something with an encoding's name, match it, or look it up in a literal table."""
    names = set(ENCODINGS) - {"none"}  # a word with other uses
    found = []
    for node in ast.walk(ast.parse(text)):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Dict):
            parts = list(node.keys)
        constants = [inner for part in parts if part is not None for inner in ast.walk(part) if isinstance(inner, ast.Constant)]
        if any(constant.value in names for constant in constants):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_layers_import_nothing_from_above(layer: str) -> None:
    files = [path for path in SOURCES if path.parent == PACKAGE / layer]
    assert files
    for path in files:
        folders = {module.split(".")[1] for module in imported(path.read_text()) if module.startswith("cope.")}
        assert not folders & FORBIDDEN[layer], path.relative_to(ROOT)


def test_every_folder_of_the_package_has_a_place_among_the_layers() -> None:
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in SOURCES} - {"."}
    assert folders == {*FORBIDDEN, "sweep", "heads"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_code_branches_on_an_encodings_name(path: Path) -> None:
    assert branches_on_encodings(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "if name == 'rope': pass",
        "if config.pe.name in ('cope', 'other'): pass",
        "match name:\n    case 'relative': pass",
        "table = {'cope': 1}",
    ],
)
def test_a_branch_on_an_encodings_name_would_be_found(text: str) -> None:
    assert branches_on_encodings(text)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_config_opens_with_the_command_that_uses_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    if lines[0].startswith("# @package"):  # Hydra wants its own line first
        lines = lines[1:]
    assert lines[0].startswith("# python "), lines[0]
    *parents, name = path.relative_to(CONFIGS).with_suffix("").parts
    if parents and parents[0] in ("pe", "task", "optimizer", "logger", "scale"):
        assert f"{parents[0]}={name}" in lines[0]
    if parents and parents[0] == "recipe":
        assert f"scale={parents[1]} task={name}" in lines[0]


def test_every_scale_has_a_recipe_for_every_task_it_is_for() -> None:
    only = {"night": ["counting", "flip_flop", "selective_copy"]}  # language models at the paper's size take more than nights
    scales = sorted(path.stem for path in (CONFIGS / "scale").glob("*.yaml"))
    assert {path.name for path in (CONFIGS / "recipe").iterdir()} == set(scales)
    for scale in scales:
        assert sorted(path.stem for path in (CONFIGS / "recipe" / scale).glob("*.yaml")) == only.get(scale, TASKS), scale


@pytest.mark.parametrize("group", ["pe", "task"])
def test_the_name_of_a_choice_is_that_of_its_file(group: str) -> None:
    for path in (CONFIGS / group).glob("*.yaml"):
        assert f"\nname: {path.stem}" in path.read_text(), path.name  # it is the folder that runs go to
