"""What heads attend to by position alone: the arrays, the boundaries, the statistics, and the command."""

from __future__ import annotations

import math
import re
from functools import cache

import numpy as np
import pytest
import torch
from conftest import composed_in
from runs import run
from scipy.stats import binom

from cope.cli import read_settings
from cope.corpora.tokenizer import Tokenizer, printable
from cope.errors import UserError
from cope.files import read_json
from cope.heads.boundaries import Line, find_lines, find_sentences
from cope.heads.counted_tokens import LEAST_COUNT, CountedTokens
from cope.heads.draw import SCORES, draw_position_alone, position_alone_tables
from cope.heads.measure import MeasurementSettings, measure_position_alone
from cope.heads.shares import Segments, compare_shares, holm, running_shares, share_sums, shifted_segments
from cope.heads.windows import Article, article_windows, chosen_windows
from cope.model.inspection import LayerPositions, gates_and_positions, positions_by_layer
from cope.positions.base import PositionEncoding
from cope.run.trained import load_trained

# ---- arrays --------------------------------------------------------------------------------------------------------------


def test_position_alone_is_the_softmax_of_the_bias(make_model, encoding_name, monkeypatch):
    monkeypatch.setattr("cope.model.inspection.QUERIES_PER_BLOCK", 5)  # several blocks, the last of them shorter
    model = make_model(f"pe={encoding_name}")
    tokens = torch.arange(12) % 7
    layers = list(positions_by_layer(model, tokens))
    assert len(layers) == model.encoding.shape.num_layers
    gated = gates_and_positions(model, tokens)
    for index, found in enumerate(layers):
        assert (found.gates is None) == (found.positions is None) == (gated is None)
        assert (found.attention is None) == (type(model.encoding).bias is PositionEncoding.bias)
        if gated is not None:
            np.testing.assert_allclose(found.gates, gated["gates"][index], atol=1e-5)
            np.testing.assert_allclose(found.positions, gated["positions"][index], atol=1e-4)
        if found.attention is not None:
            assert found.attention.shape == (model.encoding.shape.num_heads, 12, 12)
            assert found.attention.dtype == np.float32
            np.testing.assert_allclose(found.attention.sum(-1), 1.0, rtol=1e-5)
            assert not np.triu(found.attention, 1).any()


@torch.no_grad()
@pytest.mark.parametrize(("scale", "divisor"), [("released", math.sqrt), ("paper", lambda _: 1.0)])
def test_position_alone_by_hand(make_model, scale, divisor):
    model = make_model("pe=cope_sep_keys", f"pe.scale={scale}")
    tokens = torch.arange(9) % 7
    layer, first = model.layers[0], next(iter(positions_by_layer(model, tokens)))
    heads = layer.attention.heads(layer.attention_input(model.embedding(tokens[None])), model.encoding)
    table = model.encoding.table(0).numpy()
    for query in (0, 4, 8):
        z = heads.q[0, 1, query].numpy() @ table.T / divisor(table.shape[1])
        logits = np.interp(first.positions[1, query, : query + 1], np.arange(len(z)), z)
        expected = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(first.attention[1, query, : query + 1], expected, rtol=1e-4)


# ---- boundaries ------------------------------------------------------------------------------------------------------------


class Words(Tokenizer):
    """A token for each word with the space before it, and for each newline; ``blank`` is a space and a newline in one."""

    separator = 0

    def __init__(self, words):
        self.words = words

    def encode(self, text):
        raise NotImplementedError

    def decode(self, tokens):
        return "".join(self.words[token] for token in tokens)

    def piece(self, token):
        return printable(self.words[token])


