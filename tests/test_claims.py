"""Verdicts on the paper's claims: each can come out each way, and only from result files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CONFIGS
from plans import TABLES, composed, plan_in
from runs import completed

from cope.errors import UserError
from cope.report.agenda import Agenda
from cope.report.claims import ClaimsPlan, Verdict, judge, judge_all
from cope.report.comparisons import KINDS, Outcome, rows_of
from cope.report.findings import Findings
from cope.report.verdicts import claim_in_full, claim_lines
from cope.sweep.plan import Plan, tables_with

PLAN = ClaimsPlan.read(CONFIGS)
CLAIMS_PLAN = replace(PLAN, seen=frozenset())  # in which all sections have the same seeds
CLAIMS = {claim["number"]: claim for claim in CLAIMS_PLAN.claims}
SEEDS = CLAIMS_PLAN.seeds


def plan_with(folder: Path, table: str, cells: dict[tuple[str, str], dict[str, list[float]]]) -> Plan:
    """A table whose runs found ``cells``: {(section, row): {split: a value for each seed}}, as they are shown."""
    plan = plan_in(folder, table, len(SEEDS))
    for run in plan.runs:
        values = cells.get((run.section, run.row))
        place = SEEDS.index(run.seed)
        if values is None or any(len(found) <= place for found in values.values()):
            continue
        perplexities = table in ("table5", "table8", "figure3")
        headline, factor = ("perplexity", 1) if perplexities else ("token_error" if "flip" in run.section else "error", 100)
        run.folder.path.mkdir(parents=True, exist_ok=True)
        splits = {split: {headline: found[place] / factor} for split, found in values.items()}
        metrics = [
            {"step": step, f"eval/validation/{headline}": splits["validation"][headline] * scale}
            for step, scale in ((25, 1), (50, 0.1), (100, 0)) if "validation" in splits
        ]  # fmt: skip
        run.folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in metrics))
        result = {"headline": headline, "seed": run.seed, "steps": 100, "best_step": 100, "scale": "smoke", "splits": splits}
        run.folder.result.write_text(completed(result))
    return plan


def verdict(folder: Path, number: int, table: str, cells: dict[tuple[str, str], dict[str, list[float]]]) -> Verdict:
    return judge(CLAIMS[number], CLAIMS_PLAN, Findings([plan_with(folder, table, cells)]))


def outcome(folder: Path, number: int, table: str, cells: dict[tuple[str, str], dict[str, list[float]]]) -> Outcome:
    return verdict(folder, number, table, cells).outcome


def flip_flop(split: str, **rows: list[float]) -> dict[tuple[str, str], dict[str, list[float]]]:
    return {("flip_flop", row): {split: values} for row, values in rows.items()}


def around(value: float, seeds: int = 9) -> list[float]:
    """As many seeds as it takes if all of them say the same, or others."""
    return [value * (1 + 0.04 * (seed % 3)) for seed in range(seeds)]


LOW, MIDDLE, HIGH, WILD = around(1.0, 10), around(5.0, 10), around(20.0, 10), [0.1, 30.0] * 5


@pytest.mark.parametrize(
    ("cope", "rope", "absolute", "expected"),
    [
        (LOW[:9], MIDDLE[:9], HIGH[:9], "reproduced"),
        (LOW[:8], MIDDLE[:8], HIGH[:8], "not decided"),  # one seed too few
        (MIDDLE, LOW, HIGH, "contradicted"),
        (LOW, HIGH, MIDDLE, "contradicted"),
        (WILD, MIDDLE, HIGH, "not decided"),
        (LOW, [value + 0.3 for value in LOW], LOW, "contradicted"),  # as claimed, and RoPE above absolute
        (LOW, [value + 0.01 for value in LOW], HIGH, "no difference"),
        (
            [*LOW[:9], 30.0],
            MIDDLE,
            HIGH,
            "reproduced",
        ),  # it was with nine seeds: what follows does not take it back
        (LOW[:1], MIDDLE[:1], HIGH[:1], "not decided"),
        ([], MIDDLE, HIGH, "not run"),
    ],
)
def test_an_order_over_seeds(tmp_path, cope, rope, absolute, expected):
    assert outcome(tmp_path, 1, "table2", flip_flop("test", cope=cope, rope=rope, absolute=absolute)) == expected


@pytest.mark.parametrize(
    ("cope", "rope", "expected"),
    [
        (LOW, MIDDLE, "reproduced"),
        (MIDDLE, [v * 1.5 for v in MIDDLE], "contradicted"),  # below, but not by half
        (LOW, [2 * v for v in LOW], "no difference"),
        (LOW, [2 * v + seed % 3 - 1 for seed, v in enumerate(LOW)], "not decided"),
        (LOW, [], "not run"),
    ],
)
def test_far_below_is_more_than_below(tmp_path, cope, rope, expected):
    assert outcome(tmp_path, 2, "table2", flip_flop("ood_sparse", cope=cope, rope=rope, absolute=HIGH)) == expected


def selective_copy(**rows: list[float]) -> dict[tuple[str, str], dict[str, list[float]]]:
    return {("selective_copy", row): {"test": values} for row, values in rows.items()}


SOLVED = [0.0, 0.1, 0.0] * 4


@pytest.mark.parametrize(
    ("cope", "rope", "expected"),
    [
        (SOLVED, MIDDLE, "reproduced"),
        (SOLVED, [0.5, 0.5, 0.4] * 4, "contradicted"),  # RoPE solves it too
        ([*MIDDLE, *MIDDLE], MIDDLE, "contradicted"),
        ([0.0, 0.0, 3.0] * 4, MIDDLE, "not decided"),
        (SOLVED, WILD, "not decided"),
        ([0.0], MIDDLE, "not decided"),
        ([], MIDDLE, "not run"),
        (SOLVED, [], "not run"),
        ([*MIDDLE, *MIDDLE], [], "contradicted"),  # whatever RoPE will do
    ],
)
def test_only_one_solves_it(tmp_path, cope, rope, expected):
    assert outcome(tmp_path, 3, "table2", selective_copy(cope=cope, rope=rope, absolute=HIGH)) == expected


def contexts(rates: dict[str, float], seeds: int = 24) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Perplexities that change by so much from one context to the next, not with every seed by the same."""
    splits = ("test", "longer_1_5", "longer_2", "longer_2_5")
    return {
        (section, row): {
            split: [20.0 + seed / 10 + step * rate * (1 + seed % 3 / 10) for seed in range(seeds)]
            for step, split in enumerate(splits)
        }
        for section in ("trained at the full context", "trained at half of it")
        for row, rate in rates.items()
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rates", "seeds", "expected"),
    [
        ({"cope": -0.5, "relative_capped": -0.1, "relative": 0.5}, 9, "reproduced"),
        ({"cope": 0.2, "relative_capped": -0.1, "relative": 0.5}, 24, "contradicted"),
        ({"cope": -0.5, "relative_capped": -0.1, "relative": -0.2}, 24, "contradicted"),
        ({"cope": 0.01, "relative_capped": 0.2, "relative": 0.5}, 10, "no difference"),  # CoPE stays where it is
        ({"cope": -0.5, "relative_capped": -0.1, "relative": 0.5}, 1, "not decided"),
        ({"cope": -0.5, "relative_capped": -0.1}, 9, "not run"),
    ],
)
def test_what_longer_contexts_do(tmp_path, rates, seeds, expected):
    assert outcome(tmp_path, 13, "figure3", contexts(rates, seeds)) == expected


