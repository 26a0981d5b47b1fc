"""Tables: the runs that each needs compose, results stand where they belong, and what is missing or failed is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import CONFIGS, ROOT
from plans import TABLES, composed, plan_in

from cope.errors import UserError
from cope.report.comparison import comparison_table, failures, paper_figures
from cope.report.plan import read_plan, run_all


@pytest.mark.parametrize("name", TABLES)
def test_every_run_of_a_table_composes_and_is_another_one(name: str) -> None:
    plan = composed(name)
    assert len({run.folder.path for run in plan.runs if run.section == plan.sections[0]}) == len(plan.seeds) * len(
        plan.results(plan.sections[0])
    )
    assert {run.section for run in plan.runs} == set(plan.sections)


def test_what_the_paper_says_of_a_section_is_about_rows_of_that_section() -> None:
    rows = {section: set(plan.results(section)) for name in TABLES for plan in [composed(name)]
            for section in plan.sections}  # fmt: skip
    for section, figures in paper_figures().items():
        assert set(figures) <= rows[section], section


def test_a_table_shows_finished_runs_beside_the_papers_figures_and_says_what_is_missing(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "table5", 2)
    for run in plan.runs:
        if run.section == "code" and run.row == "cope" and run.seed == 2:
            run.folder.path.mkdir(parents=True)
            splits = {"test": {"perplexity": 21.5}, "test_disjoint": {"perplexity": 22.25}}
            result = {"headline": "perplexity", "splits": splits, "time_s": 7}
            run.folder.result.write_text(json.dumps(result))
    assert comparison_table("wikipedia", plan.results("wikipedia"), 2) == "**wikipedia**: missing"
    text = comparison_table("code", plan.results("code"), 2)
    assert "| cope (1 of 2 seeds) | 21.50 | 22.25<br>*paper 3.9* | 7 |" in text
    assert "| rope (0 of 2 seeds) | missing | missing<br>*paper 4.1* | missing |" in text


def test_failed_runs_are_told_from_missing_ones(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "table5", 2)
    for run in plan.runs:
        run.folder.path.mkdir(parents=True, exist_ok=True)
        if run.section == "code" and (run.row, run.seed) != ("absolute", 2):
            (run.folder.path / "failed.txt").write_text("no memory left")
        if run.section == "code" and run.row == "cope" and run.seed == 2:  # finished after all: no failure any more
            run.folder.result.write_text(
                json.dumps({"headline": "perplexity", "splits": {"test": {"perplexity": 21.5}}, "time_s": 7})
            )
    text = comparison_table("code", plan.results("code"), 2, ["test"], failures(plan.runs, "code"))
    assert "| cope (1 of 2 seeds, 1 failed) | 21.50 | 7 |" in text
    assert "| rope (0 of 2 seeds, 2 failed) | failed | failed |" in text
    assert "| absolute (0 of 2 seeds, 1 failed) | missing | missing |" in text
    none = {row: [] for row in plan.results("code")}
    assert comparison_table("code", none, 2, None, {"cope": 1}) == "**code**: missing (1 of 8 runs failed)"
    assert comparison_table("code", none, 2, None, dict.fromkeys(none, 2)) == "**code**: failed"


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["scale=smoke", "logger=none", "trainer.steps=2", "trainer.log_every=0", f"output_dir={tmp_path}"]
    runs = read_plan(CONFIGS, "table4", overrides, 1).runs[:1]
    assert run_all(runs, ROOT, 1) == list(runs)
    assert "FAILED: python train.py task=counting pe=none scale=smoke" in capsys.readouterr().out
    assert "trainer.log_every=0 is too small" in runs[0].log.read_text()


def test_an_unknown_table_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"table=table51 is not known; allowed: .*Did you mean 'table5'"):
        read_plan(CONFIGS, "table51", [])


def test_at_the_papers_scale_language_models_read_the_papers_text() -> None:
    runs = read_plan(CONFIGS, "table5", ["scale=paper"], 1).runs
    assert {run.section: run.overrides[2] for run in runs} == {"wikipedia": "corpus=wikitext103", "code": "corpus=codeparrot"}
