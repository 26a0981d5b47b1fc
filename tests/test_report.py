"""The report: complete, self-contained, in place of the old one only when it could be made; and it works in a browser."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from plans import plan_in
from report_runs import CLAIMS_PLAN, plans_with_runs

from cope.errors import UserError
from cope.report import page as page_module
from cope.report.findings import measurement
from cope.report.page import Report, collect, write_report
from cope.report.statistics import wilson_interval

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of a flip-flop table in which CoPE is best, with runs of two seeds; of selective copy runs that failed; and another table
    without any run.
    """
    return collect(plans_with_runs(tmp_path_factory.mktemp("outputs")), CLAIMS_PLAN)


@pytest.fixture(scope="module")
def written(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(report, tmp_path_factory.mktemp("written") / "report", "make report")


@pytest.fixture
def page(written: Path, tmp_path: Path) -> Path:
    """The page of a report, the test's own."""
    return shutil.copytree(written.parent, tmp_path / "report") / written.name


def rows_of(path: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with path.open() as file:
        return {(row["section"], row["row"], row["split"]): row for row in csv.DictReader(file)}


def test_every_file_is_there_and_says_what_is_missing(page: Path) -> None:
    folder = page.parent
    assert {path.name for path in (folder / "tables").iterdir()} == {"differences.csv"} | {
        f"{name}.{suffix}" for name in ("table2", "table8", "figure3", "figure5") for suffix in ("csv", "md", "tex")
    }
    pictures = {path.name for path in (folder / "figures").iterdir()}
    drawn = ("figure5", "table2", "gates_flip_flop")
    assert pictures == {f"{name}.svg" for name in drawn} | {"position_alone_cope.png"}  # of the first seed
    assert "Not run yet: Figure 3, Table 8." in page.read_text()
    latex = (folder / "tables" / "table8.tex").read_text()
    assert "missing" in latex and not re.search(r"(?<!\\)[_%]", re.sub("^% .*$", "", latex, flags=re.MULTILINE))
    assert "perplexity" in (folder / "tables" / "table8.csv").read_text()  # of the paper's figures, though nothing was run
    verdicts = {verdict["number"]: verdict for verdict in json.loads((folder / "verdicts.json").read_text())}
    assert verdicts[1]["outcome"] == "not decided" and verdicts[3]["outcome"] == "not run" and len(verdicts) == 17
    assert verdicts[1]["scales"] == ["smoke"] and verdicts[1]["label"] == "not decided after 2 seeds"
    assert verdicts[1]["summary"] == "CoPE below RoPE with 2 of 2 seeds; RoPE below Absolute with 2 of 2 seeds."
    assert "CoPE 0.2%, RoPE 4.6%" in verdicts[1]["findings"][0]["text"]
    reasons = (folder / "verdicts.md").read_text()
    assert all(finding["text"] in reasons for verdict in verdicts.values() for finding in verdict["findings"])
    assert verdicts[3]["finding"] == "CoPE at most 1% error: no seed yet"


def test_a_cell_has_its_statistics(page: Path) -> None:
    rows = rows_of(page.parent / "tables" / "table2.csv")
    cope, rope = rows["flip_flop", "cope", "test"], rows["flip_flop", "rope", "test"]
    numbers = {name: float(cope[name]) for name in ("mean", "std", "median", "paper", "difference", "learned")}
    assert numbers == pytest.approx(
        {"mean": 0.25, "std": 0.0707107, "median": 0.25, "paper": 0.03, "difference": 0.22, "learned": 1}
    )
    assert (float(cope["iqm"]), float(cope["iqm_low"]), float(cope["iqm_high"])) == pytest.approx((0.25, 0.2, 0.3))
    assert (cope["task"], cope["encoding"], cope["seeds"], cope["state"], cope["values"]) == (
        "flip_flop", "cope", "2", "finished", "0.2 0.3"
    )  # fmt: skip
    assert float(rope["learned"]) == 0.5  # the other is at 5.1% on the validation split
    low, high = wilson_interval(1, 2)
    assert (float(rope["learned_low"]), float(rope["learned_high"])) == pytest.approx((low, high), rel=1e-5)
    assert rows_of(page.parent / "tables" / "table8.csv")["variants", "cope", "test_disjoint"]["learned"] == ""


def test_failed_runs_are_told_from_missing_ones(page: Path) -> None:
    rows = rows_of(page.parent / "tables" / "table2.csv")
    states = {row: rows["selective_copy", row, "test"] for row in ("none", "rope", "cope")}
    assert {row: (cell["mean"], cell["state"], cell["failed"]) for row, cell in states.items()} == {
        "none": ("", "failed", "2"), "rope": ("", "failed", "1"), "cope": ("", "missing", "0")
    }  # fmt: skip
    assert "NoPE & failed & " in (page.parent / "tables" / "table2.tex").read_text()
    assert "| NoPE | failed | failed | failed | 0, 2 failed |" in (page.parent / "tables" / "table2.md").read_text()
    text = page.read_text()
    assert '<td class="number failed">failed</td>' in text and "0, 2 failed" in text and "0, 1 failed" in text


def test_differences_from_cope_are_paired_by_seed(page: Path) -> None:
    rows = rows_of(page.parent / "tables" / "differences.csv")
    assert {row for section, row, _ in rows if section == "flip_flop"} == {"none", "absolute", "relative", "rope"}
    rope, absent = rows["flip_flop", "rope", "test"], rows["flip_flop", "relative", "test"]
    assert (float(rope["difference"]), rope["seeds"]) == (pytest.approx(4.35), "2")
    assert [rope[key] for key in ("cope_lower", "cope_higher", "ties")] == ["2", "0", "0"]
    assert (float(rope["e_lower"]), float(rope["e_higher"])) == pytest.approx((7 / 3, 1 / 3), rel=1e-5)
    assert (rope["low"], float(rope["probability"])) == ("", 1.0)  # too few seeds for an interval
    assert (absent["difference"], absent["seeds"]) == ("", "0")


def test_the_page_asks_no_other_host_and_escapes_what_it_shows(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(src|href)=["'](https?:)?//(?!arxiv\.org/abs/)""", text)
    assert not re.search(r"@import|url\(\s*['\"]?http", text)
    shown = re.findall(r'<img [^>]*src="([^"]*)', text)
    pictures = {
        path for path in page.parent.glob("figures/*") if not path.with_suffix(".svg").exists() or path.suffix == ".svg"
    }
    drawn_once = {path.relative_to(page.parent).as_posix() for path in pictures}
    assert drawn_once == set(shown) and len(shown) == len(drawn_once) + 1  # the first screen has one of them, too
    assert "&lt;a&gt; &amp; b" in text and text.count("</script>") == 1
    assert "0123456789ab" in text and "python train.py task=flip_flop pe=cope" in text
    assert len(text) < 1_000_000 and "$" not in re.sub(r"<script>.*</script>", "", text, flags=re.DOTALL)


def test_the_first_screen_has_every_claim_with_the_papers_figures_and_ours(page: Path) -> None:
    text = page.read_text()
    rows = re.findall(r'<tr id="claim-(\d+)">(.*?)</tr>', text, re.DOTALL)
    assert [int(number) for number, _ in rows] == list(range(1, 18))
    first = re.sub(r"<[^>]*>", " ", rows[0][1])
    assert "CoPE 0.03%, RoPE 1.8%, Absolute 6.8%" in first and "not decided after 2 seeds" in first
    assert 'href="#table2"' in rows[0][1] and 'href="#table4"' not in rows[8][1]  # of which there are no runs here
    assert "Of the paper&#39;s 17 claims: " in text


def test_a_table_is_in_the_papers_form(page: Path) -> None:
    section = page.read_text().split('aria-label="Table 2, Flip-flop"')[1].split("</table>")[0]
    assert re.findall(r'<button type="button">(.*?)</button>', section) == [
        "encoding", "in distribution", "paper", "OOD sparse", "paper", "seeds"
    ]  # fmt: skip
    rope = re.search(r'<tr data-encoding="rope">(.*?)</tr>', section, re.DOTALL)
    assert rope is not None
    assert re.findall(r">([^<>\n]+)</t[hd]>", rope[1]) == ["RoPE", "4.6 (0.1)", "1.8 (3.1)", "4.6 (0.1)", "20.3 (2.9)", "2"]


def test_runs_have_their_scores_curves_and_files(report: Report, page: Path, tmp_path: Path, undrawn: None) -> None:
    def first(text: str) -> str:
        found = re.search(r'<tr id="run-1".*?</tr>', text, re.DOTALL)
        assert found is not None
        return found[0]

    own = first(page.read_text())
    assert re.search(r'<polyline points="36,[\d.]+ 72,[\d.]+ 72,', own) and "OOD sparse" in own
    links = dict(re.findall(r'<a href="([^"]*)">([\w.]+)</a>', own))
    assert set(links.values()) == {"result.json", "config", "curves"}
    assert all((page.parent / link).resolve().exists() for link in links)
    published = write_report(report, tmp_path / "published", "make publish", with_runs=True)
    (link,) = re.findall(r'<a href="(runs/[^"]*)">result.json</a>', first(published.read_text()))
    assert (published.parent / link).exists()


def test_every_link_within_the_page_or_to_a_file_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    names = re.findall(r'id="([^"]*)"', text)
    assert len(names) == len(set(names))
    links = set(re.findall(r'href="([^"]*)"', text)) - {"https://arxiv.org/abs/2405.18719"}
    assert {link[1:] for link in links if link.startswith("#")} <= set(names)
    assert all((page.parent / link).exists() for link in links if not link.startswith("#"))
    assert {"#run-1", "tables/differences.csv"} <= links and "run-9" in names  # six finished runs and three failed ones


def test_the_same_results_give_the_same_pictures(report: Report, page: Path, tmp_path: Path) -> None:
    again = write_report(report, tmp_path / "again", "make report")
    assert again.read_text() == page.read_text()
    for picture in page.parent.glob("figures/*"):
        assert (again.parent / "figures" / picture.name).read_bytes() == picture.read_bytes()


def test_published_runs_are_never_lost(report: Report, page: Path, tmp_path: Path) -> None:
    stranger = page.parent / "runs" / "counting" / "cope" / "01234567" / "seed=1"
    stranger.mkdir(parents=True)
    (stranger / "result.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"holds 1 file that this report has not, such as counting/cope/01234567/seed=1/result.json.*make publ"
    ):
        write_report(report, page.parent, "make publish", with_runs=True)
    with pytest.raises(UserError, match=r"holds 1 file that would be lost; allowed: with_runs=true"):
        write_report(report, page.parent, "make report")
    assert (stranger / "result.json").exists()


def test_what_lies_beside_a_report_stays(report: Report, page: Path, undrawn: None) -> None:
    (page.parent / "tuning").mkdir()
    (page.parent / "tuning" / "flip_flop.csv").write_text("trials")
    (page.parent / "tables" / "old.md").write_text("of a table that is no more")
    write_report(report, page.parent, "make publish")
    assert (page.parent / "tuning" / "flip_flop.csv").read_text() == "trials"
    assert not (page.parent / "tables" / "old.md").exists()


def test_trials_may_be_there_before_a_report(report: Report, tmp_path: Path, undrawn: None) -> None:
    (tmp_path / "results" / "tuning").mkdir(parents=True)
    (tmp_path / "results" / "tuning" / "flip_flop.csv").write_text("trials")
    write_report(report, tmp_path / "results", "make publish")
    assert (tmp_path / "results" / "tuning" / "flip_flop.csv").read_text() == "trials"


def test_a_report_without_any_run_does_not_replace_one(page: Path, tmp_path: Path) -> None:
    empty = collect([plan_in(tmp_path / "nothing", "table2", 2)], CLAIMS_PLAN)
    before = page.read_text()
    with pytest.raises(UserError, match=r"no run is finished: the report in .* is kept"):
        write_report(empty, page.parent, "make report")
    assert page.read_text() == before
    assert "not run" in write_report(empty, tmp_path / "new", "make report").read_text()


def test_an_old_report_is_kept_when_a_new_one_cannot_be_made(
    report: Report, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = page.read_text()
    for target, name in ((page_module, "_draw"), (page_module.os, "rename")):
        with monkeypatch.context() as patched:
            patched.setattr(page_module, "_draw", lambda *_: [])
            patched.setattr(target, name, fail)
            with pytest.raises(UserError, match=r"No space left on device\); the report that was there is kept"):
                write_report(report, page.parent, "make report")
        assert page.read_text() == before
    assert [path.name for path in page.parent.parent.iterdir()] == [page.parent.name]  # nothing half made is left


@pytest.mark.parametrize("moment", ["while it wrote", "while it put it in place", "after that"])
def test_a_report_clears_up_after_one_that_was_killed(report: Report, page: Path, undrawn: None, moment: str) -> None:
    folder = page.parent
    new, old = (folder.with_name(f".{folder.name}.{name}") for name in ("new", "old"))
    (folder / "notes.txt").write_text("mine")
    if moment == "while it wrote":
        (new / "tables").mkdir(parents=True)
    else:
        folder.rename(old)
    if moment == "after that":
        shutil.copytree(old, folder, ignore=shutil.ignore_patterns("notes.txt"))
    write_report(report, folder, "make report")
    assert (folder / "notes.txt").read_text() == "mine" and page.exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_is_no_report_is_never_replaced(report: Report, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a report of this project, and would be replaced"):
        write_report(report, tmp_path / "outputs", "make report")
    assert (tmp_path / "outputs" / "precious.txt").read_text() == "mine"


SCRIPT = """<script>
addEventListener("load", () => {
  const focused = [], focus = HTMLElement.prototype.focus;  // of frames beside each other only one can have the focus itself
  HTMLElement.prototype.focus = function (...options) { focused.push(this); focus.apply(this, options); };
  const problems = []; addEventListener("error", event => problems.push(event.message));
  const root = document.documentElement;
  const found = {problems, width: innerWidth, scroll: root.scrollWidth, height: root.scrollHeight};
  const visible = selector => [...document.querySelectorAll(selector)].filter(row => row.offsetParent !== null);
  const outside = element => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest(".wide");
  found.clipped = visible("main *").filter(outside).map(element => element.outerHTML.slice(0, 80));
  found.hints = visible(".hint").length; found.wide = visible(".overflows").length;
  const choose = (...names) => { for (const box of document.querySelectorAll("#filter input"))
    { box.checked = names.includes(box.value); box.dispatchEvent(new Event("change")); } };
  const encodings = () => [...new Set(visible("#table2 tbody tr").map(row => row.dataset.encoding))].sort();
  choose("rope", "cope"); found.two = encodings(); found.count = document.getElementById("filter-count").textContent;
  choose(); found.all = encodings();
  const table = document.querySelectorAll("#table2 .wide table")[3];  // every number of flip-flop
  const column = () => [...table.tBodies[0].rows].map(row => row.cells[2].textContent.trim());
  const head = table.tHead.rows[0].cells[2];
  head.querySelector("button").click(); found.up = column();
  head.querySelector("button").click(); found.down = column();
  found.sort = head.getAttribute("aria-sort");
  choose("absolute");  // hides the run that the link leads to
  addEventListener("hashchange", () => setTimeout(() => {
    const target = document.querySelector(":target");
    found.target = target.id; found.shown = target.offsetParent !== null; found.focused = focused.includes(target);
    const folded_by = event => { filter.open = true; filter.dispatchEvent(event); return !filter.open; };
    found.escaped = folded_by(new KeyboardEvent("keydown", {key: "Escape"}));
    found.left = folded_by(new FocusEvent("focusout", {relatedTarget: target}));
    for (const folded of document.querySelectorAll("main details")) folded.open = true;
    dispatchEvent(new Event("resize"));
    found.unfolded = root.scrollWidth;
    found.needless = visible(".wide").filter(box => (box.tabIndex >= 0) !== box.classList.contains("overflows")).length;
    const hidden = (box, button) => {  // though the keyboard has come to it
      button.dispatchEvent(new FocusEvent("focusin", {bubbles: true}));
      const [inner, outer] = [button, box].map(element => element.getBoundingClientRect());
      return inner.left < outer.left || inner.right > outer.right;
    };
    found.hidden = visible(".overflows").filter(box => {
      const buttons = box.querySelectorAll("th button");
      return hidden(box, buttons[buttons.length - 1]) || hidden(box, buttons[0]);
    }).length;
    target.scrollIntoView();
    const bar = document.querySelector("nav").getBoundingClientRect();
    found.covered = target.getBoundingClientRect().top < bar.bottom && target.getBoundingClientRect().bottom > bar.top;
    found.nameless = visible("th button").filter(button => !button.textContent.trim()).length;
    found.reachable = [...document.querySelectorAll("summary, a, input, button")].every(element => element.tabIndex >= 0);
    parent.postMessage(JSON.stringify(found), "*");
  }));
  document.querySelector('#table2 a[href="#run-1"]').click();
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_it_works_in_a_browser_on_a_phone_and_on_a_desk(page: Path, tmp_path: Path) -> None:
    widths = (390, 900, 1400)
    driven = page.with_name("driven.html")  # beside its pictures
    driven.write_text(page.read_text().replace("</body>", SCRIPT + "</body>"))
    # In frames, because a window cannot be as narrow as a phone.
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<script>const found = []; addEventListener('message', event => { found.push(JSON.parse(event.data)); "
        "document.title = JSON.stringify(found); });</script>"
        + "".join(
            f'<iframe src="{driven.as_uri()}" style="width: {width}px; height: 800px; border: 0"></iframe>' for width in widths
        )
    )
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--enable-logging=stderr",
               "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}", frame.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr
    by_width = {found["width"]: found for found in json.loads(html.unescape(title.group(1)))}
    assert set(by_width) == set(widths) and "CONSOLE" not in done.stderr
    for width, found in by_width.items():
        assert found["problems"] == []
        # It never scrolls sideways, whatever is unfolded.
        assert max(found["scroll"], found["unfolded"]) <= width and found["clipped"] == []
        assert found["hints"] == found["wide"] and (width < 1400 or (found["wide"] == 0 and found["height"] < 8000))
        assert found["two"] == ["cope", "rope"] and found["count"].startswith("2 of ")
        assert found["all"] == ["absolute", "cope", "none", "relative", "rope"]
        up, down = ([float(value.split()[0]) for value in found[way] if value != "missing"] for way in ("up", "down"))
        assert up == sorted(up) and down == up[::-1] and len(up) == 6 and found["sort"] == "descending"
        assert found["up"][-1] == found["down"][-1] == "missing"
        assert (found["target"], found["shown"], found["focused"], found["reachable"]) == ("run-1", True, True, True)
        assert found["needless"] == found["hidden"] == 0 and (width > 390 or found["wide"] > 0)
        assert found["escaped"] and found["left"] and found["nameless"] == 0 and not found["covered"]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"step": 1, "num_windows": 1, "num_shifts": 1, "level": 0.05, "kinds": {"a": {}}}']
)
def test_a_damaged_measurement_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
    run = plan_in(tmp_path, "table5", 1).runs[0]
    heads = [{"excess": 0.5, "shifted_excess": 0.25, "p_corrected": 0.5}]
    sound = {"step": 1, "num_windows": 1, "num_shifts": 1, "level": 0.05, "kinds": {"paragraphs": {"heads": heads}}}
    paths = [run.folder.figures / "position_alone" / name / "scores.json" for name in ("aaaa", "bbbb")]
    for path, text in zip(paths, (content, json.dumps(sound)), strict=True):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert measurement(run, {"best_step": 1}) == measurement(run, {"best_step": 1}) == paths[1]
    assert [record.message.startswith(f"left out: {paths[0]} is damaged: ") for record in caplog.records] == [True]
