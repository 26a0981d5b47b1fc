"""The report: complete, self-contained, in place of the old one only when it could be made; and it works in a browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from plans import plan_in

from cope.errors import UserError
from cope.report import page as page_module
from cope.report.page import Report, collect, write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of a flip-flop table in which CoPE is best, with runs of two seeds, and another table without any run."""
    folder = tmp_path_factory.mktemp("outputs")
    plans = [plan_in(folder, name, 2) for name in ("table2", "table8")]
    errors = {"cope": 0.001, "rope": 0.05, "absolute": 0.2}
    for run in plans[0].runs:
        if run.section == "flip_flop" and run.row in errors:
            error = errors[run.row] + run.seed / 1e5
            splits = {split: {"token_error": error} for split in ("validation", "test", "ood_sparse")}
            run.folder.path.mkdir(parents=True)
            lines = [{"step": step, "eval/validation/token_error": error} for step in (10, 20)]
            run.folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
            result = {
                "task": "flip_flop", "encoding": run.row, "seed": run.seed, "scale": "smoke", "headline": "token_error",
                "steps": 20, "splits": splits, "time_s": 7.0, "commit": "0123456789ab", "date": "2026-01-02",
                "num_parameters": 100, "hardware": {"processor": "<a> & b", "threads": 1}, "versions": {"torch": "2"},
                "config": {"note": "</script>"},
            }  # fmt: skip
            run.folder.result.write_text(json.dumps(result))
    return collect(plans)


@pytest.fixture
def page(report: Report, tmp_path: Path) -> Path:
    return write_report(report, tmp_path / "report", "make report")


def test_every_file_is_there_and_says_what_is_missing(page: Path) -> None:
    folder = page.parent
    assert {path.name for path in (folder / "tables").iterdir()} == {
        f"{name}.{suffix}" for name in ("table2", "table8") for suffix in ("csv", "md", "tex")
    }
    assert (folder / "figures" / "figure5.svg").exists() and not (folder / "figures" / "figure3.svg").exists()
    with (folder / "tables" / "table2.csv").open() as file:
        rows = {(row["section"], row["row"], row["split"]): row for row in csv.DictReader(file)}
    cope = rows["flip_flop", "cope", "test"]
    assert float(cope["mean"]) == pytest.approx(0.1015) and cope["seeds"] == "2" and cope["paper"] == "0.03"
    assert rows["selective_copy", "cope", "test"]["mean"] == "" and rows["selective_copy", "cope", "test"]["seeds"] == "0"
    latex = (folder / "tables" / "table8.tex").read_text()
    assert "missing" in latex and not re.search(r"(?<!\\)[_%]", latex)
    assert "perplexity" in (folder / "tables" / "table8.csv").read_text()  # of the paper's figures, though nothing was run
    verdicts = {verdict["number"]: verdict["outcome"] for verdict in json.loads((folder / "verdicts.json").read_text())}
    assert verdicts[1] == "reproduced" and verdicts[3] == "not run" and len(verdicts) == 17


def test_the_page_asks_no_other_host_and_escapes_what_it_shows(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(src|href)=["'](https?:)?//(?!arxiv\.org/abs/)""", text)
    assert not re.search(r"@import|url\(\s*['\"]?http", text)
    assert "&lt;a&gt; &amp; b" in text and text.count("</script>") == 1
    assert "0123456789ab" in text and "python train.py task=flip_flop pe=cope" in text


def test_an_old_report_is_kept_when_a_new_one_cannot_be_made(
    report: Report, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = page.read_text()
    real = Path.rename
    at_the_swap = lambda path, to: fail() if path.name.endswith(".partial") else real(path, to)  # noqa: E731
    for target, name, replacement in ((page_module, "draw_paper_figures", fail), (Path, "rename", at_the_swap)):
        with monkeypatch.context() as patched:
            patched.setattr(target, name, replacement)
            with pytest.raises(UserError, match=r"No space left on device\); the report that was there is kept"):
                write_report(report, page.parent, "make report")
        assert page.read_text() == before


def test_a_folder_that_is_no_report_is_never_replaced(report: Report, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a report of this project, and would be replaced"):
        write_report(report, tmp_path / "outputs", "make report")
    assert (tmp_path / "outputs" / "precious.txt").read_text() == "mine"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_it_loads_sorts_filters_and_links_in_a_browser(page: Path, tmp_path: Path) -> None:
    script = """<script>
      const problems = []; window.addEventListener("error", event => problems.push(event.message));
      const table = document.querySelector("#table2 table");
      const ours = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent.trim() === "ours");
      const column = () => [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[ours].textContent.trim());
      document.getElementById("filter-section").value = "flip_flop";
      document.getElementById("filter-section").dispatchEvent(new Event("change"));
      table.tHead.rows[0].cells[ours].querySelector("button").click();
      location.hash = "run-1";
      document.title = JSON.stringify({problems, values: column(), target: document.querySelector(":target")?.id});
    </script>"""
    driven = tmp_path / "driven.html"
    driven.write_text(page.read_text().replace("</body>", script + "</body>"))
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}",
               driven.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    found = json.loads(title.group(1).replace("&quot;", '"'))
    numbers = [float(value.split()[0]) for value in found["values"] if value != "missing"]
    assert found["problems"] == [] and numbers == sorted(numbers) and len(numbers) == 6
    assert found["target"] == "run-1"