@pytest.mark.parametrize(
    ("cope", "expected"),
    [(LOW, "reproduced"), (HIGH, "contradicted"), (WILD, "not decided"), (LOW[:1], "not decided"), ([], "not run")],
)
def test_speed_is_read_from_the_validations_during_training(tmp_path, cope, expected):
    cells = flip_flop("validation", cope=cope, rope=MIDDLE, absolute=[*HIGH[:9], *HIGH[:1]])
    assert outcome(tmp_path, 17, "table2", cells) == expected


def test_a_verdict_is_told_in_plain_words(tmp_path: Path) -> None:
    cells = flip_flop("test", cope=LOW, rope=MIDDLE, absolute=HIGH)
    cells["flip_flop", "absolute"]["validation"] = [20.0, 1.0] * 5
    plan = plan_with(tmp_path, "table2", cells)
    for run in plan.runs:
        if run.row == "rope" and (result := run.result()):
            run.folder.result.write_text(json.dumps(result | {"still_improving": run.seed == SEEDS[0]}))
    found = judge(CLAIMS[1], CLAIMS_PLAN, Findings([plan]))
    first, second = (part.text for part in found.comparisons)
    assert first.startswith(
        "Flip-flop, in distribution: CoPE below RoPE with 10 of 10 seeds; by 4.16 points in the median (4 to "
    )
    assert "CoPE 1.0%, RoPE 5.2%" in first and "E, which decides at 60: as claimed 186, opposite 0.0909" in first
    assert "points in the median" in second
    assert found.notes == (
        "Learned the training data: Absolute with 5 of 10 seeds.",
        "May still improve, steps used up before patience: RoPE with 1 of 10 seeds.",
    )
    assert (found.label, found.finding, found.scales) == ("reproduced", "both parts with 10 of 10 seeds", ("smoke",))


