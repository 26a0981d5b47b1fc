"""Pictures: one look for an encoding wherever it is drawn, nothing below 0, nothing hidden, and what a run's pictures say."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import ENCODINGS
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from runs import command_here

from cope.errors import UserError
from cope.report.drawing import draw_published, draw_seeds, save, value_axis
from cope.report.figures import draw_run, gates_figure, run_title
from cope.report.names import ENCODINGS as NAMES
from cope.report.names import row_name, section_name, split_name
from cope.report.style import look_of, picture_style
from cope.run.folder import RunFolder


def darkness(colour: str) -> float:
    return 1 - float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


def test_every_encoding_has_a_look_of_its_own_and_cope_the_strongest() -> None:
    looks = {name: look_of(name) for name in {*ENCODINGS, *NAMES}}
    for first, second in combinations(looks, 2):
        assert (looks[first].colour, looks[first].marker) != (looks[second].colour, looks[second].marker), (first, second)
    cope = looks.pop("cope")
    assert all(cope.width > look.width and cope.order > look.order for look in looks.values())
    assert all(darkness(cope.colour) > darkness(look.colour) for look in looks.values())  # in grey too
    assert look_of("a_new_one") == look_of("a_new_one") != look_of("another")
    assert {look_of(f"new{number}").marker for number in range(50)}.isdisjoint({"o"})  # which is CoPE's alone


def test_names_are_as_people_write_them() -> None:
    assert [row_name(row) for row in ("rope", "cope, 2 layers, 4 heads", "16 positions", "a_b")] == [
        "RoPE", "CoPE, 2 layers, 4 heads", "16 positions", "a_b"
    ]  # fmt: skip
    assert [section_name(name) for name in ("selective_copy", "counting, 3 variables")] == [
        "Selective copy", "Counting, 3 variables"
    ]  # fmt: skip
    assert [split_name(name) for name in ("test", "ood_sparse", "longer_2", "longer_1_5")] == [
        "in distribution", "OOD sparse", "2 x context", "1.5 x context"
    ]  # fmt: skip


def test_bars_stay_above_0_and_every_seed_is_drawn() -> None:
    figure, axis = plt.subplots()
    draw_seeds(axis, 0.0, [0.0, 0.1, 30.0], look_of("cope"))
    draw_published(axis, 1.0, [4.0, 4.1], look_of("cope"))
    drawn = [list(line.get_xdata()) for line in axis.lines]
    assert [0.0, 0.1, 30.0] in drawn and all(min(values) >= 0 for values in drawn)
    value_axis(axis, [0.1, 30.0])
    assert axis.get_xscale() == "symlog"  # 0.1 would lie on the edge of a linear axis
    value_axis(axis, [5.0, 30.0])
    assert axis.get_xlim()[0] <= 0
    plt.close(figure)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of counting, with gates of three layers of two heads; those of the last differ most from token to token."""
    found = RunFolder(tmp_path / "counting" / "cope" / "01234567" / "seed=2")
    found.figures.mkdir(parents=True)
    found.write_config({"scale": "smoke"})
    errors = {"error": 0.5, "token_error": 0.5, "loss": 1.0}
    lines = [{"step": step, **{f"eval/validation/{name}": value for name, value in errors.items()}} for step in (10, 20)]
    lines += [{"step": 20, "eval/ood_longer/error": 0.25, "eval/ood_longer/token_error": 0.25}]
    found.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    gates = np.full((3, 2, 4), 0.5)
    gates[2] = [0, 1, 0, 1]
    gates[0, 1] = [0.4, 0.6, 0.4, 0.6]
    words = np.array(["a", "=", "$", "a", "7"])
    np.savez(
        found.figures / "gates.npz", gates=gates, positions=gates, words=words, query=np.array(3), answer=np.array("6"),
        is_right=np.array(False),
    )  # fmt: skip
    return found


def test_gates_say_the_models_answer_and_show_the_telling_heads(folder: RunFolder) -> None:
    figure = gates_figure(folder)
    assert figure.get_suptitle() == (
        "CoPE, counting, seed 2, smoke scale; 4 of 6 heads\n"
        "What the last token counts before the model answers “6”, which is wrong: it is “7”"
    )
    titles = [axis.get_title("left") for axis in figure.axes if axis.get_title("left")]
    assert len(titles) == 4 and titles[-1] == "layer 3, head 2 (standard deviation of its gates 0.50)"
    asked = gates_figure(folder, [(1, 2)])
    assert asked.axes[0].get_title("left").startswith("layer 1, head 2")
    assert len(gates_figure(folder, []).axes) == 2 * 6
    with pytest.raises(UserError, match=r"heads=4\.1: .* from 1\.1 to 3\.2"):
        gates_figure(folder, [(4, 1)])
    plt.close("all")


def test_learning_curves_have_every_split_and_no_line_twice(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("cope.report.figures._save", lambda figure, path: drawn.append(figure) or path)
    draw_run(folder)
    curves = next(figure for figure in drawn if figure.get_suptitle() == run_title(folder))
    loss, scores = curves.axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]
    assert [text.get_text() for text in scores.get_legend().get_texts()] == [
        "validation, sequence error %", "OOD longer, at the end"
    ]  # fmt: skip
    assert loss.get_ylabel() and scores.get_ylabel() == "sequence error (%)"
    plt.close("all")


def test_pictures_of_a_published_run_are_drawn_which_has_no_settings(folder: RunFolder) -> None:
    folder.config.rename(folder.result)
    assert "learning_curves.png" in command_here("scripts/pictures.py", f"run={folder.path}").stdout
    folder.gates.unlink()
    refused = command_here("scripts/pictures.py", f"run={folder.path}", "heads=1.1").stderr
    assert refused.startswith(f"heads=1.1: run={folder.path} has no figures/gates.npz; allowed: ")
    folder.result.unlink()
    assert "is not a run's folder" in command_here("scripts/pictures.py", f"run={folder.path}").stderr


def test_a_picture_takes_little_room_and_its_words_stay(tmp_path: Path) -> None:
    with picture_style("thirds"):
        figure, axis = plt.subplots()
        axis.plot([1 / 3, 2 / 7])
        axis.set_title("p 0.00061")
        text = save(figure, tmp_path, "thirds").read_text()
    assert "p 0.00061" in text and re.findall(r"\d\.\d{3,}", text) == ["0.00061"]