def test_lines_and_sentences_of_a_document():
    words = [
        " =", " Title", " =", " \n", "\n",  # 0: the space before the newline may be part of its token
        "Some", " text.", " More", " of", " it.", "\n",  # 5
        "No", " =", " heading", " =", "\n\n",  # 11: and so may several newlines
        " =", " =", " Early", " years", " =", " =", " ", "\n", " ", "\n",  # 16: a blank line may hold a space
        "Born", " in", " St.", " Ives",  # 26: the end without a newline
    ]  # fmt: skip
    tokens, tokenizer = np.arange(len(words)), Words(words)
    lines = find_lines(tokens, tokenizer)
    assert [(line.start, line.title, line.is_heading) for line in lines] == [
        (0, "Title", True),
        (5, "Some text. More of it.", False),
        (11, "No = heading =", False),
        (16, "Early years", True),
        (26, "Born in St. Ives", False),
    ]
    assert find_sentences(tokens, lines, tokenizer).tolist() == [0, 5, 7, 11, 16, 26, 29]


def test_headings_and_the_blank_lines_after_them_are_not_text():
    lines = [Line(1, " = Title = ", True), Line(4, "Text", False), Line(6, " = = S = = ", True), Line(8, "More", False)]
    article = Article(0, np.arange(9), lines, np.array([1, 4, 6, 8]))
    assert article.in_text.tolist() == [False, False, False, False, True, True, False, False, True]


# ---- shares ----------------------------------------------------------------------------------------------------------------


def segments_of(starts, num_tokens, offsets=(0,), window=None):
    is_start = np.zeros(num_tokens, dtype=bool)
    is_start[list(starts)] = True
    start, length = window or (0, num_tokens)
    return shifted_segments(is_start, np.arange(num_tokens), np.array(offsets), start, length)


def inside(starts, num_tokens):
    """Attention of one head that falls evenly on the query's own segment, and nowhere else."""
    segment = np.searchsorted(sorted(starts), np.arange(num_tokens), side="right")
    same = np.tril(segment[:, None] == segment)
    return (same / same.sum(-1, keepdims=True))[None]


def shares(attention, segments, counted):
    return share_sums(running_shares(attention, counted), segments) / segments.num_queries(counted)


def test_a_shift_moves_the_boundaries_around_the_document():
    found = segments_of([0, 4, 7], 10, offsets=(0, 2, 5), window=(1, 8))
    by_set = [[(int(a), int(b)) for a, b, s in zip(*found[:3], strict=True) if s == index] for index in range(3)]
    # With offset 0 the boundaries are at 0, 4, 7 of the document, with 2 at 2, 6, 9, with 5 at 5, 9 and 12 - 10 = 2.
    assert by_set == [[(3, 5), (6, 7)], [(1, 4), (5, 7)], [(1, 3), (4, 7)]]
    counted = np.array([True] * 4 + [False] * 4)
    assert found.num_queries(np.ones(8, dtype=bool)).tolist() == [5, 7, 7]
    assert found.num_queries(counted).tolist() == [1, 3, 3]


def test_a_segment_that_begins_with_the_window_is_left_out():
    assert segments_of([0, 3], 6, window=(3, 3)).num_queries(np.ones(3, dtype=bool)).tolist() == [0]


def test_shifts_by_lines_keep_boundaries_at_lines():
    lines, are_headings = np.array([0, 2, 5, 9]), np.array([True, False, False, True])
    found = shifted_segments(are_headings, lines, np.arange(4), 0, 12)
    assert found.starts.tolist() == [9, 2, 2, 5, 5, 9]  # the first line's own segment begins with the window
    assert found.ends.tolist() == [11, 11, 4, 11, 8, 11]
    assert found.sets.tolist() == [0, 1, 2, 2, 3, 3]


def test_attention_inside_the_segment_has_share_one():
    starts = [0, 4, 9, 11]
    everything = np.ones(16, dtype=bool)
    assert shares(inside(starts, 16), segments_of(starts, 16), everything) == pytest.approx(1.0)


def test_the_share_of_even_attention_by_hand():
    even = np.tril(np.ones((6, 6))) / np.arange(1, 7)[:, None]
    counted = np.array([True, True, True, True, False, True])
    # Queries 2 and 3 are in the segment from 2 on, query 5 in that from 4 on; query 4 is not counted.
    expected = (1 / 3 + 2 / 4 + 2 / 6) / 3
    assert shares(even[None], segments_of([2, 4], 6), counted) == pytest.approx(expected)


