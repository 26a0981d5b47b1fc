"""Whatever is typed for whichever command: one message says what is wrong, or the command does it. Drawn by Hypothesis."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import is_dataclass
from functools import cache, partial
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from conftest import ROOT, composed_in
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException
from runs import run
from test_any_overrides import LONGEST_MESSAGE, NUMBERS, TABLES, WORDS

from cope.cli import message_of, read_settings, split_settings
from cope.errors import UserError
from cope.heads.measure import MeasurementSettings
from cope.overrides import _known_keys
from cope.run.generation import GenerationSettings, text_pieces

SPLITTING = "split_settings(arguments"  # what the source of a command has that passes other settings on to train.py
ELSEWHERE = {
    "generate.py": GenerationSettings,
    "position_alone.py": MeasurementSettings,
}  # whose settings are not in the command
PATHS = ["outputs", "/nowhere", "~nobody/x", "~", ".", "1a2b3c4d", "abc/seed=1", "\udcff", "x" * 5000]
VALUES = [*NUMBERS, *WORDS, *TABLES, *PATHS, "9" * 5000, "1,,2", ",", "a,b", "all", "all,table2", "json", "JSON"]
INTERNAL = ("Traceback", "object at 0x", "DictConfig", "ListConfig", "object_type", "<class", "NoneType")


@cache
def commands() -> dict[str, tuple[type, Callable[..., Any]]]:
    """The settings of every command that reads its own, and what reads them."""
    found = {}
    sys.path.insert(0, str(ROOT / "scripts"))  # one takes what another has
    try:
        for path in (ROOT / "evaluate.py", ROOT / "generate.py", *sorted((ROOT / "scripts").glob("*.py"))):
            source = path.read_text()
            if "_settings(arguments" in source or path.name in ELSEWHERE:
                own = [
                    thing
                    for thing in runpy.run_path(str(path)).values()
                    if is_dataclass(thing) and thing.__module__ == "<run_path>"
                ]
                reader = split_settings if SPLITTING in source else read_settings
                found[path.name] = (ELSEWHERE.get(path.name) or own[0], reader)
    finally:
        sys.path.pop(0)
    return found


def test_every_command_with_settings_is_found() -> None:
    assert {"evaluate.py", "generate.py", "table.py", "tune.py", "runs.py", "position_alone.py"} <= commands().keys()
    assert all(isinstance(own, type) for own, _ in commands().values())


@st.composite
def typed(draw: Any) -> tuple[str, list[str]]:
    """A command and one to four arguments, most of them with keys that it has."""
    name = draw(st.sampled_from(sorted(commands())))
    keys = [*get_type_hints(commands()[name][0])]
    key = st.sampled_from([*keys, *keys, "task", "pe", "nope", "", "+pe.nope", "~pe", "hydra.launcher.jobs"])
    value = st.one_of(st.sampled_from(VALUES), st.text(st.characters(exclude_characters="\0"), max_size=8))
    pair = st.builds("{}={}".format, key, value)
    return name, draw(st.lists(st.one_of(pair, pair, pair, value), min_size=1, max_size=4))


def check_message(told: str) -> None:
    assert told.strip() and len(told) < LONGEST_MESSAGE + 6000, told  # what was typed is repeated, and may be long
    for internal in INTERNAL:
        assert internal not in told, told


def check_typed(name: str, arguments: Sequence[str]) -> None:
    own, reader = commands()[name]
    try:
        found = reader(arguments, own, f"python {name} ...")
    except UserError as error:
        told = str(error)
        check_message(told)
        keys = {argument.partition("=")[0].lstrip("+~").split(".")[0] for argument in arguments}
        assert any(key in told for key in [*keys, *get_type_hints(own)]), told
        return
    found, others = found if isinstance(found, tuple) else (found, [])
    given_here = [argument for argument in arguments if argument not in others]
    for key in (argument.partition("=")[0] for argument in given_here):
        hint, value = get_type_hints(own)[key], getattr(found, key)
        assert hint is not int or type(value) is int
        assert hint is not float or (type(value) is float and value == value)
        assert hint is not bool or type(value) is bool


FEW = partial(settings, suppress_health_check=[HealthCheck.too_slow])


@given(typed())
@FEW(max_examples=20)
def test_twenty_command_lines_are_read_or_refused_in_one_message(drawn: tuple[str, list[str]]) -> None:
    check_typed(*drawn)


@pytest.mark.slow
@given(typed())
@FEW(max_examples=1000)
def test_a_thousand_command_lines_are_read_or_refused_in_one_message(drawn: tuple[str, list[str]]) -> None:
    check_typed(*drawn)


# ---- evaluate.py and generate.py, of a run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = ("task.num_train=32", "task.num_validation=8", "task.num_test=8", "trainer.steps=2", "trainer.eval_every=2")
    found, _ = run(composed_in(tmp_path_factory.mktemp("run"), "pe=cope", "task=counting", *small))
    return found.path


@cache
def task_keys() -> list[str]:
    config = composed_in(Path(), "pe=cope", "task=counting")
    return sorted(key for key in _known_keys(config) if key.startswith("task."))


SPLITS = [
    *("+task.splits.new={pass_weight: 40}", "+task.splits.new={context: 64}", "+task.splits.new={nope: 1}"),
    *("+task.splits.new={}", "+task.splits.new=3", "~task.splits.test", "task.splits=null", "task.nope=1"),
    *("pe.num_positions=3", "seed=2", "task"),
]


@st.composite
def evaluations(draw: Any) -> list[str]:
    one = st.builds("{}={}".format, st.sampled_from(task_keys()), st.sampled_from([*NUMBERS, *WORDS, *TABLES]))
    return [*draw(st.lists(st.one_of(one, one, st.sampled_from(SPLITS)), min_size=1, max_size=2, unique=True))]


def check_evaluation(folder: Path, overrides: list[str]) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    said = StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(StringIO()):
            runpy.run_path(str(ROOT / "evaluate.py"))["main"]([f"run={folder}", *overrides])
        assert "test" in said.getvalue()
    except (UserError, OmegaConfBaseException, HydraException) as error:
        check_message(message_of(error))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@given(overrides=evaluations())
@FEW(max_examples=8)
def test_eight_evaluations_are_made_or_refused_in_one_message(folder: Path, overrides: list[str]) -> None:
    check_evaluation(folder, overrides)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))  # shared out over processes: each evaluation takes a third of a second
@given(overrides=evaluations())
@FEW(max_examples=125)
def test_a_thousand_evaluations_are_made_or_refused_in_one_message(folder: Path, part: int, overrides: list[str]) -> None:
    check_evaluation(folder, overrides)


@st.composite
def generations(draw: Any) -> list[str]:
    keys = [key for key in get_type_hints(GenerationSettings) if key not in ("run", "prompt")]
    one = st.builds("{}={}".format, st.sampled_from(keys), st.sampled_from([*NUMBERS, *WORDS]))
    prompt = st.one_of(st.sampled_from(["a = 0 ;", "a", "", " ", "ü", "print a " * 200]), st.text(max_size=8))
    return [f"prompt={draw(prompt)}", *draw(st.lists(one, max_size=3, unique_by=lambda text: text.partition("=")[0]))]


def check_generation(folder: Path, arguments: list[str]) -> None:
    try:
        asked = read_settings([f"run={folder}", *arguments], GenerationSettings, "python generate.py ...")
        pieces = list(islice(text_pieces(asked), 3))
        assert pieces and all(isinstance(piece, str) for piece in pieces)
    except UserError as error:
        check_message(str(error))


@given(arguments=generations())
@FEW(max_examples=20)
def test_twenty_texts_are_begun_or_refused_in_one_message(folder: Path, arguments: list[str]) -> None:
    check_generation(folder, arguments)


@pytest.mark.slow
@given(arguments=generations())
@FEW(max_examples=1000)
def test_a_thousand_texts_are_begun_or_refused_in_one_message(folder: Path, arguments: list[str]) -> None:
    check_generation(folder, arguments)


# ---- make --------------------------------------------------------------------------------------------------------------
#
# Make itself, with a Python that notes what it is asked to run; that command is then called in this process.

TARGETS = ["table4", "figure4", "ablations", "tune", "field", "decide", "claims", "report", "publish", "reproduce"]
VARIABLES = ["SCALE", "SEEDS", "JOBS", "DRY", "LAUNCHER", "WINDOWS", "CLAIMS", "WHY", "REPORT", "ABLATIONS"]  # one word each


@pytest.fixture(scope="module")
def noting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that Python, and of what it notes."""
    folder = tmp_path_factory.mktemp("noting")
    python = folder / "python"
    python.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" END >> '{folder}/typed'\n")
    python.chmod(0o755)
    (folder / "installed").touch()
    return folder