def test_seeds_that_are_lost_are_told_beside_those_that_count(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, "table2", flip_flop("test", cope=LOW[:9], rope=MIDDLE, absolute=HIGH))
    for run in plan.runs:
        if (run.section, run.row) == ("flip_flop", "cope") and run.result() is None:
            run.folder.path.mkdir(parents=True, exist_ok=True)
            (run.folder.path / "failed.txt").write_text("The loss became nan")
    found = judge(CLAIMS[1], CLAIMS_PLAN, Findings([plan]))
    first, second = found.comparisons
    assert found.finding == "both parts with 9 of 9 seeds (15 seeds failed)"
    assert first.finding == "CoPE below RoPE with 9 of 9 seeds (15 seeds failed)"
    assert found.notes[-1].startswith("Ended with an error, and is not compared: CoPE with seed 110, 111")
    assert second.finding == "RoPE below Absolute with 10 of 10 seeds"
    seen = replace(CLAIMS_PLAN, seen=frozenset({("flip_flop", "cope", seed) for seed in SEEDS[10:]}))
    assert judge(CLAIMS[1], seen, Findings([plan])).comparisons[0].lost == {SEEDS[9]}
    all_seen = replace(seen, seen=frozenset({("flip_flop", "rope", seed) for seed in SEEDS}))
    found = judge(CLAIMS[1], all_seen, Findings([plan])).comparisons[0].finding
    assert found == "CoPE below RoPE: no seed yet (9 seeds tuning had seen)"


@pytest.mark.parametrize(
    ("cope", "label", "finding"),
    [
        (LOW, "reproduced", "CoPE below Relative with 10 of 10 seeds"),
        (HIGH, "contradicted", "Relative below CoPE with 10 of 10 seeds"),
        (
            [v + 0.01 for v in MIDDLE],
            "no difference over 0.5 points",
            "CoPE and Relative within 0.5 points with 10 of 10 seeds",
        ),
        (WILD, "not decided after 10 seeds", "CoPE below Relative with 5 of 10 seeds"),
        (LOW[:1], "not decided after 1 seed", "CoPE below Relative with 1 of 1 seed"),
        ([], "not run", "CoPE below Relative: no seed yet"),
    ],
)
def test_each_verdict_in_a_line_and_in_full(tmp_path, cope, label, finding):
    cells = {("counting", "cope"): {"ood_longer": cope}, ("counting", "relative"): {"ood_longer": MIDDLE}}
    found = verdict(tmp_path, 9, "table4", cells)
    assert (found.label, found.finding) == (label, finding)
    assert (
        len(found.line(100)) <= 100 and found.line(100).startswith(f" 9 {found.outcome}") and found.line(100).endswith(finding)
    )
    folded = found.line(80).splitlines()
    assert max(map(len, folded)) <= 80 and " ".join("\n".join(folded).split()).endswith(finding)  # and nothing is cut
    whole = claim_in_full([found], CLAIMS_PLAN, 9, 80)
    assert max(map(len, whole.splitlines())) <= 80 and whole.startswith(f"9. {found.claim}")
    assert f"(Table 4): {label}" in " ".join(whole.split()) and finding in " ".join(whole.split())


def test_what_holds_together_with_all_claims_is_told(tmp_path: Path) -> None:
    findings = Findings(
        [plan_with(tmp_path, "table2", flip_flop("test", cope=around(1, 13), rope=around(5, 13), absolute=around(20, 13)))]
    )
    verdicts = judge_all(CLAIMS_PLAN, findings)
    assert verdicts[0].stands_by == ("e-BH", "Bonferroni")  # 1170 is more than 51 / 0.05
    assert "With all claims together 1 of 1 would stand by e-BH, 1 by Bonferroni." in claim_lines(verdicts, CLAIMS_PLAN)
    nine = flip_flop("test", cope=around(1), rope=around(5), absolute=around(20))
    alone = judge_all(CLAIMS_PLAN, Findings([plan_with(tmp_path / "nine", "table2", nine)]))[0]
    assert (alone.outcome, alone.stands_by) == ("reproduced", ())
    assert "With all claims together it does not hold, not by e-BH or Bonferroni." in claim_in_full([alone], CLAIMS_PLAN, 1)