def documents(number, length, draws):
    """Documents with paragraphs at random, each with the shifts of its boundaries."""
    for _ in range(number):
        starts = np.append(0, np.flatnonzero(draws.random(length) < 0.06))
        yield starts, segments_of(starts, length, np.append(0, draws.integers(length, size=499)))


def compared(attentions, found):
    """The test of heads whose attention in each window is (heads, query, key)."""
    length = attentions[0].shape[-1]
    counted, mean = np.ones(length, dtype=bool), np.mean(attentions, axis=0)
    sums = sum(share_sums(running_shares(a, counted), s) for a, s in zip(attentions, found, strict=True))
    expected = sum(share_sums(running_shares(mean, counted), s) for s in found)
    return compare_shares(sums, expected, np.sum([s.num_queries(counted) for s in found], axis=0))


def test_a_head_that_knows_the_segments_is_found_and_one_that_knows_distances_is_not():
    draws, length = np.random.default_rng(1), 96
    distance = np.arange(length)[:, None] - np.arange(length)
    near, even = (np.where(distance >= 0, weight, 0.0) for weight in (np.exp(-0.1 * distance), 1.0))
    blind = [weight / weight.sum(-1, keepdims=True) for weight in (near, even)]
    attentions, found = [], []
    for starts, segments in documents(12, length, draws):
        attentions.append(np.stack([inside(starts, length)[0], *blind]))
        found.append(segments)
    test = compared(attentions, found)
    assert test.share[0] == pytest.approx(1.0)
    assert test.excess[0] > test.shifted_excess_high[0] > test.shifted_excess[0] + 0.01
    assert test.p_value[0] == pytest.approx(1 / 500)
    assert test.p_corrected[0] == pytest.approx(3 / 500)
    assert test.ranking[0] == 0
    np.testing.assert_allclose(test.excess[1:], 0.0, atol=1e-12)
    assert (test.p_value[1:] == 1.0).all()  # every shift gives as much
    assert test.share[1] > test.share[2]  # though the one that looks nearby is more often inside


def test_p_values_of_attention_at_random_are_not_small():
    draws, length, p_values = np.random.default_rng(2), 64, []
    for _ in range(60):
        attentions, found = [], []
        for _, segments in documents(3, length, draws):
            weights = np.tril(draws.exponential(size=(1, length, length)) ** 4)
            attentions.append(weights / weights.sum(-1, keepdims=True))
            found.append(segments)
        p_values.append(compared(attentions, found).p_value[0])
    small = sum(p < 0.2 for p in p_values)
    assert binom.ppf(0.001, 60, 0.2) <= small <= binom.ppf(0.999, 60, 0.2)
    assert 0.35 < np.mean(p_values) < 0.65


def test_sets_of_boundaries_without_a_query_are_not_counted():
    none_in_the_second = Segments(np.array([2, 3]), np.array([3, 3]), np.array([0, 2]), 3)
    counted = np.ones(4, dtype=bool)
    attention = inside([0, 2], 4)
    sums = share_sums(running_shares(attention, counted), none_in_the_second)
    test = compare_shares(sums, np.zeros((1, 3)), none_in_the_second.num_queries(counted))
    assert test.num_shifts == 1
    assert test.share.tolist() == [1.0]
    assert test.shifted_share.tolist() == [0.5]  # query 3 gives half of its attention to itself


def test_holms_correction():
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2 (no less than the one before), 0.9 x 1.
    np.testing.assert_allclose(holm(np.array([0.9, 0.01, 0.03, 0.02])), [0.9, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, 0.7])), [1.0, 1.0])


