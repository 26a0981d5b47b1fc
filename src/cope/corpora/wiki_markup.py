"""The markup of a Wikipedia article to plain text, in the manner of Wikitext-103.

Kept: the text of paragraphs and links, headings marked as in Wikitext-103 (`` = Title = ``, `` = = Section = = ``), and each
entry of a list as a line. Gone: templates, tables, references, pictures, categories, formulae and comments, and headings
with nothing left under them. mwparserfromhell reads the markup; what it cannot make sense of (a table that is never closed) is
dropped line by line.
"""

from __future__ import annotations

import re
from typing import Any

from cope.errors import UserError

VERSION = 2  # of this cleaning: prepared corpora of another one are made anew
GONE_TAGS = {"table", "ref", "references", "gallery", "math", "timeline", "imagemap", "score", "hiero", "noinclude"}
NOT_IN_THE_TEXT = ("file:", "image:", "category:", "media:")
OTHER_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*:")
# What a removed template (a pronunciation, a length in two units) leaves of a sentence.
EMPTY_PARENTHESES = re.compile(r" ?[(\[][\s,;:\u2013-]*[)\]]")
OPENED_BY_A_SIGN = re.compile(r"\([\s,;]+")
# Tags that mwparserfromhell takes for text, since something inside them is never closed. A reference is not that long; where
# its end is missing too, only the tag goes.
UNPARSED_REFERENCE = re.compile(r"<ref\b[^>]*(?<!/)>.{0,1000}?</ref>", re.DOTALL)
UNPARSED_TAG = re.compile(r"</?(?:ref|blockquote)\b[^>\n]*>")
SWITCH = re.compile(r"__[A-Z]+__")  # __NOTOC__ and its like
LEFTOVER = ("{|", "|", "!", "}}")  # of tables and templates that are not closed
HEADING = re.compile(r" ((?:= )+).* (?:= )+$")


def plain_text(title: str, markup: str) -> str:
    """The text of an article, its title as the first heading; ends with a newline."""
    try:
        import mwparserfromhell
    except ImportError as error:
        raise UserError("corpus=enwiki_sample needs the package mwparserfromhell: pip install -e '.[text]'") from error
    text = _text(mwparserfromhell.parse(markup))
    for leftover in (SWITCH, UNPARSED_REFERENCE, UNPARSED_TAG):
        text = leftover.sub("", text)
    lines = []
    for line in text.split("\n"):
        if _level(line):
            lines.append(line)
            continue
        tidy = " ".join(OPENED_BY_A_SIGN.sub("(", EMPTY_PARENTHESES.sub("", line)).split()).replace(" ,", ",")
        if tidy.strip(" *#:;-") and not tidy.startswith(LEFTOVER):
            lines.append(tidy)
    kept = [_heading(1, title), *_without_empty_sections(lines)]
    return "\n".join(f"\n{line}\n" if _level(line) else line for line in kept).lstrip("\n") + "\n"


def _text(code: Any) -> str:
    """What a reader sees of parsed markup."""
    from mwparserfromhell import nodes

    parts = []
    for node in code.nodes:
        if isinstance(node, nodes.Text):
            parts.append(str(node.value))
        elif isinstance(node, nodes.Heading):
            parts.append(f"\n{_heading(node.level, _text(node.title))}\n")
        elif isinstance(node, nodes.Wikilink):
            parts.append(_link(node))
        elif isinstance(node, nodes.ExternalLink) and node.title is not None:
            parts.append(_text(node.title))
        elif isinstance(node, nodes.HTMLEntity):
            parts.append(str(node.normalize()))
        elif isinstance(node, nodes.Tag):
            parts.append(_tag(node))
    return "".join(parts)


def _link(node: Any) -> str:
    target = str(node.title).strip()
    if target.lower().startswith(NOT_IN_THE_TEXT):
        return ""
    if node.text is not None:
        return _text(node.text)
    return "" if OTHER_LANGUAGE.match(target) else target.lstrip(":")


def _tag(node: Any) -> str:
    name = str(node.tag).strip().lower()
    if name == "br":
        return " "
    return "" if name in GONE_TAGS or node.contents is None else _text(node.contents)


def _heading(level: int, title: str) -> str:
    marks = "= " * level
    return f" {marks}{' '.join(title.split())} {marks}"


def _level(line: str) -> int:
    """How deep a heading is; 0 for other lines."""
    marks = HEADING.match(line)
    return len(marks[1]) // 2 if marks else 0


def _without_empty_sections(lines: list[str]) -> list[str]:
    """``lines`` without headings that are followed by the end or by a heading at the same level or above."""
    kept: list[str] = []
    for line in reversed(lines):
        below = _level(kept[-1]) if kept else 1
        if not _level(line) or (kept and (below == 0 or below > _level(line))):
            kept.append(line)
    return kept[::-1]
