"""The floors of the house, and what every configuration file must have, so that new ones can be added without edits."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from conftest import CONFIGS, ENCODINGS, ROOT, TASKS

from cope.run.provenance import ABOVE_A_RUN

PACKAGE = ROOT / "src" / "cope"
SOURCES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = sorted(
    [*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("src/hydra_plugins/**/*.py")]
)
# From the top. Each floor uses those below it and none above; folders and files of one floor may use one another.
FLOORS = [
    {"command"},
    {"huggingface"},
    {"probe"},
    {"heads"},
    {"report"},
    {"sweep"},
    {"command_start", "cli", "overrides", "help", "endings", "lines"},
    {"run"},
    {"model"},
    {"positions"},
    {"tasks"},
    {"corpora"},
    {"functional", "meter"},
    {"kernels"},
    {"building", "files", "metrics", "seeding", "threads", "memory", "signals", "errors"},
]
LONGEST_COMMAND, LONGEST_SCRIPT = 60, 125  # lines
LARGEST_FILE = 1_000_000  # bytes


def floor_of(name: str) -> int:
    """Counted from the top; of a folder of the package, or of a file that lies in none."""
    return next(number for number, names in enumerate(FLOORS) if name in names)


def of(path: Path) -> str:
    """How a message names a file."""
    return path.relative_to(ROOT).as_posix()


@cache
def nodes_of(text: str) -> list[ast.AST]:
    """Of its syntax tree."""
    return list(ast.walk(ast.parse(text)))


@cache
def modules_named(text: str) -> set[str]:
    """The modules that code imports, in functions too, or names in strings, as imports by name do."""
    modules: set[str] = set()
    for node in nodes_of(text):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a module comes from"
            module = node.module or ""
            modules.add(module)
            modules.update(f"{module}.{alias.name}" for alias in node.names)  # "from cope import tasks"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"cope(\.\w+)+", node.value):
            modules.add(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            modules.update(name.value for name in node.args if isinstance(name, ast.Constant))
    return modules


def parts_named(text: str) -> set[str]:
    """The folders and files of the package that code imports."""
    named = {module.split(".")[1] for module in modules_named(text) if module.startswith("cope.")}
    return named & {name for floor in FLOORS for name in floor}


def branches_on_encodings(text: str) -> list[int]:
    """Lines that compare something with an encoding's name, match it, or look it up in a literal table."""
    names = set(ENCODINGS) - {"none"}  # a word with other uses
    found = []
    for node in nodes_of(text):
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


def test_no_floor_uses_one_above_it() -> None:
    above = {}
    for path in SOURCES:
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own != "__init__":  # the package's face, which none of them uses
            above[of(path)] = {name for name in parts_named(path.read_text()) if floor_of(name) < floor_of(own)}
    assert {name: parts for name, parts in above.items() if parts} == {}


@pytest.mark.parametrize(
    "text",
    ["from cope.report import page", "def f():\n    import cope.report", "from cope import report", "load('cope.report.page')"],
)
def test_an_import_would_be_found(text: str) -> None:
    assert parts_named(text) == {"report"}


def test_every_part_of_the_package_has_a_floor() -> None:
    parts = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in SOURCES} - {"__init__"}
    assert parts == {name for floor in FLOORS for name in floor}
    assert sum(map(len, FLOORS)) == len(parts)


def test_the_fingerprint_is_of_the_floors_that_a_run_stands_on() -> None:
    """What is above them may change without a run being another one."""
    above = {name for floor in FLOORS[: floor_of("run")] for name in floor}
    assert {name.removesuffix(".py") for name in ABOVE_A_RUN} - {"commands"} == above  # which a wheel has beside them


def test_modules_are_imported_by_computed_names_in_one_place_only() -> None:
    """Elsewhere a name stands in the code, where the test above finds it."""
    for path in SOURCES:
        for node in nodes_of(path.read_text()):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "import_module",
                "importlib.import_module",
                "__import__",
            ):
                constant = isinstance(node.args[0], ast.Constant)
                assert constant or path == PACKAGE / "sweep" / "preload.py", of(path)


