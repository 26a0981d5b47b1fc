"""Verdicts on the paper's claims: each can come out each way, and only from result files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from plans import TABLES, composed, plan_in
from runs import completed

from cope.metrics import METRICS
from cope.report.claims import KINDS, Outcome, judge, read_claims, rows_of
from cope.report.findings import Findings
from cope.sweep.plan import Plan

CLAIMS = {claim["number"]: claim for claim in read_claims()}


def plan_with(folder: Path, table: str, cells: dict[tuple[str, str], dict[str, list[float]]]) -> Plan:
    """A table whose runs found ``cells``: {(section, row): {split: a value for each seed}}, as they are shown."""
    plan = plan_in(folder, table)
    for run in plan.runs:
        values = cells.get((run.section, run.row))
        seed = run.seed
        if values is None or any(len(found) < seed for found in values.values()):
            continue
        perplexities = table in ("table5", "table8", "figure3")
        headline, factor = ("perplexity", 1) if perplexities else ("token_error" if "flip" in run.section else "error", 100)
        run.folder.path.mkdir(parents=True, exist_ok=True)
        splits = {split: {headline: found[seed - 1] / factor} for split, found in values.items()}
        metrics = [
            {"step": step, f"eval/validation/{headline}": splits["validation"][headline] * scale}
            for step, scale in ((25, 1), (50, 0.1), (100, 0)) if "validation" in splits
        ]  # fmt: skip
        run.folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in metrics))
        result = {"headline": headline, "seed": seed, "steps": 100, "best_step": 100, "scale": "smoke", "splits": splits}
        run.folder.result.write_text(completed(result))
    return plan


def outcome(folder: Path, number: int, table: str, cells: dict[tuple[str, str], dict[str, list[float]]]) -> Outcome:
    return judge(CLAIMS[number], Findings([plan_with(folder, table, cells)])).outcome


def flip_flop(split: str, **rows: list[float]) -> dict[tuple[str, str], dict[str, list[float]]]:
    return {("flip_flop", row): {split: values} for row, values in rows.items()}


LOW, MIDDLE, HIGH, WILD = [1.0, 1.2, 1.1], [5.0, 5.3, 4.9], [20.0, 21.0, 19.5], [0.1, 30.0, 3.0]


@pytest.mark.parametrize(
    ("cope", "rope", "absolute", "expected"),
    [
        (LOW, MIDDLE, HIGH, "reproduced"),
        (MIDDLE, LOW, HIGH, "not reproduced"),
        (LOW, HIGH, MIDDLE, "not reproduced"),
        (WILD, MIDDLE, HIGH, "undecided"),
        (LOW, LOW, HIGH, "undecided"),
        (LOW[:1], MIDDLE[:1], HIGH[:1], "undecided"),  # one seed says nothing
        ([], MIDDLE, HIGH, "not run"),
    ],
)
def test_an_order_over_seeds(tmp_path, cope, rope, absolute, expected):
    assert outcome(tmp_path, 1, "table2", flip_flop("test", cope=cope, rope=rope, absolute=absolute)) == expected


@pytest.mark.parametrize(
    ("cope", "rope", "expected"),
    [
        (LOW, MIDDLE, "reproduced"),
        (MIDDLE, [v * 1.5 for v in MIDDLE], "not reproduced"),  # below, but not by half
        (LOW, [2 * v + seed / 10 for seed, v in zip((-1, 1, 0), LOW, strict=True)], "undecided"),
        (LOW, [], "not run"),
    ],
)
def test_far_below_is_more_than_below(tmp_path, cope, rope, expected):
    assert outcome(tmp_path, 2, "table2", flip_flop("ood_sparse", cope=cope, rope=rope, absolute=HIGH)) == expected


def selective_copy(**rows: list[float]) -> dict[tuple[str, str], dict[str, list[float]]]:
    return {("selective_copy", row): {"test": values} for row, values in rows.items()}


@pytest.mark.parametrize(
    ("cope", "rope", "expected"),
    [
        ([0.0, 0.1, 0.0], MIDDLE, "reproduced"),
        ([0.0, 0.1, 0.0], [0.5, 0.5, 0.4], "not reproduced"),  # RoPE solves it too
        (MIDDLE, MIDDLE, "not reproduced"),
        ([0.0, 0.0, 3.0], MIDDLE, "undecided"),
        ([0.0, 0.1, 0.0], WILD, "undecided"),
        ([0.0], MIDDLE, "undecided"),
        ([], MIDDLE, "not run"),
        ([0.0, 0.1, 0.0], [], "not run"),
        (MIDDLE, [], "not reproduced"),  # whatever RoPE will do
    ],
)
def test_only_one_solves_it(tmp_path, cope, rope, expected):
    assert outcome(tmp_path, 3, "table2", selective_copy(cope=cope, rope=rope, absolute=HIGH)) == expected


def contexts(rates: dict[str, float], seeds: int = 3) -> dict[tuple[str, str], dict[str, list[float]]]:
    splits = ("test", "longer_1_5", "longer_2", "longer_2_5")
    return {
        (section, row): {
            split: [20.0 + seed / 10 + step * (rate + place * seed / 100) for seed in range(seeds)]
            for step, split in enumerate(splits)
        }
        for section in ("trained at the full context", "trained at half of it")
        for place, (row, rate) in enumerate(rates.items(), 1)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rates", "seeds", "expected"),
    [
        ({"cope": -0.5, "relative_capped": -0.1, "relative": 0.5}, 3, "reproduced"),
        ({"cope": 0.2, "relative_capped": -0.1, "relative": 0.5}, 3, "not reproduced"),
        ({"cope": -0.5, "relative_capped": -0.1, "relative": -0.2}, 3, "not reproduced"),
        ({"cope": -0.5, "relative_capped": -0.1, "relative": 0.5}, 1, "undecided"),
        ({"cope": -0.01, "relative_capped": 0.1, "relative": 0.5}, 3, "undecided"),  # seeds fall, stay and rise
        ({"cope": -0.5, "relative_capped": -0.1, "relative": -0.01}, 3, "undecided"),
        ({"cope": -0.5, "relative_capped": -0.1}, 3, "not run"),
    ],
)
def test_what_longer_contexts_do(tmp_path, rates, seeds, expected):
    assert outcome(tmp_path, 13, "figure3", contexts(rates, seeds)) == expected


@pytest.mark.parametrize(
    ("cope", "expected"),
    [(LOW, "reproduced"), (HIGH, "not reproduced"), (WILD, "undecided"), (LOW[:1], "undecided"), ([], "not run")],
)
def test_speed_is_read_from_the_validations_during_training(tmp_path, cope, expected):
    cells = flip_flop("validation", cope=cope, rope=MIDDLE, absolute=HIGH)
    assert outcome(tmp_path, 17, "table2", cells) == expected


def with_counts(plan: Plan, count: int) -> Findings:
    """The findings of a plan, each split's error being of so many answers."""
    for run in plan.runs:
        result = run.result()
        if result is not None:
            for scores in result["splits"].values():
                scores |= {"errors": round(count * scores["error"]), "count": count}
            run.folder.result.write_text(json.dumps(result))
    return Findings([plan])


