"""How people write what settings name: ``rope`` is RoPE, ``ood_sparse`` is OOD sparse. What is not here keeps its own name."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@cache
def packaged(name: str) -> Any:
    """What a YAML file beside this one holds."""
    return yaml.safe_load(files("cope.report").joinpath(name).read_text(encoding="utf-8"))


_CONTENT = packaged("names.yaml")
FAMILIES: dict[str, dict[str, str]] = _CONTENT["encodings"]
ENCODINGS = {name: label for family in FAMILIES.values() for name, label in family.items()}
SPLITS = {"test": "in distribution", "test_disjoint": "test", "validation": "validation"}
OF_TEXT = {"test": "test, overlapping windows"}  # of language models, whose test_disjoint is the paper's


def encoding_name(name: str) -> str:
    """``rope`` -> RoPE; a new encoding's name with spaces for underscores."""
    return ENCODINGS.get(name, _spaced(name))


def task_name(name: str) -> str:
    """``selective_copy`` -> Selective copy; ``flip_flop`` -> Flip-flop."""
    return str(_CONTENT["tasks"].get(name, _spaced(name)))


def task_in_text(name: str) -> str:
    """Within a sentence: counting, flip-flop, but Wikipedia and MQAR."""
    label = task_name(name)
    return label if name in _CONTENT["tasks_with_capitals"] else label.lower()


def section_name(section: str) -> str:
    """Of a table's section: ``counting, 10000 programs`` -> Counting, 10,000 programs."""
    first, comma, rest = section.partition(", ")
    return task_name(first) + comma + re.sub(r"\d{4,}", lambda number: f"{int(number[0]):,}", rest)


def row_name(row: str) -> str:
    """Of a table's row: an encoding's name alone or in front of what else it says."""
    first, comma, rest = row.partition(", ")
    return (encoding_name(first) if first in ENCODINGS else first.replace("CoPE_", "CoPE-")) + comma + rest


def split_name(split: str, of_text: bool = False) -> str:
    """``ood_more_operations`` -> OOD more operations; ``longer_1_5`` -> 1.5 x context."""
    if split in SPLITS:
        return OF_TEXT.get(split, SPLITS[split]) if of_text else SPLITS[split]
    if longer := re.fullmatch(r"longer_(\d+)(?:_(\d+))?", split):
        return f"{'.'.join(part for part in longer.groups() if part)} x context"
    return split.replace("ood_", "OOD ", 1).replace("_", " ")


def table_title(name: str) -> str:
    """``table2`` -> Table 2; the runs of ``figure4`` are those of two figures."""
    if name == "figure4":
        return "Figures 4 and 6"
    return re.sub(r"^(table|figure)(\d+)$", lambda found: f"{found[1].capitalize()} {found[2]}", name)


def _spaced(name: str) -> str:
    return name[:1].upper() + name[1:].replace("_", " ")
