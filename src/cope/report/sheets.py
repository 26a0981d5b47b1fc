"""Tables of text: drawn on a terminal, or as Markdown, CSV, LaTeX or JSON where somebody pastes them."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cope.errors import check_choice
from cope.lines import broken, width_of, write_whole

FORMATS = ("table", "markdown", "csv", "latex", "json")
FOR_PROGRAMS = ("csv", "json")
ANY_WIDTH, ANY_HEIGHT = 10_000, 100
LEAST_ROOM = 20  # for a cell beside its column's name, however narrow the terminal is
NAME_ROOM = 24  # for a row's name, which is folded where the figures beside it need the room
LEAST_BESIDE = 2  # figures that stand side by side; fewer are no table
GAP, NARROW_GAP = 2, 1  # between columns; narrow where all of them then have room side by side
LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
         "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}",
         "|": r"\textbar{}"}  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """A table. Its first column names the rows; the others hold figures, or words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()  # below it
    faint: frozenset[int] = field(default=frozenset())  # rows that are not ours, such as the paper's
    words: frozenset[str] = field(default=frozenset())  # columns of text, set to the left
    aside: frozenset[str] = field(default=frozenset())  # figures that go below their row where there is no room
    is_list: bool = False  # where no terminal is each row stays a line, for whoever looks for one

    @classmethod
    def of(cls, title: str, rows: Sequence[Mapping[str, str]], notes: Iterable[str] = (), **marks: Any) -> Sheet:
        """A sheet of ``rows``, each by column; what a row has not is left empty."""
        columns = tuple(dict.fromkeys(name for row in rows for name in row))
        cells = tuple(tuple(row.get(name, "") for name in columns) for row in rows)
        return cls(title, columns, cells, tuple(notes), **marks)


def show(sheets: Sequence[Sheet], form: str = "table", stream: TextIO | None = None) -> None:
    """Print ``sheets``: coloured on a terminal alone, as wide as that or 80 characters, and nowhere cut."""
    check_choice("format", form, FORMATS)
    target = stream or sys.stdout
    if form == "table":
        for index, sheet in enumerate(sheets):
            width = ANY_WIDTH if sheet.is_list and not target.isatty() else width_of(target)
            # Without a height rich has widths of its own on a terminal that it takes for a poor one.
            console = Console(file=target, highlight=False, width=width, height=ANY_HEIGHT)
            console.print("\n" if index else "", end="")
            _draw(sheet, console)
        target.flush()
        return
    write_whole(f"{as_text(sheets, form)}\n", target)


def as_text(sheets: Sequence[Sheet], form: str) -> str:
    """``sheets`` in one of :data:`FORMATS`; a table as where no terminal is."""
    if form == "table":
        stream = io.StringIO()
        show(sheets, stream=stream)
        return stream.getvalue().strip("\n")
    if form == "json":
        content = [
            {"title": sheet.title, "rows": [dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows]}
            for sheet in sheets
        ]
        return json.dumps(content, indent=2, ensure_ascii=False)
    if form == "csv" and len(sheets) > 1:  # which has no place for titles
        sheets = [_with_title(sheet) for sheet in sheets]
    made = {"markdown": _markdown, "csv": _csv, "latex": _latex}[form]
    return "\n\n".join(made(sheet) for sheet in sheets)


def _draw(sheet: Sheet, console: Console) -> None:
    """What is too wide for a line has its words on a line below each row, then its last figures; or each on its own line."""
    if sheet.title:
        _print_sentence(sheet.title, console, "bold")
    places = list(range(len(sheet.columns)))
    movable = sorted((p for p in places[1:] if sheet.columns[p] in sheet.words | sheet.aside), key=lambda p: _longest(sheet, p))
    while movable and _width(sheet, places, NARROW_GAP) > console.width:
        places.remove(movable.pop())
    if _width(sheet, places, NARROW_GAP) > console.width:
        sheet = _with_folded_names(sheet)
    while len(places) > 1 + LEAST_BESIDE and _width(sheet, places, NARROW_GAP) > console.width:
        places.pop()
    if _width(sheet, places, NARROW_GAP) > console.width:
        _draw_as_records(sheet, console)
    elif sheet.rows:
        with console.capture() as drawn:
            console.print(_grid(sheet, places, GAP if _width(sheet, places, GAP) <= console.width else NARROW_GAP))
        lines = drawn.get().splitlines()
        head, rows = lines[: -len(sheet.rows)], lines[-len(sheet.rows) :]
        console.file.write("".join(f"{line.rstrip()}\n" for line in head))
        for line, row in zip(rows, sheet.rows, strict=True):
            console.file.write(f"{line.rstrip()}\n")
            if below := "  ".join(_named(sheet, row, place) for place in range(len(row)) if place not in places and row[place]):
                console.print(Text(broken(f"    {below}", console.width), style="dim"), soft_wrap=True)
    for note in sheet.notes:
        _print_sentence(note, console, "dim")