@pytest.mark.parametrize(
    ("relative", "expected"),
    [([9.0] * 3, "reproduced"), ([0.1] * 3, "undecided"), ([0.0] * 3, "undecided")],  # 0.1%: one answer of a thousand
)
def test_where_all_seeds_say_the_same_their_examples_decide(tmp_path, relative, expected):
    cells = {("counting", "cope"): {"ood_longer": [0.0] * 3}, ("counting", "relative"): {"ood_longer": relative}}
    plan = plan_with(tmp_path, "table4", cells)
    assert judge(CLAIMS[9], Findings([plan])).outcome == "undecided"  # without counts there is no interval
    assert judge(CLAIMS[9], with_counts(plan, 1000)).outcome == expected


def test_a_verdict_shows_the_means_of_what_it_compares(tmp_path: Path) -> None:
    cells = {("counting", "cope"): {"ood_longer": [1.0, 1.2, 90.0]}, ("counting", "relative"): {"ood_longer": [2.0, 2.4]}}
    verdict = judge(CLAIMS[9], Findings([plan_with(tmp_path, "table4", cells)]))
    assert verdict.figures == "counting, ood_longer: cope 1.10%, relative 2.20%"


def test_a_verdict_tells_of_seeds_that_did_not_learn(tmp_path: Path) -> None:
    cells = flip_flop("test", cope=LOW, rope=MIDDLE, absolute=HIGH)
    cells["flip_flop", "absolute"]["validation"] = [20.0, 1.0, 20.0]
    verdict = judge(CLAIMS[1], Findings([plan_with(tmp_path, "table2", cells)]))
    assert verdict.comparisons[1].detail.endswith("; absolute did not learn the training data with 2 of the seeds")