def test_what_a_head_counts_by_hand():
    counted = CountedTokens(num_layers=1, num_heads=2, vocab_size=3)
    tokens = np.array([0, 1] * LEAST_COUNT + [2])  # the last occurs too rarely
    gates = np.zeros((2, len(tokens), len(tokens)))
    for query in range(len(tokens)):
        gates[0, query, : query + 1] = tokens[: query + 1] == 1  # the first head counts token 1
        gates[1, query, : query + 1] = 0.5
    counted.add(tokens, [LayerPositions(gates, None, None)])
    first, second = counted.described(lambda ids: [f"<{token}>" for token in ids])
    assert (first["layer"], first["head"], second["head"]) == (1, 1, 2)
    assert [tuple(token.values()) for token in first["tokens"]] == [("<1>", 1.0, LEAST_COUNT), ("<0>", 0.0, LEAST_COUNT)]
    assert second["mean_gate"] == pytest.approx(0.5)


# ---- the command -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``trained(*overrides)``: the folder of a finished run at scale=smoke."""
    folder = tmp_path_factory.mktemp("runs")

    @cache
    def made(*overrides):
        return run(composed_in(folder, *overrides, "trainer.steps=4", "trainer.eval_every=4", "task.context=96"))[0]

    return made


def parse(arguments: list[str]) -> MeasurementSettings:
    return read_settings(arguments, MeasurementSettings, "scripts/position_alone.py run=...")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cope_sep_keys", "relative"])
def test_the_command_measures_and_draws(trained, encoding):
    folder = trained("task=wikipedia", f"pe={encoding}")
    request = parse([f"run={folder.path}", "num_windows=40", "num_shifts=160", "document=1"])
    assert (request.num_windows, request.num_shifts, request.seed, request.document) == (40, 160, 1, 1)
    written = measure_position_alone(request)
    scores = read_json(written / SCORES)
    assert list(scores["kinds"]) == [
        "paragraph", "paragraph, shifted by sentences", "section", "section, shifted by lines",
    ]  # fmt: skip
    for found in scores["kinds"].values():
        assert sorted((head["layer"], head["head"]) for head in found["heads"]) == [(1, 1), (1, 2), (2, 1), (2, 2)]
        gains = [head["excess"] - head["shifted_excess"] for head in found["heads"]]
        assert gains == sorted(gains, reverse=True)
        assert all(0 < head["share"] <= 1 and 1 / 161 <= head["p_value"] <= head["p_corrected"] for head in found["heads"])
    drawn = scores["drawn"]
    assert drawn["document"] == 1
    _, task, model, _ = load_trained(folder)
    window = next(w for w in article_windows(task, 1) if (w.article.number, w.start) == (1, drawn["start"]))
    layers = list(positions_by_layer(model, torch.from_numpy(window.article.tokens[window.start : window.start + 96])))
    with np.load(written / "arrays.npz") as arrays:
        assert ("gates" in arrays) == (encoding == "cope_sep_keys")
        for row, kind in enumerate(("paragraph, shifted by sentences", "section, shifted by lines")):
            best = scores["kinds"][kind]["heads"][0]
            expected = layers[best["layer"] - 1].attention[best["head"] - 1]
            np.testing.assert_array_equal(arrays["attention"][row], expected[-1])
    assert "shifted by lines: " in position_alone_tables(written)
    counts_something = "what each head counts" in position_alone_tables(written)
    assert counts_something == (len(scores["counted"]) == 4) == (encoding == "cope_sep_keys")
    assert draw_position_alone(written).stat().st_size > 10_000


