"""What is run next for a claim, until it is decided: no more than it needs, and the cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from conftest import CONFIGS
from plans import plan_in
from runs import completed

from cope.report.agenda import Agenda, progress_line
from cope.report.claims import ClaimsPlan, Verdict, judge
from cope.report.findings import Findings
from cope.sweep.plan import PlannedRun

CLAIMS_PLAN = replace(ClaimsPlan.read(CONFIGS), seen=frozenset())  # in which all sections have the same seeds
CLAIMS = {claim["number"]: claim for claim in CLAIMS_PLAN.claims}
SEEDS = CLAIMS_PLAN.seeds


def decided(
    folder: Path, outcomes: Callable[[PlannedRun], float], claims: Sequence[int], at_least: int = 1
) -> tuple[list[list[PlannedRun]], list[Verdict]]:
    """What ``scripts/decide.py`` runs, batch by batch, if runs end with these errors, and the verdicts then."""
    plan = plan_in(folder, "table2", len(SEEDS))
    batches: list[list[PlannedRun]] = []
    tried: set[Path] = set()
    while True:
        findings = Findings([plan])
        verdicts = [judge(CLAIMS[number], CLAIMS_PLAN, findings) for number in claims]
        agenda = Agenda(CLAIMS_PLAN, plan.runs, tried)
        assert all(len(progress_line(found, agenda)) <= 100 for found in verdicts)
        batch = agenda.next_runs(verdicts, at_least, lambda run: 2.0 if run.section == "selective_copy" else 1.0)
        if not batch:
            return batches, verdicts
        batches.append(batch)
        for run in batch:
            error = outcomes(run)
            if error < 0:
                tried.add(run.folder.path)
                continue
            run.folder.path.mkdir(parents=True)
            headline = "token_error" if run.section == "flip_flop" else "error"
            splits = {split: {headline: error / 100} for split in ("validation", "test", "ood_sparse", "ood_dense")}
            run.folder.result.write_text(completed({"headline": headline, "seed": run.seed, "splits": splits}))


ERRORS = {"cope": 1.0, "rope": 5.0, "absolute": 20.0}


def test_a_claim_takes_as_many_seeds_as_decide_it_one_after_another(tmp_path: Path) -> None:
    batches, (found,) = decided(tmp_path, lambda run: ERRORS[run.row], [1])
    assert found.outcome == "reproduced"
    assert [[(run.row, run.seed) for run in batch] for batch in batches] == [
        [(row, seed) for row in ERRORS] for seed in SEEDS[:9]
    ]


def test_a_part_that_is_settled_needs_no_more_runs(tmp_path: Path) -> None:
    batches, (found,) = decided(tmp_path, lambda run: {"cope": 9.0}.get(run.row, ERRORS[run.row]), [1])
    assert found.outcome == "contradicted"  # the mean of the parts' E, of which one is next to 0, is enough after ten
    assert [len(batch) for batch in batches] == [3] * 9 + [2]


def test_a_claim_that_no_seed_can_decide_any_more_is_left_alone(tmp_path: Path) -> None:
    batches, (found,) = decided(tmp_path, lambda run: 5 + (-1.0) ** run.seed if run.row == "cope" else ERRORS[run.row], [1])
    assert found.outcome == "not decided"
    assert len(batches) == 10  # five to five: 14 more of a kind would be 19 of 24, and E 32


def test_a_part_that_is_close_is_run_until_the_claim_is_of_no_difference(tmp_path: Path) -> None:
    batches, (found,) = decided(tmp_path, lambda run: 5.0 if run.row == "cope" else ERRORS[run.row], [1])
    assert found.outcome == "no difference"
    assert [len(batch) for batch in batches] == [3] * 9 + [
        2,
        1,
    ]  # each of two parts may be so in two ways, which takes a seed more


def test_runs_that_fail_are_not_tried_again_and_others_take_their_place(tmp_path: Path) -> None:
    fails = lambda run: -1.0 if (run.row, run.seed) == ("rope", SEEDS[2]) else ERRORS[run.row]  # noqa: E731
    batches, (found,) = decided(tmp_path, fails, [1])
    assert found.outcome == "reproduced" and len(batches) == 10
    assert max(run.seed for batch in batches for run in batch) == SEEDS[9]


def test_the_claim_that_is_cheapest_to_decide_comes_first_and_cores_are_kept_busy(tmp_path: Path) -> None:
    batches, verdicts = decided(tmp_path / "one", lambda run: ERRORS[run.row] - (run.row == "cope"), [3, 1])
    assert [found.outcome for found in verdicts] == ["reproduced"] * 2
    assert [batch[0].section for batch in batches] == ["flip_flop"] * 9 + ["selective_copy"] * 9
    wide, _ = decided(tmp_path / "wide", lambda run: ERRORS[run.row] - (run.row == "cope"), [3, 1], at_least=14)
    assert [len(batch) for batch in wide] == [15, 15, 15, 9] and {run.seed for batch in wide for run in batch} == {*SEEDS[:9]}
    two, _ = decided(tmp_path / "two", lambda run: ERRORS[run.row], [1, 2])  # one claim's runs are another's
    assert [len(batch) for batch in two] == [3] * 9
