"""How lines are printed: commands as they are typed here, and on a terminal broken between words where it ends, but no path or
command to copy."""

from __future__ import annotations

import os
import re
import textwrap
from typing import TextIO

WIDTH = 80  # of what is no terminal, such as a file; there tables and claims alone are broken
_WORD = r"""(?:'[^']*'|"[^"]*"|[^\s'"])+"""  # as a shell has it: between quotes there may be spaces
_NO_WORD_OF_A_SENTENCE = r"""(?=[-'"]|\S*[=/*]|\S+\.\w)"""
# The program, what comes right after it, and further arguments up to a comma or the like.
COMMAND = rf"\b(?:python|pip|make|wandb|scancel|cope-lab) {_WORD}(?:(?<![.,;:)]) {_NO_WORD_OF_A_SENTENCE}{_WORD})*"

_command = "python"


def commands_are(name: str) -> None:
    """From now on, ``python train.py`` is said as ``name train``."""
    global _command
    _command = name


def as_typed(text: str) -> str:
    """``text`` with the commands in it as whoever reads it would type them."""
    return text if _command == "python" else re.sub(r"\bpython (train|evaluate|generate)\.py", rf"{_command} \1", text)


def width_of(stream: TextIO) -> int:
    """How many characters a line of ``stream`` has room for."""
    if not stream.isatty():
        return WIDTH
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or WIDTH
    except OSError:
        return WIDTH


def broken(text: str, width: int) -> str:
    """``text`` with its lines broken between words; a word or a command that is wider than ``width`` has a line of its own."""
    return "\n".join(_broken_line(line, width) for line in text.split("\n"))


def _broken_line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    with_whole_commands = re.sub(COMMAND, lambda command: command[0].replace(" ", "\0"), line)
    parts = textwrap.wrap(
        with_whole_commands, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
        expand_tabs=False, replace_whitespace=False,
    )  # fmt: skip
    blanks = line[len(line.rstrip()) :]  # after which more may be printed in the same line
    return "\n".join(parts).replace("\0", " ") + blanks


def break_lines_of(stream: TextIO) -> None:
    """Break all that is printed to ``stream`` from now on at the width of its terminal, but for :func:`write_whole`."""
    write = stream.write

    def write_broken(text: str) -> int:
        is_prose = not {"\r", "\x1b"} & set(text)  # who moves the cursor or colours has looked at the width already
        # Asked anew each time: terminals change, and a job's output turns to a file.
        write(broken(text, width_of(stream)) if is_prose and stream.isatty() else text)
        return len(text)

    write_broken.whole = write  # type: ignore[attr-defined]
    stream.write = write_broken  # type: ignore[method-assign]


def write_whole(text: str, stream: TextIO) -> None:
    """Write what is no prose, such as CSV: its lines are another program's, even where they are copied from a terminal."""
    getattr(stream.write, "whole", stream.write)(text)
    stream.flush()
