"""On a terminal lines break between words; a table is as narrow elsewhere too; what is pasted is whole."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ENCODINGS, ROOT
from runs import clean_environment

from cope.lines import WIDTH, break_lines_of, broken
from cope.report.sheets import Sheet, as_text, show

LONG_PATH = "outputs/counting/cope/b0e00cfa/seed=1/wandb/offline-run-20261127_222316-b0e00cfa-cope-1/files"
TRAIN = "python train.py task=selective_copy pe=stick_breaking 'task.splits.rare={pass weight: 400}' seed=101"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short, as it is:  two  spaces", ["short, as it is:  two  spaces"]),
        ("model.dim=18 and so-called words of a sentence", ["model.dim=18 and so-called", "words of a sentence"]),
        ("  indented words keep their indent below", ["  indented words keep their", "  indent below"]),
        (f"there is no {LONG_PATH} at all", ["there is no", LONG_PATH, "at all"]),
        (f"FAILED: {TRAIN}: the loss became nan", ["FAILED:", f"{TRAIN}:", "the loss became nan"]),
        ("none; make one: python train.py pe=cope task=counting", ["none; make one:", "python train.py pe=cope task=counting"]),
        ("the hash. python scripts/runs.py lists all runs.", ["the hash.", "python scripts/runs.py lists", "all runs."]),
        ("it needs ray: pip install -c constraints.txt -e '.[ray]'",
         ["it needs ray:", "pip install -c constraints.txt -e '.[ray]'"]),
        ("a question longer than the line is: ", ["a question longer than the", "line is: "]),
        ("The first line of two.\nThe second line, which is longer.",
         ["The first line of two.", "The second line, which is", "longer."]),
    ],
)  # fmt: skip
def test_lines_break_between_words(text: str, lines: list[str]) -> None:
    assert broken(text, 30).split("\n") == lines


class Terminal(io.StringIO):
    """What was printed to a terminal."""

    def isatty(self) -> bool:
        return True


def test_what_is_pasted_is_whole_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    break_lines_of(stream)
    print("a sentence that is longer than the terminal is wide", file=stream)
    sheet = Sheet("", ("run", "settings"), (("first of all runs", "optimizer.lr=0.001 task.num_variables=5"),))
    show([sheet], "csv", stream)
    print("\x1b[1mwhoever colours words has broken them already\x1b[0m", file=stream)
    assert stream.getvalue().splitlines() == [
        "a sentence that is longer than", "the terminal is wide", "run,settings",
        "first of all runs,optimizer.lr=0.001 task.num_variables=5",
        "\x1b[1mwhoever colours words has broken them already\x1b[0m",
    ]  # fmt: skip


def test_a_table_is_narrow_in_a_pipe_and_has_every_cell() -> None:
    differences = "optimizer.lr=0.002 pe.num_positions=16 task.num_variables=1 task.num_train=10000"
    columns = ("encoding", *(f"OOD number {letter}" for letter in "abcdef"), "differs in")
    rows = tuple((name, *("100.0 (10.0)",) * 6, differences) for name in ("cope", "absolute"))
    sheet = Sheet("A title may be longer, since it is a sentence that somebody looks for in the output, in one line.", columns,
                  rows, words=frozenset({"differs in"}))  # fmt: skip
    stream = io.StringIO()
    show([sheet], stream=stream)
    title, *lines = stream.getvalue().splitlines()
    assert title == sheet.title
    assert max(map(len, lines)) <= WIDTH
    assert " ".join(stream.getvalue().split()).count(differences) == stream.getvalue().count("100.0 (10.0)") / 6 == 2
    stream = io.StringIO()
    show([replace(sheet, is_list=True)], stream=stream)  # such as of runs, among which somebody looks for one
    assert [line.split()[0] for line in stream.getvalue().splitlines() if differences in line] == ["cope", "absolute"]


def test_long_names_of_rows_are_folded_and_the_last_figures_go_below() -> None:
    columns = ("", *(f"context {number}" for number in range(1, 7)))
    rows = (
        ("as many positions as the context", *("100.0 (10.0)",) * 6),
        ("  as many positions as the context, paper", "23.31"),
    )
    sheet = Sheet("", columns, tuple((*row, *[""] * (len(columns) - len(row))) for row in rows), faint=frozenset({1}))
    assert as_text([sheet], "table").splitlines()[2:] == [
        "as many positions as the",
        "context                  100.0 (10.0) 100.0 (10.0) 100.0 (10.0) 100.0 (10.0)",
        "    context 5 100.0 (10.0)  context 6 100.0 (10.0)",
        "  as many positions as",
        "  the context, paper            23.31",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
def test_an_error_breaks_between_words_on_a_terminal(tmp_path: Path) -> None:
    import fcntl
    import pty
    import termios

    terminal, side_of_the_program = pty.openpty()
    fcntl.ioctl(side_of_the_program, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {key: value for key, value in clean_environment().items() if key != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "pe=coep"], stdin=side_of_the_program, stdout=side_of_the_program,
        stderr=side_of_the_program, cwd=tmp_path, env=environment, timeout=300,
    )  # fmt: skip
    os.close(side_of_the_program)
    told = b""
    try:
        while part := os.read(terminal, 4096):
            told += part
    except OSError as error:  # Linux's way to say that nobody writes any more
        assert error.errno == errno.EIO
    os.close(terminal)
    lines = told.decode().splitlines()
    assert done.returncode == 1
    assert " ".join(lines) == f"pe=coep is not known; allowed: {', '.join(ENCODINGS)}. Did you mean 'cope'?"
    assert 50 < max(map(len, lines)) <= 60
