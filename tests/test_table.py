"""Tables: the runs that each needs compose and are run, results stand where they belong, what is missing or failed is said."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIGS, ROOT, WITH_JOBS
from plans import SEEDS, TABLES, composed, plan_in
from runs import command_here, completed

from cope.endings import LEFT_OVER
from cope.errors import UserError
from cope.report.findings import Findings
from cope.report.paper import paper_values
from cope.report.plan_pictures import draw_plans
from cope.report.plan_sheets import comparison_sheet, plan_sheets
from cope.report.provenance import provenance_line
from cope.report.sheets import as_text
from cope.sweep.listing import print_runs
from cope.sweep.plan import Plan, PlannedRun, all_runs, read_plan, read_plans
from cope.sweep.plan import composed as composed_settings

sys.path.insert(0, str(ROOT / "scripts"))
import table as command


@pytest.mark.parametrize("name", TABLES)
def test_every_run_of_a_table_composes_and_is_another_one(name: str) -> None:
    plan = composed(name)
    for section in plan.sections:
        folders = {run.folder.path for run in plan.runs if run.section == section}
        assert len(folders) == len(plan.seeds) * len(plan.rows(section))
    assert {run.section for run in plan.runs} == set(plan.sections)


@pytest.mark.parametrize("task", ["counting", "flip_flop", "selective_copy", "code"])
def test_every_encoding_with_rope_has_the_base_that_was_tuned_for_it(task: str) -> None:
    configs = [
        composed_settings(CONFIGS, (f"task={task}", f"pe={encoding}"))
        for encoding in ("rope", "cope_rope", "xpos", "pope", "repo")
    ]
    assert len({config.pe.base for config in configs}) == 1


def test_what_the_paper_says_of_a_section_is_about_rows_of_that_section() -> None:
    rows = {section: set(plan.rows(section)) for name in TABLES for plan in [composed(name)]
            for section in plan.sections}  # fmt: skip
    for section, figures in paper_values().items():
        assert set(figures) <= rows[section], section


def test_a_table_shows_finished_runs_beside_the_papers_figures_and_says_what_is_missing(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "table5", 2)
    for run in plan.runs:
        if run.section == "code" and run.row == "cope" and run.seed == SEEDS[1]:
            run.folder.path.mkdir(parents=True)
            splits = {"test": {"perplexity": 21.5}, "test_disjoint": {"perplexity": 22.25}}
            result = {"headline": "perplexity", "splits": splits, "time_s": 7}
            run.folder.result.write_text(completed(result))
    findings = Findings([plan])
    text = as_text([comparison_sheet(plan, "code", findings)], "markdown")
    assert "**Code, perplexity**\n\n|  | test, overlapping windows | test | seeds | seconds |\n" in text
    assert "| CoPE | 21.50 | 22.25 | 1 | 7 |\n|   CoPE, paper |  | 3.9 |  |  |\n" in text
    assert "| RoPE | missing | missing | 0 |  |\n|   RoPE, paper |  | 4.1 |  |  |\n" in text


def test_what_neither_a_run_nor_the_paper_has_a_figure_of_is_named_below(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "table2", 1)
    sheet = comparison_sheet(plan, "flip_flop", Findings([plan]))
    assert [row[0] for row in sheet.rows][::2] == ["Absolute", "RoPE", "CoPE"] and sheet.faint == {1, 3, 5}
    assert sheet.notes == ("Not run: NoPE; Relative.",)
    ablation = plan_in(tmp_path, "ablations/code", 1)  # of which nothing is run, and which the paper does not have
    (section, rows), *_ = ((section, ablation.rows(section)) for section in ablation.sections)
    assert len(comparison_sheet(ablation, section, Findings([ablation])).rows) == len(rows)


def test_sections_of_one_split_stand_side_by_side_as_in_the_paper(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "table3", 1)
    for run in plan.runs:
        if run.row == "cope" and run.section != "counting":
            run.folder.path.mkdir(parents=True)
            scores = {"error": 0.25 if "3" in run.section else 0.5}
            (result,) = results_of({"headline": "error", "splits": {"test": scores, "validation": scores}, "time_s": 7})
            run.folder.result.write_text(completed(result))
    together, *sections = plan_sheets(plan, Findings([plan]))
    assert together.columns == ("", "Counting", "Counting, 3 variables", "Counting, 5 variables")
    assert together.rows[-2:] == (("CoPE", "missing", "25.0", "50.0"), ("  CoPE, paper", "0.0 (0.0)", "1.2 (2.1)", "7.4 (8.5)"))
    assert len(sections) == 3 and len(together.faint) == len(together.rows) / 2


def results_of(*results: dict[str, Any]) -> list[dict[str, Any]]:
    common = {"scale": "laptop", "versions": {"torch": "2"}, "commit": None, "date": "2026-01-02"}
    common |= {"hardware": {"processor": "A", "threads": 1}}
    return [common | {"seed": seed} | result for seed, result in enumerate(results)]


def test_a_tables_last_line_names_each_processor_and_its_vector_instructions() -> None:
    with_instructions = {"hardware": {"processor": "A", "instructions": "AVX2", "threads": 1}}
    said = provenance_line(results_of({}, with_instructions, with_instructions))
    assert said == (
        "Scale laptop; seeds 0, 1, 2; A, A with AVX2, 1 thread a run; PyTorch 2; commit not known; code not recorded; "
        "2026-01-02."
    )


def test_a_tables_last_line_names_kernels_and_says_where_runs_are_of_different_code() -> None:
    new = {"code": "0a1b", "kernel": "native (g++ 12)"}
    assert "; attention by native (g++ 12); commit not known; code 0a1b; " in provenance_line(results_of(new, new))
    said = provenance_line(results_of(new, {}, new | {"code": "2c3d"}, new))
    assert "; runs of different code: 0a1b (2), not recorded (1), 2c3d (1); " in said


def test_pictures_with_other_settings_do_not_replace_those_of_the_scale(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "table4", 1)
    for overrides in (["scale=smoke", f"output_dir={tmp_path}"], ["model.dim=32", "task.splits={a: {b: 1}}", "data_dir=/d"]):
        assert draw_plans([plan], Findings([plan]), overrides) == []  # nothing is finished
    folders = [path.relative_to(tmp_path) for path in sorted((tmp_path / "figures").rglob("*"))]
    assert [str(path) for path in folders] == ["figures/smoke", "figures/smoke/model.dim=32,task.splits=_a_ _b_ 1__"]


def failing(folder: Path, failed: Callable[[PlannedRun], bool]) -> tuple[Plan, Findings]:
    plan = plan_in(folder, "table5", 2)
    for run in plan.runs:
        run.folder.path.mkdir(parents=True, exist_ok=True)
        if run.section == "code" and failed(run):
            run.folder.failure.write_text("no memory left")
    return plan, Findings([plan])


def test_failed_runs_are_told_from_missing_ones(tmp_path: Path) -> None:
    plan, _ = failing(tmp_path, lambda run: (run.row, run.seed) != ("absolute", SEEDS[1]))
    for run in plan.runs:
        if run.section == "code" and run.row == "cope" and run.seed == SEEDS[1]:  # finished after all: no failure any more
            run.folder.result.write_text(
                completed({"headline": "perplexity", "splits": {"test": {"perplexity": 21.5}}, "time_s": 7})
            )
    text = as_text([comparison_sheet(plan, "code", Findings([plan]))], "markdown")
    assert "| CoPE | 21.50 | 1, 1 failed | 7 |" in text
    assert "| RoPE | failed | 0, 2 failed |  |" in text
    assert "| Absolute | failed | 0, 1 failed |  |" in text


def test_a_section_without_any_finished_run_says_whether_runs_failed(tmp_path: Path) -> None:
    plan, findings = failing(tmp_path / "one", lambda run: (run.row, run.seed) == ("cope", SEEDS[0]))
    text = as_text([comparison_sheet(plan, "code", findings)], "markdown")
    assert "| CoPE | failed | 0, 1 failed |  |\n|   CoPE, paper | 3.9 |" in text and "| RoPE | missing | 0 |  |" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "is damaged: task=None"),
        (completed({"headline": "old_metric"}), "headline='old_metric' is no metric; allowed: error"),
        (completed({"splits": {"test": {"error": float("nan")}}}), "splits.test.error=nan"),
        (completed({"splits": {"test": {"token_error": 0.5}}}), "splits.test.error=None"),
        (completed({"splits": {"test": {"error": 0.5, "count": "many"}}}), "splits.test.count='many'"),
        (completed({"time_s": None}), "time_s=None"),
        (completed({"best_step": 999, "steps": 4}), "best_step=999 of steps=4"),
        ("[]", "is not a run's result"),
        ("{", "cannot be read"),
    ],
)
def test_a_damaged_result_is_told_and_harms_no_other(
    tmp_path: Path, content: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_in(tmp_path, "table4", 1)
    for run, text in zip(plan.runs[:2], (content, completed({})), strict=True):
        run.folder.path.mkdir(parents=True)
        run.folder.result.write_text(text)
    findings = Findings([plan])
    assert [run for run, _ in findings.runs()] == [plan.runs[1]]
    assert caplog.text.count(f"{plan.runs[0].folder.result} ") == 1  # once, however often it is asked for
    assert re.search(f"left out: .*result.json.* {said}.*force=true", caplog.text)
    assert plan.runs[0].folder.result.read_text() == content
    with pytest.raises(UserError, match=f"result.json.* {said}"):  # as the run's own command says
        plan.runs[0].folder.read_result()


def test_runs_that_are_judged_by_different_metrics_are_not_compared(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "figure5", 1)
    for run, headline in zip(plan.runs[:2], ("error", "token_error"), strict=True):
        run.folder.path.mkdir(parents=True)
        run.folder.result.write_text(completed({"headline": headline}))
    with pytest.raises(UserError, match="were judged by different metrics, so they cannot be compared"):
        Findings([plan])


def test_tables_that_share_runs_need_each_once_and_every_row_with_one_seed_first() -> None:
    plans = [composed("table2"), composed("figure5")]  # the figure's runs are among the table's
    runs = all_runs(plans)
    assert {run.folder.path for run in runs} == {run.folder.path for run in plans[0].runs}
    assert [run.seed for run in runs] == [seed for seed in SEEDS for _ in range(10)]


def test_a_scale_without_a_recipe_for_a_tables_task_is_told_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"scale=night has no recipe for task=wikipedia; allowed: another task \(counting, "):
        read_plan(CONFIGS, "table5", ["scale=night"], [1])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("pe=rope", r"pe=rope would replace what rows of figure5 differ in"),
        ("seed=5", r"seed=5: a table has the seeds of configs/plan.yaml; allowed: seeds=N"),
        ("force=true", r"force=true: a table runs what is not finished"),
        ("output_dir=5", r"output_dir=5 has the wrong type; allowed: text"),
    ],
)
def test_settings_that_would_make_a_false_table_are_refused(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_plan(CONFIGS, "figure5", [override], [1])


@pytest.mark.parametrize(
    ("table", "override", "said"),
    [
        (
            "table2",
            "pe.init_std=0",
            r"pe\.init_std is not a setting\. Allowed with task=selective_copy, .*\(table2, selective_copy: ",
        ),
        ("table5", "corpus=fils", r"corpus=fils is not known; allowed: .*Did you mean 'files'\?"),
        ("table4", "scale=smal", r"scale=smal is not known; allowed: "),
        ("table4", "trainer.stepz=3", r"Did you mean 'trainer\.steps'\?"),
    ],
)
def test_settings_are_checked_with_each_rows_own(table: str, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_plan(CONFIGS, table, [override], [1])


def test_a_table_takes_settings_of_its_own_task() -> None:
    assert read_plan(CONFIGS, "figure5", ["task.num_pairs=32"], [1]).runs[0].overrides[2] == "task.num_pairs=32"


def test_tables_without_a_recipe_at_the_scale_are_left_out_by_name() -> None:
    plans, left_out = read_plans(CONFIGS, ["scale=night"], [1], ["table5", "figure3", "figure5"])
    assert [plan.name for plan in plans] == ["figure5"]
    assert len(left_out) == 2 and left_out[1].startswith("figure3 is left out: scale=night has no recipe for task=wikipedia")


def test_what_a_launcher_writes_itself_goes_where_runs_go(tmp_path: Path) -> None:
    with command.launcher_of(["scale=smoke", "hydra/launcher=submitit_slurm", f"output_dir={tmp_path}"]) as launcher:
        assert launcher.folder == tmp_path / ".submitit" / "%j"


@pytest.mark.slow  # composes every table
def test_what_reproduce_asks_of_a_launcher_keeps_no_report_from_being_written(tmp_path: Path) -> None:
    """After nights of runs a refused setting would be told last."""
    asked = ["LAUNCHER=submitit_slurm", "JOBS=2", f"SET=hydra.launcher.partition=gpu output_dir={tmp_path / 'outputs'}"]
    steps = ["make", "-n", f"INSTALLED={ROOT / 'Makefile'}", "SCALE=smoke", *asked, "reproduce"]
    shown = subprocess.run(steps, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (report,) = re.findall(r"scripts/report\.py [^&]*", shown)
    script, _, *arguments = shlex.split(report)
    told = command_here(script, "claims=true", *arguments)
    assert told.returncode == 0 and told.stdout.endswith("\n17 not run.\n"), told.stderr
    misspelt = command_here(script, "claims=true", "hydra/launcher=submitit_slurm", "hydra.launcher.partitions=gpu")
    assert misspelt.returncode == 1 and "Did you mean 'hydra.launcher.partition'?" in misspelt.stderr


@pytest.mark.slow  # a sweep's failing job goes the same way
@WITH_JOBS
def test_a_failed_run_of_a_table_is_told_with_its_reason_at_once_and_at_the_end(tmp_path: Path) -> None:
    settings = ["scale=smoke", "logger=none", "optimizer.lr=1e30", "task.num_test=16", f"output_dir={tmp_path}"]
    settings += ["hydra.launcher.jobs=2"]
    made = command_here("scripts/table.py", "table=table4", "action=run", "seeds=1", *settings)
    assert made.returncode == LEFT_OVER, made.stderr
    assert made.stdout.count("] FAILED: python train.py task=counting pe=") == made.stderr.count("The loss became ") == 5
    assert len(re.findall(r" failed +0, 1 failed", made.stdout)) == 5
    assert made.stderr.endswith("5 of 5 runs are not finished; the same command runs only those.\n")
    assert "Traceback" not in made.stderr and len(list(tmp_path.glob(f"counting/*/*/seed={SEEDS[0]}/failed.txt"))) == 5


@pytest.mark.slow
def test_a_table_takes_another_launcher(tmp_path: Path) -> None:
    settings = ["scale=smoke", "logger=none", "trainer.steps=2", "trainer.eval_every=2", f"output_dir={tmp_path / 'outputs'}"]
    table = [sys.executable, str(ROOT / "scripts" / "table.py"), "table=table4", "action=run", "seeds=1", *settings]
    made = subprocess.run([*table, "hydra/launcher=joblib"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("0 of 5 runs are finished\n") and made.stdout.count("%; ") == 5
    again = subprocess.run(table, cwd=tmp_path, capture_output=True, text=True)
    assert again.stdout.startswith("5 of 5 runs are finished\n") and "%; " not in again.stdout
    assert again.stdout.split("\nTable 4: ")[1] == made.stdout.split("\nTable 4: ")[1]


@pytest.mark.slow
def test_reproduce_runs_every_table_and_figure_and_writes_the_report(tmp_path: Path) -> None:
    """At the smallest scale, with one seed: some ten minutes on two cores."""
    outputs, installed = tmp_path / "outputs", tmp_path / "installed"
    installed.touch()
    settings = [
        f"INSTALLED={installed}",
        f"BIN={Path(sys.executable).parent}",
        "SCALE=smoke",
        "SEEDS=1",
        "WINDOWS=100",
        f"REPORT={tmp_path / 'report'}",
    ]
    command = ["make", *settings, f"SET=logger=none output_dir={outputs} data_dir={tmp_path / 'data'}"]
    made = subprocess.run([*command, "reproduce"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    assert (tmp_path / "report" / "index.html").exists()
    verdicts = json.loads((tmp_path / "report" / "verdicts.json").read_text())
    # The plan's first seed had been seen for CoPE on selective copy and for relative on several variables.
    assert {verdict["number"] for verdict in verdicts if verdict["outcome"] == "not run"} == {3, 4, 5, 7, 8}
    # Each target by itself finds everything done, and a dry run says so.
    for target in ("table2", "table3", "table4", "table5", "table7", "table8", "figure2", "figure3", "figure5", "tables"):
        shown = subprocess.run([*command, target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert " runs are finished\n" in shown and "missing" not in shown, shown
    for target in ("figure4", "figure6", "figures"):
        assert (
            "measured already"
            in subprocess.run([*command, target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        )
    assert (
        "\nnothing to do: "
        in subprocess.run([*command, "reproduce", "DRY=1"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )


def test_a_list_without_anything_to_do_guesses_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = plan_in(tmp_path, "table2", 1).runs[0]
    run.folder.path.mkdir(parents=True)
    run.folder.result.write_text(completed({}))
    print_runs(CONFIGS, [run], [])
    assert capsys.readouterr().out == f"finished  {run.command}\nnothing to do: 1 run finished\n"


def test_an_unknown_table_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"table=table51 is not known; allowed: .*Did you mean 'table5'"):
        read_plan(CONFIGS, "table51", [], [1])


def test_a_table_has_no_more_seeds_than_the_plan() -> None:
    with pytest.raises(UserError, match=r"seeds=25 is out of range; allowed: 1 to 24"):
        command.main(["table=table2", "seeds=25"])


def test_at_the_papers_scale_language_models_read_the_papers_text_and_it_has_settings() -> None:
    runs = read_plan(CONFIGS, "table5", ["scale=paper", "corpus.source=/data"], [1]).runs
    assert {run.section: run.overrides[2] for run in runs} == {"wikipedia": "corpus=wikitext103", "code": "corpus=codeparrot"}
