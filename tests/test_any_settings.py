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
@given(overrides=evaluations())
@FEW(max_examples=1000)
def test_a_thousand_evaluations_are_made_or_refused_in_one_message(folder: Path, overrides: list[str]) -> None:
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


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (["SCALE=huge"], "scale=huge is not known"),
        (["SCALE=smoke; touch sign"], "'; touch sign'|; touch sign"),
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
def test_odd_variables_of_make_are_refused_in_one_message(tmp_path: Path, variables: list[str], told: str) -> None:
    (tmp_path / "installed").touch()
    places = [f"INSTALLED={tmp_path / 'installed'}", f"BIN={Path(sys.executable).parent}"]
    made = subprocess.run(["make", *places, *variables, "table4"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode != 0
    assert any(text in made.stderr for text in told.split("|")), made.stderr
    assert "Traceback" not in made.stderr and not (ROOT / "sign").exists()