def test_nothing_uses_a_command() -> None:
    names = {path.stem for path in COMMANDS} - {"__init__"}
    for path in SOURCES:
        used = {module.partition(".")[0] for module in modules_named(path.read_text())} & names
        assert not used, of(path)


@pytest.mark.parametrize("text", ["import table", "from table import main", "import_module('table')", "import table.main as t"])
def test_the_use_of_a_command_would_be_found(text: str) -> None:
    assert {module.partition(".")[0] for module in modules_named(text)} == {"table"}


def in_circles(uses: dict[str, set[str]]) -> set[str]:
    """Those that lead back to themselves."""

    def reached(module: str) -> set[str]:
        found: set[str] = set()
        waiting = [module]
        while waiting:
            new = uses[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    return {module for module in uses if module in reached(module)}


def test_no_module_uses_itself_by_way_of_others() -> None:
    files = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in SOURCES}
    modules = {name.removesuffix(".__init__"): path.read_text() for name, path in files.items()}
    assert in_circles({name: (modules_named(text) & modules.keys()) - {name} for name, text in modules.items()}) == set()


def test_a_circle_would_be_found() -> None:
    assert in_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}


def test_commands_are_short() -> None:
    for path in ROOT.glob("*.py"):
        assert len(path.read_text().splitlines()) <= LONGEST_COMMAND, of(path)


def test_scripts_are_short() -> None:
    for path in ROOT.glob("scripts/*.py"):
        text = path.read_text()
        documentation = ast.get_docstring(ast.parse(text), clean=False) or ""  # which is what --help shows
        assert len(text.splitlines()) - documentation.count("\n") <= LONGEST_SCRIPT, of(path)


def test_every_command_starts_before_it_imports_anything_else() -> None:
    """Ctrl-C in its first seconds ends it in one line."""
    for path in COMMANDS:
        text = path.read_text()
        if "run_command(main" in text or "run_hydra_command(" in text:
            nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom))
            imports = [ast.unparse(node) for node in sorted(nodes, key=lambda node: node.lineno)]
            imports = [line for line in imports if "__future__" not in line and line != "import sys"]  # which take no time
            assert imports[0] == "from cope.command_start import start_command", of(path)


def test_the_page_shows_the_tower() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    tower = re.search(r"```text\n(.*?)```", page, re.DOTALL)
    assert tower is not None
    shown = [set(re.findall(r"\w+", line.split("  ")[0].replace(".py", ""))) for line in tower[1].splitlines()]
    assert [names & {name for floor in FLOORS for name in floor} for names in shown[1:]] == FLOORS


def test_a_run_can_be_followed_in_twenty_files() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    walk = page[page.index("## A run, file by file") : page.index("## Many runs")]
    entered = re.findall(r"^\d+\. \[.*?\]\((.*?)\)", walk, re.MULTILINE)
    assert entered[0] == "../train.py" and len(entered) <= 20
    assert len(set(entered)) == len(entered)
    assert all((ROOT / "docs" / name).is_file() for name in entered)


def test_no_file_of_the_repository_is_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    there = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert [path for path in there if path.stat().st_size > LARGEST_FILE] == []


def test_no_code_branches_on_an_encodings_name() -> None:
    lines = {of(path): branches_on_encodings(path.read_text()) for path in SOURCES}
    assert {name: found for name, found in lines.items() if found} == {}


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


def test_every_config_opens_with_the_command_that_uses_it() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        lines = path.read_text().splitlines()
        first = lines[1 if lines[0].startswith("# @package") else 0]  # Hydra wants its own line first
        assert first.startswith("# python "), of(path)
        *parents, name = path.relative_to(CONFIGS).with_suffix("").parts
        if parents and parents[0] in ("pe", "task", "optimizer", "logger", "scale"):
            assert f"{parents[0]}={name}" in first, of(path)
        if parents and parents[0] == "recipe":
            assert f"scale={parents[1]} task={name}" in first, of(path)


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


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="all tests are in one process")
def test_tests_of_a_file_are_in_one_process(request: pytest.FixtureRequest) -> None:
    """pytest-xdist groups by the end of a test's name. Where it does not, it says nothing, and what is shared is made twice."""
    assert request.node.nodeid.endswith("@test_architecture")