def test_every_kind_of_relation_is_in_these_tests() -> None:
    tested = (1, 2, 3, 13, 17, 15)
    assert {kind for number in tested for relation in CLAIMS[number]["relations"] for kind in KINDS if kind in relation} == set(
        KINDS
    )


@pytest.mark.parametrize(
    ("cope", "summary"),
    [
        (LOW, "All 2 comparisons come out as the paper says."),
        (MIDDLE, r"1 of 2 comparisons did not come out as claimed: cope below rope \(difference -\S+ to -\S+, \d seeds.*\)\."),
        (WILD, r"1 of 2 comparisons decided nothing: cope below rope \(difference -\S+ to \d\S*, \d seeds.*\)\."),
        ([], "1 of 2 comparisons could not be made, since runs are missing or failed: cope below rope."),
    ],
)
def test_a_verdict_says_why(tmp_path, cope, summary):
    rope = LOW if cope is MIDDLE else MIDDLE
    cells = flip_flop("test", cope=cope, rope=rope, absolute=HIGH)
    verdict = judge(CLAIMS[1], Findings([plan_with(tmp_path, "table2", cells)]))
    assert re.fullmatch(summary, verdict.summary) and verdict.scales == ("smoke",)
    shown = METRICS["error"].text(sum(cope) / len(cope) / 100) + "%" if cope else "missing"
    assert verdict.figures.startswith(f"flip_flop, test: cope {shown}, rope ")
    assert len(verdict.as_json()["findings"]) == 2


SENTENCES, LINES = CLAIMS[15]["relations"][0]["kinds"]


@pytest.mark.parametrize(
    ("excesses", "expected"),
    [
        ([(0.3, 0.0), (0.25, 0.0), (0.28, 0.0)], "reproduced"),  # one kind is enough
        ([(0.01, 0.01), (0.02, 0.0), (0.0, 0.0)], "not reproduced"),  # significant, but next to nothing
        ([(None, None), (None, None), (None, 0.01)], "not reproduced"),  # not significant
        ([(None, None)] * 3, "not reproduced"),
        ([(0.3, 0.3)], "undecided"),
        ([(0.3, 0.0), (0.0, 0.0), (0.1, 0.0)], "undecided"),
    ],
)
def test_attention_by_position_alone_is_read_from_its_files(tmp_path, excesses, expected):
    plan = plan_with(tmp_path, "figure4", {("position alone", "sep-keys"): {"test": [1.0, 1.0, 1.0]}})
    assert judge(CLAIMS[15], Findings([plan])).outcome == "not run"
    for run, measured in zip(plan.runs, excesses, strict=False):
        # The one over most windows counts, if it is of the finished run.
        for num_windows, step, values in ((8, 100, (0.9, 0.9)), (900, 50, (0.9, 0.9)), (300, 100, measured)):
            kinds = {}
            for kind, excess in zip((SENTENCES, LINES), values, strict=True):
                head = {
                    "excess": (0.4 if excess is None else excess) + 0.02,
                    "shifted_excess": 0.02,
                    "p_corrected": 1.0 if excess is None else 0.01,
                }
                kinds[kind] = {"heads": [head] * 16}
            path = run.folder.figures / "position_alone" / str(num_windows) / "scores.json"
            path.parent.mkdir(parents=True)
            path.write_text(
                json.dumps({"num_windows": num_windows, "num_shifts": 9, "step": step, "level": 0.05, "kinds": kinds})
            )
    assert judge(CLAIMS[15], Findings([plan])).outcome == expected


def test_without_any_run_nothing_is_said_of_any_claim(tmp_path: Path) -> None:
    findings = Findings(plan_in(tmp_path, name) for name in TABLES)
    verdicts = [judge(claim, findings) for claim in CLAIMS.values()]
    assert [verdict.number for verdict in verdicts] == list(range(1, 18))
    assert {verdict.outcome for verdict in verdicts} == {Outcome.MISSING}


def test_every_cell_that_a_claim_names_is_in_a_table() -> None:
    rows = {(run.section, run.row) for name in TABLES for run in composed(name).runs}
    for claim in CLAIMS.values():
        for relation in claim["relations"]:
            assert {(relation["section"], row) for row in rows_of(relation)} <= rows, claim["number"]