def test_no_verdict_comes_from_other_seeds_than_the_plans(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, "table2", flip_flop("test", cope=LOW, rope=MIDDLE, absolute=HIGH))
    tuned = [replace(run, seed=run.seed - SEEDS[0] + 901) for run in plan.runs]
    findings = Findings([replace(plan, runs=tuple(tuned))])
    with pytest.raises(UserError, match=r"seed 901 is none of the plan's \(101 to 124\): no verdict comes from it"):
        judge(CLAIMS[1], CLAIMS_PLAN, findings)


def test_every_kind_of_relation_is_in_these_tests() -> None:
    tested = (1, 2, 3, 13, 17, 15)
    assert {kind for number in tested for relation in CLAIMS[number]["relations"] for kind in KINDS if kind in relation} == set(
        KINDS
    )


SENTENCES, LINES = CLAIMS[15]["relations"][0]["kinds"]


@pytest.mark.parametrize(
    ("excesses", "expected"),
    [
        ([(0.3, 0.0), (0.25, 0.0), (0.0, 0.28)] * 3, "reproduced"),  # one kind is enough
        ([(0.01, 0.01), (0.02, 0.0), (0.0, 0.0)] * 3, "contradicted"),  # significant, but next to nothing
        ([(None, None), (None, None), (None, 0.01)] * 3, "contradicted"),  # not significant
        ([(0.3, 0.3)], "not decided"),
        ([(0.3, 0.0), (0.0, 0.0), (0.1, 0.0)] * 3, "not decided"),
    ],
)
def test_attention_by_position_alone_is_read_from_its_files(tmp_path, excesses, expected):
    plan = plan_with(tmp_path, "figure4", {("position alone", "sep-keys"): {"test": [1.0] * 9}})
    assert judge(CLAIMS[15], CLAIMS_PLAN, Findings([plan])).outcome == "not run"
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
    assert judge(CLAIMS[15], CLAIMS_PLAN, Findings([plan])).outcome == expected


def test_what_had_been_seen_when_a_recipe_was_tuned_anew_is_neither_run_nor_judged(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, "table2", selective_copy(cope=SOLVED, rope=MIDDLE, absolute=HIGH))
    assert {seed for section, row, seed in PLAN.seen if (section, row) == ("selective_copy", "cope")} == {101, 102}
    found = judge(CLAIMS[3], PLAN, Findings([plan]))
    solved, *others = found.comparisons
    assert (solved.rows, min(solved.evidence.differences)) == (("cope",), 103)
    assert all(min(part.evidence.differences) == 101 for part in others)
    for path in tmp_path.rglob("result.json"):
        path.unlink()
    nothing_yet = judge(CLAIMS[3], PLAN, Findings([plan]))
    first, _, third = Agenda(PLAN, plan.runs).waiting(nothing_yet)[:3]
    assert {(run.row, run.seed) for run in first} == {("rope", 101), ("absolute", 101)}
    assert {(run.row, run.seed) for run in third} == {(row, 103) for row in ("cope", "rope", "absolute")}


def test_without_any_run_nothing_is_said_of_any_claim(tmp_path: Path) -> None:
    findings = Findings(plan_in(tmp_path, name) for name in TABLES)
    verdicts = judge_all(CLAIMS_PLAN, findings)
    assert [verdict.number for verdict in verdicts] == list(range(1, 18))
    assert {verdict.outcome for verdict in verdicts} == {Outcome.MISSING}


def test_every_cell_that_a_claim_names_is_in_a_table() -> None:
    tables = tables_with(CONFIGS, CLAIMS_PLAN.sections)
    rows = {(run.section, run.row) for name in tables for run in composed(name).runs}
    for claim in CLAIMS.values():
        for relation in claim["relations"]:
            assert {(relation["section"], row) for row in rows_of(relation)} <= rows, claim["number"]
    assert "table7" not in tables  # no claim is about it
