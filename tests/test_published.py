"""Published runs: as good as those they were made of, and never lost."""

from __future__ import annotations

import lzma
import re
import shutil
from pathlib import Path

import pytest
from conftest import CONFIGS
from plans import plan_in
from report_runs import CLAIMS_PLAN, plans_with_runs
from runs import command_here

from cope.errors import UserError
from cope.report.page import collect, write_report
from cope.report.published import LOSS_POINTS, _thinned, copy_runs, make_runs
from cope.report.run_pictures import draw_gates_of_tasks
from cope.run.folder import RunFolder
from cope.run.trained import load_trained
from cope.sweep.plan import read_plan


def test_published_runs_give_the_same_verdicts_tables_and_curves(tmp_path: Path, undrawn: None) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    plans = plans_with_runs(here)
    for path in here.rglob("failed.txt"):  # which is not published
        path.unlink()
    for path in here.rglob("scores.json"):
        path.with_name("arrays.npz").write_bytes(b"what is drawn")
    original = collect(plans, CLAIMS_PLAN)
    published = write_report(original, tmp_path / "published", "make publish", with_runs=True).parent
    files = {path.name for path in (published / "runs").rglob("*") if path.is_file()}
    assert files == {"result.json", "scores.json", "curves.jsonl.xz", "gates.npz", "arrays.npz"}
    assert len(list((published / "runs").rglob("*.npz"))) == 2  # of what is drawn: CoPE's first seed
    made, left_alone = make_runs(published / "runs", there)
    assert (made, left_alone) == (6, [])
    with pytest.raises(UserError, match="is finished but has no weights, as published runs"):
        load_trained(RunFolder(next(there.rglob("result.json")).parent))
    copied = collect([plan_in(there, name, 2) for name in ("table2", "table8", "figure3", "figure5")], CLAIMS_PLAN)
    assert [verdict.as_json() for verdict in copied.verdicts] == [verdict.as_json() for verdict in original.verdicts]
    again = write_report(copied, tmp_path / "again", "make report").parent
    drawn = [draw_gates_of_tasks(report.findings, tmp_path)[0].path.read_text() for report in (original, copied)]
    assert drawn[0] == drawn[1] and "smoke scale" in drawn[1]
    for path in [
        *published.glob("tables/table8.*"),
        *published.glob("tables/figure5.*"),
        published / "tables" / "differences.csv",
    ]:
        assert (again / "tables" / path.name).read_text() == path.read_text()
    for path in here.rglob("metrics.jsonl"):
        assert (there / path.relative_to(here)).read_text() == path.read_text()
    assert make_runs(published / "runs", there)[0] == 0  # what is there is left alone
    with pytest.raises(
        UserError, match=r"holds no curves.jsonl.xz; allowed: the folder of a report that was written with_runs"
    ):
        make_runs(here, there)
    curves = published / "runs" / "curves.jsonl.xz"
    whole = curves.read_bytes()
    for damaged in (b"version https://git-lfs.github.com/spec/v1\n", whole[:-40]):
        curves.write_bytes(damaged)
        with pytest.raises(UserError, match=r"curves\.jsonl\.xz cannot be read \(.*\): it is damaged or was cut off"):
            make_runs(published / "runs", tmp_path / "elsewhere")
    curves.write_bytes(whole)


def test_curves_are_published_without_what_nobody_reads(tmp_path: Path) -> None:
    (plan,) = plans_with_runs(tmp_path / "here")[:1]
    report = collect([plan], CLAIMS_PLAN)
    run = report.findings.runs()[0][0]
    run.folder.metrics.write_text(
        '{"step": 10, "train/loss": 0.123456789, "train/lr": 0.1, "train/tokens_per_s": 9.5}\n'
        '{"step": 10, "eval/validation/token_error": 0.123456789}\n'
        '{"step": 20, "eval/validation/perplexity": 4.4816890703380645, "eval/validation/loss": 1.5}\n'  # its exponential
        '{"step": 20, "eval/longer/perplexity": 5.0, "eval/longer/loss": 1.5}\n'  # another number: it is kept
    )
    for path in (tmp_path / "here").rglob("position_alone"):  # without which gates are published too
        shutil.rmtree(path)
    copy_runs(report.findings, tmp_path / "runs")
    with lzma.open(tmp_path / "runs" / "curves.jsonl.xz", "rt") as file:
        assert [line.count("perplexity") for line in file if run.folder.place.as_posix() in line] == [0, 0, 0, 1]
    there = tmp_path / "there"
    typed = ("scripts/published_runs.py", f"report={tmp_path}", f"to={there}")
    made = command_here(*typed).stdout
    assert re.fullmatch(rf"[1-9]\d* runs made in {there}\n", made)
    assert command_here(*typed).stdout.startswith(
        f"0 runs made in {there}\n{made.partition(' made')[0]} left alone, there already, such as {there}/"
    )
    (copied,) = collect([plan_in(there, "table2", 2)], CLAIMS_PLAN).findings.runs()[:1]
    assert copied[0].folder.read_metrics() == [
        {"step": 10, "train/loss": 0.1235},
        {"step": 10, "eval/validation/token_error": 0.123456789},
        {"step": 20, "eval/validation/perplexity": 4.4816890703380645, "eval/validation/loss": 1.5},
        {"step": 20, "eval/longer/perplexity": 5.0, "eval/longer/loss": 1.5},
    ]


def test_of_a_training_loss_as_much_is_published_as_a_picture_shows_whenever_it_is_published() -> None:
    lines = [{"step": step, "train/loss": 1.0} for step in range(20, 4001, 20)]
    lines += [{"step": 4000, "train/loss": 1.0, "eval/validation/loss": 1.0}, {"step": 4000, "eval/validation/loss": 1.0}]
    thinned = list(_thinned(lines))
    assert 40 <= len(thinned) - 2 <= LOSS_POINTS and thinned[-2:] == lines[-2:]
    assert list(_thinned(thinned)) == thinned and list(_thinned(lines[:50])) == lines[:50] and list(_thinned([])) == []


def test_runs_are_found_by_what_defines_them_wherever_they_are(tmp_path: Path) -> None:
    overrides = ["scale=smoke", "logger=none"]
    here, there = tmp_path / "here", tmp_path / "there"
    plans = [read_plan(CONFIGS, "figure4", [*overrides, f"output_dir={folder}"], [1]) for folder in (here, there)]
    assert [run.folder.path.relative_to(here) for run in plans[0].runs] == [
        run.folder.path.relative_to(there) for run in plans[1].runs
    ]


def test_published_measurements_are_never_lost(tmp_path: Path, undrawn: None) -> None:
    report = collect(plans_with_runs(tmp_path / "outputs"), CLAIMS_PLAN)
    folder = write_report(report, tmp_path / "published", "make publish", with_runs=True).parent
    for path in (tmp_path / "outputs").rglob("scores.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds 2 files that this report has not, such as .*scores.json, and that would be"):
        write_report(report, folder, "make publish", with_runs=True)
    assert len(list(folder.rglob("scores.json"))) == 2