def _print_sentence(text: str, console: Console, style: str) -> None:
    """On a terminal broken between words; elsewhere in one line, for whoever looks for it there."""
    console.print(Text(broken(text, console.width) if console.file.isatty() else text, style=style), soft_wrap=True)


def _named(sheet: Sheet, row: tuple[str, ...], place: int) -> str:
    """A cell that is below its row: words speak for themselves."""
    name = sheet.columns[place]
    return row[place] if name in sheet.words else f"{name} {row[place]}"


def _longest(sheet: Sheet, place: int) -> int:
    """Headings fold between words; figures and names stay whole."""
    return max([len(word) for word in sheet.columns[place].split()] + [len(row[place]) for row in sheet.rows], default=1)


def _width(sheet: Sheet, places: Sequence[int], gap: int) -> int:
    return sum(_longest(sheet, place) + gap for place in places) - 1


def _with_folded_names(sheet: Sheet) -> Sheet:
    """Long names of rows in several lines, the figures beside the last."""
    rows: list[tuple[str, ...]] = []
    faint = set()
    for index, row in enumerate(sheet.rows):
        *above, last = broken(row[0], NAME_ROOM).split("\n")
        rows += [(line, *[""] * (len(row) - 1)) for line in above] + [(last, *row[1:])]
        faint |= set(range(len(rows) - len(above) - 1, len(rows))) if index in sheet.faint else set()
    return replace(sheet, rows=tuple(rows), faint=frozenset(faint))


def _grid(sheet: Sheet, places: Sequence[int], gap: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=True, show_edge=False, header_style="bold", padding=(0, gap - 1, 0, 0))
    for place in places:
        is_text = place == 0 or sheet.columns[place] in sheet.words
        table.add_column(
            sheet.columns[place], justify="left" if is_text else "right", vertical="bottom", min_width=_longest(sheet, place),
            max_width=_longest(sheet, place),
        )  # fmt: skip
    for index, row in enumerate(sheet.rows):
        table.add_row(*(Text(row[place]) for place in places), style="dim" if index in sheet.faint else "")
    return table


def _draw_as_records(sheet: Sheet, console: Console) -> None:
    """Where not even the figures have room side by side: each row by itself, a line for each column."""
    width = max(len(column) for column in sheet.columns)
    for row in sheet.rows:
        console.print(Text(row[0], style="bold"), soft_wrap=True)
        for column, cell in zip(sheet.columns[1:], row[1:], strict=True):
            if cell:
                head = f"  {column:{width}}  "
                told = broken(cell, max(LEAST_ROOM, console.width - len(head))).replace("\n", "\n" + " " * len(head))
                console.print(Text(head + told), soft_wrap=True)


def _markdown(sheet: Sheet) -> str:
    lines = [f"**{sheet.title}**", ""] if sheet.title else []
    rules = ["---" if place == 0 or name in sheet.words else "---:" for place, name in enumerate(sheet.columns)]
    lines += [f"| {' | '.join(cells)} |" for cells in (sheet.columns, rules, *sheet.rows)]
    return "\n".join([*lines, *(f"\n{note}" for note in sheet.notes)])


def _with_title(sheet: Sheet) -> Sheet:
    """Its title is the first cell of each row."""
    return replace(sheet, columns=("table", *sheet.columns), rows=tuple((sheet.title, *row) for row in sheet.rows))


def _csv(sheet: Sheet) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([sheet.columns, *sheet.rows])
    return text.getvalue().rstrip("\n")


def _latex(sheet: Sheet) -> str:
    """In the manner of ``booktabs``, narrow: without what is aside, and headings fold."""
    places = [place for place, name in enumerate(sheet.columns) if name not in sheet.aside]
    alignment = "".join(_side(sheet, place) for place in places)
    head = " & ".join(_heading(sheet, place) for place in places) + r" \\"
    body = [" & ".join(_for_latex(row[place]) for place in places) + r" \\" for row in sheet.rows]
    lines = [
        r"% \usepackage{booktabs}", r"\begin{table}", r"\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_for_latex(sheet.title)}}}", rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", head, r"\midrule", *body,
        r"\bottomrule", r"\end{tabular}", r"\end{table}", *(f"% {note}" for note in sheet.notes),
    ]  # fmt: skip
    return "\n".join(lines)


def _heading(sheet: Sheet, place: int) -> str:
    """Of several words: one above the other, where the column holds figures, which are narrower."""
    name = _for_latex(sheet.columns[place])
    is_folded = " " in name and _side(sheet, place) == "r"
    return rf"\shortstack[r]{{{name.replace(' ', chr(92) * 2)}}}" if is_folded else name


def _side(sheet: Sheet, place: int) -> str:
    return "l" if place == 0 or sheet.columns[place] in sheet.words else "r"


def _for_latex(text: str) -> str:
    """``text`` as it stands, its indent too."""
    indent = r"\quad " * (text[:1] == " ")
    return indent + re.sub(r"[&%$#_{}~^\\<>|]", lambda found: LATEX[found[0]], text.lstrip())