def test_share_and_excess_query_by_query(trained):
    folder, num_windows, context = trained("task=wikipedia", "pe=cope_sep_keys"), 16, 96
    scores = read_json(
        measure_position_alone(MeasurementSettings(folder.path, num_windows=num_windows, num_shifts=160)) / SCORES
    )
    _, task, model, _ = load_trained(folder)
    windows = chosen_windows(article_windows(task, 1), num_windows, task, 1)
    attention, text, begins = [], [], []
    for window in windows:
        tokens = torch.from_numpy(window.article.tokens[window.start : window.start + context])
        attention.append(list(positions_by_layer(model, tokens))[1].attention[0].astype(np.float64))
        text.append(window.article.in_text[window.start : window.start + context])
        begins.append([line.start - window.start for line in window.lines(context) if line.is_heading])
    found, expected = [], []
    for own, counted, starts in zip(attention, text, begins, strict=True):
        for query in np.flatnonzero(counted):
            if start := max((start for start in starts if start <= query), default=0):
                found.append(own[query, start:].sum())
                alike = [a[query, start:].sum() for a, t in zip(attention, text, strict=True) if t[query]]
                expected.append(np.mean(alike))
    head = next(h for h in scores["kinds"]["section"]["heads"] if (h["layer"], h["head"]) == (2, 1))
    assert scores["kinds"]["section"]["num_queries"] == len(found)
    assert head["share"] == pytest.approx(np.mean(found))
    assert head["excess"] == pytest.approx(np.mean(found) - np.mean(expected), abs=1e-9)


@pytest.mark.slow
def test_the_same_request_gives_the_same_and_another_one_has_another_folder(trained):
    folder = trained("task=wikipedia", "pe=relative")
    first = measure_position_alone(MeasurementSettings(folder.path, num_windows=40, num_shifts=160))
    scores, arrays = read_json(first / SCORES), (first / "arrays.npz").read_bytes()
    assert measure_position_alone(MeasurementSettings(folder.path, num_windows=40, num_shifts=160, seed=2)) != first
    assert (read_json(first / SCORES), (first / "arrays.npz").read_bytes()) == (scores, arrays)
    assert measure_position_alone(MeasurementSettings(folder.path, num_windows=40, num_shifts=160)) == first
    assert read_json(first / SCORES) == scores


@pytest.mark.slow
def test_what_cannot_be_measured_is_said(trained):
    folder = trained("task=wikipedia", "pe=rope")
    with pytest.raises(UserError, match="its encoding adds nothing to the attention logits"):
        measure_position_alone(MeasurementSettings(folder.path, num_windows=40, num_shifts=200))
    with pytest.raises(UserError, match=r"num_shifts=159 is too few for any of 4 heads .* allowed: 160 or more"):
        measure_position_alone(MeasurementSettings(folder.path, num_shifts=159))
    with pytest.raises(UserError, match=r"num_windows=1000000 is more than there are: .* allowed: 2 to \d+"):
        measure_position_alone(MeasurementSettings(folder.path, num_windows=1_000_000))
    with pytest.raises(UserError, match=r"document=99 is not a test document .* allowed: 0, 1"):
        measure_position_alone(MeasurementSettings(folder.path, document=99))
    with pytest.raises(UserError, match=r"task=counting has no paragraphs and sections"):
        measure_position_alone(MeasurementSettings(trained("task=counting", "pe=cope").path))


@pytest.mark.slow
def test_text_without_headings_is_refused(trained, monkeypatch):
    monkeypatch.setattr("cope.heads.boundaries.HEADING", re.compile("(?!)"))  # as in code
    with pytest.raises(UserError, match=r"no section begins inside the 40 windows .* headings such as ' = Title = '"):
        measure_position_alone(MeasurementSettings(trained("task=wikipedia", "pe=relative").path, num_windows=40))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["num_windows=3"], r"run=\.\.\. must be given: scripts/position_alone"),
        (["run=x", "num_window=3"], "num_window is not a setting; allowed: run, .*Did you mean 'num_windows'"),
        (["run=x", "seed"], "'seed' is not of the form key=value"),
        (["run=x", "num_windows=many"], "num_windows='many' has the wrong type; allowed: int"),
        (["run=x", "seed=1", "seed=2"], "one seed too many"),
        (["run=x", "num_windows=1"], "num_windows=1 is too small; allowed: 2 or more"),
        (["run=x", "num_shifts=0"], "num_shifts=0 is too small"),
        (["run=x", "seed=-1"], "seed=-1 is too small"),
    ],
)
def test_wrong_arguments_are_told(arguments, said):
    with pytest.raises(UserError, match=said):
        parse(arguments)