def made(noting: Path, *arguments: str) -> tuple[int, str, list[list[str]]]:
    """The exit status of make, its complaint, and the commands that it ran."""
    (noting / "typed").unlink(missing_ok=True)
    places = [f"INSTALLED={noting / 'installed'}", f"BIN={noting}"]
    done = subprocess.run(["make", *places, *arguments], cwd=ROOT, capture_output=True, text=True, errors="replace")
    noted = (noting / "typed").read_text(errors="surrogateescape") if (noting / "typed").exists() else ""
    return done.returncode, done.stderr, [text.split("\0")[:-1] for text in noted.split("END\0")[:-1]]


@st.composite
def variables(draw: Any) -> tuple[str, dict[str, str]]:
    """A target and some of its variables; without what make itself, not this project, takes for its own: $ and line ends."""
    text = st.text(st.characters(exclude_characters="\0$\r\n", exclude_categories=("Cs",)), max_size=8)
    shell = st.sampled_from(["a; touch sign", "a' b", 'a" b', "a && touch sign", "`touch sign`", "| touch sign", "> sign", "*"])
    words = st.sampled_from([value for value in VALUES if not set(value) & {"$", "\udcff"} and len(value) < 1000])
    names = draw(st.lists(st.sampled_from(VARIABLES), min_size=1, max_size=3, unique=True))
    return draw(st.sampled_from(TARGETS)), {name: draw(st.one_of(words, text, shell)) for name in names}


