"""Pictures of single runs: what CoPE counts in each synthetic task, and what heads attend to by position alone."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from cope.errors import UserError
from cope.metrics import METRICS
from cope.report.cells import BASELINE
from cope.report.drawing import Drawing, in_few_bytes, in_few_colours, save
from cope.report.figures import gates_figure
from cope.report.findings import Findings, measurement
from cope.report.names import encoding_name, row_name, section_name, task_in_text
from cope.report.style import picture_style
from cope.sweep.plan import PlannedRun

log = logging.getLogger(__name__)


def runs_with_gates(findings: Findings) -> list[PlannedRun]:
    """Of each synthetic task CoPE's first seed, of its plain form where there are runs of that, if its gates are there."""
    found: dict[str, PlannedRun] = {}
    for run, result in sorted(findings.runs(), key=lambda found: found[0].section != found[0].folder.task):
        synthetic = METRICS[result["headline"]].is_percentage
        if run.folder.encoding == BASELINE and synthetic and run.folder.gates.exists():
            found.setdefault(run.folder.task, run)
    return list(found.values())


def draw_gates_of_tasks(findings: Findings, folder: Path) -> list[Drawing]:
    """Gates and positions of :func:`runs_with_gates`."""
    drawn = []
    for run in runs_with_gates(findings):
        task = run.folder.task
        name = f"gates_{task}"
        with picture_style(name):
            try:
                path = save(gates_figure(run.folder), folder, name)
            except UserError as error:  # a report does without it
                log.warning("left out: %s", error)
                continue
        drawn.append(
            Drawing(
                path,
                f"What CoPE counts in {task_in_text(task)}",
                f"{section_name(run.section)}: {row_name(run.row)}, seed {run.seed}, on one test example. Bars (left axis): "
                "gates; line (right axis): the positions that they add up to, from each token to the last one shown.",
                run_folders=(run.folder.path,),
            )
        )
    return drawn


def drawn_measurements(findings: Findings) -> dict[str, tuple[PlannedRun, Path]]:
    """Of the measurements that claim 15 is judged by, each encoding's first seed's with a picture: the run and its scores."""
    found: dict[str, tuple[PlannedRun, Path]] = {}
    for run, result in findings.runs():
        scores = measurement(run, result)
        if scores and scores.with_name("position_alone.png").exists():
            found.setdefault(run.folder.encoding, (run, scores))
    return found


def copy_position_alone(findings: Findings, folder: Path) -> list[Drawing]:
    """The pictures of :func:`drawn_measurements`."""
    drawn = []
    for encoding, (run, scores) in drawn_measurements(findings).items():
        picture = scores.with_name("position_alone.svg")
        if not picture.exists():  # a measurement made before there was one
            picture = picture.with_suffix(".png")
        path = Path(shutil.copyfile(picture, folder / f"position_alone_{encoding}{picture.suffix}"))
        (in_few_colours if path.suffix == ".png" else in_few_bytes)(path)
        drawn.append(
            Drawing(
                path,
                f"Figures 4 and 6: attention by position alone, {encoding_name(encoding)}, {task_in_text(run.folder.task)}, "
                f"seed {run.seed}",
                "The head that is furthest above chance for paragraphs (above) and for sections (below): attention by position "
                "alone, divided by its largest, and gates where the encoding has them.",
                run_folders=(run.folder.path,),
            )
        )
    return drawn
