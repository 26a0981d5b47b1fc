"""Where the pictures of tables and figures go that are drawn beside the runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cope.errors import UserError
from cope.report.findings import Findings
from cope.report.paper_figures import draw_paper_figures
from cope.report.table_figures import draw_table_figures
from cope.run.configuration import NOT_PART_OF_THE_RUN
from cope.sweep.plan import Plan

LONGEST_NAME = 200  # of a folder, which file systems limit to 255 bytes


def draw_plans(plans: Sequence[Plan], findings: Findings, overrides: Iterable[str]) -> list[Path]:
    """Draw what the tables and figures have runs for, in ``figures/<scale>/`` beside the runs; with other settings than the
    scale's in a folder of theirs below that, so that no picture takes the place of one of other runs."""
    run = plans[0].runs[0]
    others = ",".join(sorted(text for text in overrides if text.partition("=")[0] not in ("scale", *NOT_PART_OF_THE_RUN)))
    folder = run.folder.outputs / "figures" / run.scale / re.sub(r"[^\w.,=+ -]", "_", others)[:LONGEST_NAME]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawings = draw_table_figures(plans, findings, folder) + draw_paper_figures(plans, findings, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}.") from error
    return [drawing.path for drawing in drawings]