def check_variables(noting: Path, target: str, typed: dict[str, str]) -> None:
    status, told, ran = made(noting, *(f"{name}={value}" for name, value in typed.items()), target)
    assert not (ROOT / "sign").exists()
    if status != 0:
        assert any(f"{name}=" in told for name in typed), told
        check_message(told)
        return
    assert ran
    for path, *arguments in ran:
        if not arguments:
            continue
        check_typed(Path(path).name, arguments)
        if (asked := typed.get("SCALE", "laptop").lstrip()) and "SCALE" in typed and target != "tune":
            assert f"scale={asked}" in arguments  # whole, whatever a shell would make of it


@pytest.mark.parametrize(
    ("target", "variable", "key"),
    [
        ("table4", "SCALE", "scale"),
        ("table4", "SEEDS", "seeds"),
        ("table4", "LAUNCHER", "hydra/launcher"),
        ("table4", "JOBS", "hydra.launcher.jobs"),
        ("figure4", "WINDOWS", "windows"),
        ("decide", "CLAIMS", "claims"),
        ("claims", "WHY", "why"),
        ("report", "REPORT", "to"),
    ],
)
def test_a_variable_of_make_is_one_word_of_the_command(noting: Path, target: str, variable: str, key: str) -> None:
    status, told, ran = made(noting, f"{variable}=a; b 'c", target)
    assert status == 0, told
    assert f"{key}=a; b 'c" in ran[-1]


@given(drawn=variables())
@FEW(max_examples=20)
def test_twenty_variables_of_make_reach_the_command_whole(noting: Path, drawn: tuple[str, dict[str, str]]) -> None:
    check_variables(noting, *drawn)


@pytest.mark.slow
@given(drawn=variables())
@FEW(max_examples=1000)
def test_a_thousand_variables_of_make_reach_the_command_whole(noting: Path, drawn: tuple[str, dict[str, str]]) -> None:
    check_variables(noting, *drawn)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (["SCALE=huge"], "scale=huge is not known"),
        (["SCALE=smoke; touch sign"], "scale=smoke; touch sign"),
        (["SCALE="], "scale"),
        (["SEEDS=-1"], "seeds=-1 is out of range"),
        (["SEEDS=two"], "seeds='two' has the wrong type"),
        (["SET=pe=cope"], "pe=cope would replace what rows"),
        (["SET=nope=1"], "nope is not a setting"),
        (["SET=optimizer.lr=fast"], "optimizer.lr"),
        (["LAUNCHER=cloud"], "hydra/launcher=cloud is not known"),
        (["JOBS=0", "SET=logger=none"], "jobs"),
        (["DRY=2"], "DRY=2 is not known; allowed: 1, 0"),
        (["WINDOWS=0"], "windows=0 is too small"),
    ],
)
@pytest.mark.slow
def test_odd_variables_of_make_are_refused_in_one_message(noting: Path, variables: list[str], told: str) -> None:
    status, complaint, ran = made(noting, *variables, "table4")
    if status == 0:
        ((path, *arguments),) = ran
        with pytest.raises((UserError, HydraException, OmegaConfBaseException)) as refused:
            runpy.run_path(str(ROOT / path))["main"](arguments)
        complaint = message_of(refused.value)
    assert told in complaint
    check_message(complaint)
