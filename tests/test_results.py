"""What a run leaves behind: its files, the statistics and tables made of them, pictures, and the mirror at W&B."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from omegaconf import DictConfig
from runs import completed, contents, release, run

from cope.errors import UserError
from cope.files import write_atomically, write_json
from cope.metrics import METRICS, percent
from cope.report.collect import describe_differences, read_results
from cope.report.figures import draw_run
from cope.report.run_sheets import comparison_sheets, run_sheet, sweep_sheets
from cope.report.sheets import Sheet, as_text, show
from cope.report.statistics import mean_and_spread, spread, wilson_interval
from cope.run.experiment import Experiment
from cope.run.folder import RunFolder
from cope.run.summary import run_line

Compose = Callable[..., DictConfig]

# ---- statistics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errors", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # all but the last: table I of Newcombe 1998, Statistics in Medicine 17, 857-872
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval(errors: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(errors, count) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_mean_and_spread() -> None:
    assert mean_and_spread([0.25]) == (0.25, None)
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert mean_and_spread([0.3, 0.1 + 0.2]) == (pytest.approx(0.3), 0.0), "they differ by rounding only"
    assert spread([0.25], METRICS["error"]) == "25.0"
    assert spread([0.01, 0.03], METRICS["error"]) == "2.0 (1.4)"
    assert spread([], METRICS["error"]) == "missing"


@pytest.mark.parametrize(
    ("fraction", "text"), [(0, "0.0"), (1, "100.0"), (0.01234, "1.2"), (1e-4, "0.01"), (5e-5, "0.005"), (2e-7, "0.00002")]
)
def test_a_small_percentage_does_not_look_like_none(fraction: float, text: str) -> None:
    assert percent(fraction) == text


# ---- tables --------------------------------------------------------------------------------------------------------------


def result_of(
    encoding: str, seed: int, errors: dict[str, int], config: dict[str, Any] | None = None, task: str = "counting"
) -> dict[str, Any]:
    def scored(wrong: int) -> dict[str, Any]:
        return {"error": wrong / 1000, "token_error": wrong / 4000, "count": 1000, "errors": wrong, "token_count": 4000,
                "token_errors": wrong, "num_cut": 3 if wrong == 20 else 0}  # fmt: skip

    return {
        "task": task, "encoding": encoding, "seed": seed, "scale": "smoke", "headline": "error", "num_parameters": 12345,
        "num_tokens": 678, "time_s": 9.1, "splits": {split: scored(wrong) for split, wrong in errors.items()},
        "config": {"pe": {"name": encoding}, **(config or {})}, "hardware": {"processor": "A", "threads": 1},
        "versions": {"torch": "2"}, "commit": "0123", "code": "4567", "date": "2026-01-02",
    }  # fmt: skip


def test_table_of_a_run(tmp_path: Path) -> None:
    sheet = run_sheet(result_of("cope", 1, {"test": 20, "ood_longer": 0}), RunFolder(tmp_path), [tmp_path / "picture.png"])
    text = drawn(sheet)
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "seed 1" in rows["cope"] and "12,345 parameters" in rows["cope"]
    for part in ("2.0", "1.3 to 3.1", "20 of 1,000", "0.5"):
        assert part in rows["test"]
    assert "0.0 to 0.4" in rows["ood_longer"]
    assert rows["sequences"].endswith("3 of test")
    assert str(tmp_path) in rows["run"]
    assert str(tmp_path / "picture.png") in rows["picture:"]


def test_a_run_in_one_line() -> None:
    result = result_of("cope", 101, {"validation": 1, "test": 20, "ood_longer": 100, "ood_more_operations": 625})
    line = run_line(result)
    assert line == "counting cope seed=101: sequence error 2.0%, OOD 62.5%; 9 s"
    improving = run_line(result | {"steps": 2500, "stopped": "steps", "still_improving": True})
    assert improving == f"{line}, still improving" and len(improving) <= 80
    assert run_line(result_of("cope", 1, {"test": 20})) == "counting cope seed=1: sequence error 2.0%; 9 s"


def test_table_of_a_sweep() -> None:
    sheets = sweep_sheets(
        [
            result_of("rope", 1, {"test": 100, "ood_longer": 300}),
            result_of("rope", 2, {"test": 300, "ood_longer": 500}),
            result_of("cope", 1, {"test": 1}, {"model": {"dim": 16}}),
            result_of("cope", 1, {"test": 2}, {"model": {"dim": 32}}),
            result_of("cope", 1, {"test": 5}, task="flip_flop"),
        ]
    )
    first, second = sheets
    assert first.title.startswith("counting: sequence error %") and second.title.startswith("flip_flop: ")
    (last,) = second.notes
    assert last.startswith("Scale smoke; seeds 1, 2; A, 1 thread a run; ") and "; code 4567; " in last
    assert first.columns == ("encoding", "seeds", "in distribution", "OOD longer")
    assert first.rows == (
        ("rope", "2", "20.0 (14.1)", "40.0 (14.1)"),
        ("cope model.dim=16", "1", "0.1", "missing"),
        ("cope model.dim=32", "1", "0.2", "missing"),
    )


def test_runs_of_other_tasks_and_scales_have_tables_of_their_own() -> None:
    results = [result_of("rope", 1, {"test": 3}), result_of("cope", 1, {"test": 2})]
    results.append(result_of("cope", 2, {"test": 1}, task="flip_flop"))
    counting, flip_flop = comparison_sheets(results)
    assert counting.title == "counting, scale smoke: sequence error %" and flip_flop.title.startswith("flip_flop")
    assert [row[:3] for row in counting.rows] == [("cope", "1", "0.2"), ("rope", "1", "0.3")]


def drawn(sheet: Sheet, width: int = 0) -> str:
    """As a terminal of this width has it, without its colours; 0: as a file has it."""
    stream = io.StringIO()
    if not width:
        show([sheet], stream=stream)
    else:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("COLUMNS", str(width))
            patched.setattr(stream, "isatty", lambda: True, raising=False)
            show([sheet], stream=stream)
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())


SHEET = Sheet(
    "Errors_of all", ("encoding", "OOD more operations", "folder"),
    (("rope", "1.5 (0.2)", "outputs/counting/rope/01234567/seed=1"), ("cope", "0.0 (0.0)", "outputs/x & y")),
    notes=("seeds 1, 2",), words=frozenset({"folder"}),
)  # fmt: skip


@pytest.mark.parametrize("width", [0, 120, 60, 40, 12])
def test_no_cell_is_cut_at_any_width(width: int) -> None:
    text = drawn(SHEET, width)
    assert all(cell in text for row in SHEET.rows for cell in row) and "operations" in text
    assert "\x1b" not in drawn(SHEET)
    if width >= 60:
        assert all(len(line.rstrip()) <= width for line in text.splitlines())
    heading = next((line for line in text.splitlines() if "encoding" in line), "")
    assert ("folder" in heading) == (width in (0, 120, 60))  # below the figures where there is no room beside them


def test_the_forms_that_are_pasted() -> None:
    assert as_text([SHEET], "csv").splitlines()[1] == "rope,1.5 (0.2),outputs/counting/rope/01234567/seed=1"
    assert as_text([SHEET], "markdown").splitlines()[2:4] == [
        "| encoding | OOD more operations | folder |", "| --- | ---: | --- |"
    ]  # fmt: skip
    assert json.loads(as_text([SHEET], "json"))[0]["rows"][1]["OOD more operations"] == "0.0 (0.0)"


LATEX = r"""
% \usepackage{booktabs}
\begin{table}
\centering\small\setlength{\tabcolsep}{4pt}
\caption{Errors\_of all, \%}
\begin{tabular}{lrl}
\toprule
encoding & \shortstack[r]{OOD\\more\\operations} & folder of the run \\
\midrule
CoPE & 0.0 (0.0) & x \& y\textless{}1 \\
\quad CoPE, paper & 1.2 &  \\
\bottomrule
\end{tabular}
\end{table}
% seeds 1, 2
"""


def test_latex_is_ready_to_be_pasted(tmp_path: Path) -> None:
    """With an indent, headings above one another, and without what is aside; where there is a LaTeX, it takes it."""
    columns = ("encoding", "OOD more operations", "seconds", "folder of the run")
    rows = (("CoPE", "0.0 (0.0)", "7", "x & y<1"), ("  CoPE, paper", "1.2", "", ""))
    marks = {"words": frozenset({"folder of the run"}), "aside": frozenset({"seconds"})}
    latex = as_text([Sheet("Errors_of all, %", columns, rows, notes=("seeds 1, 2",), **marks)], "latex")
    assert latex == LATEX.strip()
    if (compiler := shutil.which("pdflatex")) is None:
        pytest.skip("no pdflatex here")
    page = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + latex + "\n\\end{document}\n"
    (tmp_path / "page.tex").write_text(page)
    done = subprocess.run([compiler, "-halt-on-error", "-interaction=nonstopmode", "page"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0 and b"Overfull" not in done.stdout, done.stdout


def test_differences_are_those_among_runs_of_one_encoding() -> None:
    configs = [
        {"pe": {"name": "cope", "num_positions": 8}, "model": {"dim": 16, "num_layers": 2}},
        {"pe": {"name": "cope", "num_positions": 16}, "model": {"dim": 16, "num_layers": 2}},
        {"pe": {"name": "rope", "base": 10.0}, "model": {"dim": 32, "num_layers": 2}},
    ]
    assert describe_differences(configs) == ["pe.num_positions=8", "pe.num_positions=16", ""]


# ---- files ---------------------------------------------------------------------------------------------------------------


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, lambda file: file.write(b"old") and None)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def interrupted(file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot be written: No space left.*output_dir"):
        patch.setattr(os, "fsync", full)
        write_atomically(path, lambda file: file.write(b"new") and None)
    assert contents(tmp_path) == {"new/file": b"old"}


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    ordinary, ours = tmp_path / "ordinary", tmp_path / "ours"
    ordinary.touch()
    write_json(ours, {})
    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_takes_no_nan(tmp_path: Path, value: float) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": value})
    assert json.loads(path.read_text()) == {"loss": 1.5}


def test_metrics_are_cut_to_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.truncate_metrics(0)
    assert folder.metrics.read_text() == ""
    for step in (5, 10, 10, 15):
        folder.append_metrics({"step": step, "train/loss": 0.1 + step})
    with folder.metrics.open("a") as file:
        file.write('{"step": 20, "train/lo')
    assert [line["step"] for line in folder.read_metrics()] == [5, 10, 10, 15]
    folder.truncate_metrics(10)
    folder.append_metrics({"step": 11})
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 10, 11]
    assert lines[0]["train/loss"] == 5.1


def test_results_are_found_below_the_output_folder(tmp_path: Path) -> None:
    for name, seed in (("rope", 2), ("cope", 1)):
        write_json(RunFolder.of(str(tmp_path), "counting", name, "0a1b", seed).result, json.loads(completed({"seed": seed})))
    RunFolder.of(str(tmp_path), "counting", "none", "0a1b", 1).path.mkdir(parents=True)  # unfinished
    assert [found["seed"] for found in read_results(tmp_path)] == [1, 2]


# ---- pictures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cope", "rope"])
def test_pictures_of_a_run(compose: Compose, encoding: str) -> None:
    folder, _ = run(
        compose(f"pe={encoding}", "model.num_layers=1", "trainer.steps=4", "trainer.eval_every=2", "trainer.log_every=1")
    )
    pictures = draw_run(folder)
    expected = {"figures/learning_curves", "figures/gates"} if encoding == "cope" else {"figures/learning_curves"}
    assert set(pictures) == expected
    for path in pictures.values():
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 200
        colours = (pixels * 255).astype(np.int64) @ 256 ** np.arange(pixels.shape[-1])
        assert len(np.unique(colours)) > 20  # lines and letters, not a blank sheet
    if encoding == "cope":
        with np.load(folder.figures / "gates.npz") as arrays:
            assert arrays["gates"].shape == arrays["positions"].shape == (1, 2, int(arrays["query"]) + 1)
            assert arrays["words"][int(arrays["query"]) - 1] == "print"
            assert ((arrays["gates"] >= 0) & (arrays["gates"] <= 1)).all()


def test_an_empty_folder_can_be_drawn(tmp_path: Path) -> None:
    assert draw_run(RunFolder(tmp_path))["figures/learning_curves"].stat().st_size > 0


# ---- W&B -----------------------------------------------------------------------------------------------------------------


def test_wandb_offline_keeps_the_environment_to_itself(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    secrets = {"SOME_PASSWORD": "swordfish-4711", "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567"}
    for variable, value in secrets.items():
        monkeypatch.setenv(variable, value)
    for variable in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "wandb"))
    # A name that cannot be in the file by chance, where W&B looks for the machine's.
    monkeypatch.setattr(socket, "gethostname", lambda: "a-telling-name")
    steps = ("trainer.steps=4", "trainer.eval_every=2", "trainer.log_every=1")
    experiment = Experiment(compose("logger=wandb", "logger.mode=offline", *steps))
    result = experiment.run(show_progress=False)
    experiment.logger.images(draw_run(experiment.folder))
    experiment.logger.finish(result["splits"])
    release(experiment.folder)
    wandb.teardown()  # ends the process that writes the files
    files = contents(experiment.folder.path / "wandb")
    (stored,) = (content for name, content in files.items() if name.endswith(".wandb"))
    assert (
        b"train/loss" in stored and b"best/test/error" in stored and result["code"].encode() in stored
    )  # in plain text, so that what is not found is not there
    assert sum(name.endswith(".png") for name in files) == 2
    for content in files.values():
        for value in (*secrets.values(), "a-telling-name"):
            assert value.encode() not in content
