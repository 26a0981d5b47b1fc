"""What ``scripts/position_alone.py`` measures: whether heads attend to the paragraph or section they are in by position alone.

This is claim 15 of arXiv 2405.18719 (Figures 4 and 6) as a number; what is counted, against what it is compared and what
cannot be concluded is said in :mod:`cope.heads.shares`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cope.errors import UserError, check_at_least
from cope.files import write_atomically, write_json
from cope.heads.counted_tokens import CountedTokens
from cope.heads.shares import (
    LEVEL,
    Segments,
    ShareTest,
    compare_shares,
    running_shares,
    share_sums,
    shifted_segments,
)
from cope.heads.windows import Article, Window, article_windows, chosen_windows, window_with_sections, windows_of
from cope.model.inspection import LayerPositions, positions_by_layer
from cope.model.transformer import Transformer
from cope.run.folder import RunFolder
from cope.run.provenance import commit
from cope.run.trained import load_trained
from cope.seeding import numpy_stream
from cope.tasks.language import Language

PARAGRAPH, PARAGRAPH_AMONG_SENTENCES = "paragraph", "paragraph, shifted by sentences"
SECTION, SECTION_AMONG_LINES = "section", "section, shifted by lines"
DRAWN = (PARAGRAPH_AMONG_SENTENCES, SECTION_AMONG_LINES)  # the kinds whose best head is drawn
SECTIONS_TO_DRAW = 3  # headings in the picture's window: fewer show little, more cannot be told apart


@dataclass(frozen=True)
class MeasurementSettings:
    """The keys of ``scripts/position_alone.py``.

    Args:
        run: the run's folder.
        num_windows: windows of text that the shares are averaged over.
        num_shifts: how often the boundaries are shifted.
        seed: of the choice of windows and shifts.
        document: the test document to draw, by its number from 0 on; None: one of those that were measured.
    """

    run: Path
    num_windows: int = 32
    num_shifts: int = 10_000
    seed: int = 1
    document: int | None = None

    def __post_init__(self) -> None:
        check_at_least("num_windows", self.num_windows, 2)  # each is compared with the mean of all
        check_at_least("num_shifts", self.num_shifts, 1)
        check_at_least("seed", self.seed, 0)


def measure_position_alone(settings: MeasurementSettings) -> Path:
    """Measure every head of a run, and keep the numbers and what is to be drawn.

    Returns:
        the folder with ``scores.json``, written last, and ``arrays.npz``; other settings have another folder.

    Raises:
        UserError: no such run, one whose text has no sections or whose encoding adds nothing to the logits, fewer windows in
            its test split, no such document, or too few shifts for any head to be significant.
    """
    config, task, model, step = load_trained(RunFolder(settings.run))
    if not isinstance(task, Language):
        raise UserError(
            f"run={settings.run}: task={task.name} has no paragraphs and sections; allowed: runs of a task of language "
            "modelling, such as wikipedia."
        )
    shape, context = model.encoding.shape, task.context
    _check_num_shifts(settings, shape.num_layers * shape.num_heads)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    windows = article_windows(task, settings.seed)
    chosen = chosen_windows(windows, settings.num_windows, task, settings.seed)
    candidates = chosen if settings.document is None else windows_of(windows, settings.document, context)
    drawn = window_with_sections(candidates, SECTIONS_TO_DRAW, context)
    tests = _tests(model, chosen, context, settings)
    best = [int(tests[kind].ranking[0]) for kind in DRAWN]

    asked = {key: getattr(settings, key) for key in ("num_windows", "num_shifts", "seed", "document")}
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
    folder = RunFolder(settings.run).figures / "position_alone" / name
    arrays = _arrays_to_draw(model, drawn, context, best)
    (folder / "scores.json").unlink(missing_ok=True)  # it stands for arrays that are about to be replaced
    write_atomically(folder / "arrays.npz", lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]  # none is named allow_pickle
    scores = {
        "task": task.name,
        "encoding": config.pe.name,
        "training_seed": config.seed,
        "step": step,
        "context": context,
        **asked,
        "num_documents": len({window.article.number for window in chosen}),
        "level": LEVEL,
        "kinds": {kind: _described(test, shape.num_heads) for kind, test in tests.items()},
        "counted": _counted(model, chosen, task),  # nothing where there are no gates
        "drawn": {
            "document": drawn.article.number,
            "title": drawn.article.lines[0].title,
            "start": drawn.start,
            "kinds": DRAWN,
        },
        "data": task.fingerprint,
        "commit": commit(),
    }
    write_json(folder / "scores.json", scores)
    return folder


def _counted(model: Transformer, windows: list[Window], task: Language) -> list[dict[str, Any]]:
    shape = model.encoding.shape
    counted = CountedTokens(shape.num_layers, shape.num_heads, task.vocab_size)
    for window in windows:
        layers = list(_layers(model, window, task.context))
        if layers[0].gates is None:
            return []
        counted.add(window.article.tokens[window.start : window.start + task.context], layers)
    return counted.described(task.prepared.tokenizer.pieces)


def _check_num_shifts(settings: MeasurementSettings, num_heads: int) -> None:
    """Raise UserError if no head could be significant whatever it does."""
    # The smallest p-value is 1 / (num_shifts + 1), and claim 15 asks for both kinds of boundaries at once.
    needed = round(num_heads * len(DRAWN) / LEVEL)
    if settings.num_shifts < needed:
        raise UserError(
            f"num_shifts={settings.num_shifts} is too few for any of {num_heads} heads to be significant at {LEVEL}; allowed: "
            f"{needed} or more."
        )


class _Shifts(NamedTuple):
    """What :func:`shifted_segments` takes of a document, for one kind of boundary."""

    is_start: np.ndarray
    places: np.ndarray
    offsets: np.ndarray


def _shifts(article: Article, settings: MeasurementSettings) -> dict[str, _Shifts]:
    """The same for all windows of a document: they are shifted together."""
    every_token = np.arange(len(article.tokens))
    section_starts = article.line_starts[article.are_headings]

    def shifts(starts: np.ndarray, places: np.ndarray, unit: str) -> _Shifts:
        stream = numpy_stream(settings.seed, f"shifts by {unit}", article.number)
        offsets = np.append(0, stream.integers(len(places), size=settings.num_shifts))
        return _Shifts(np.isin(places, starts), places, offsets)

    return {
        PARAGRAPH: shifts(article.line_starts, every_token, "tokens"),
        PARAGRAPH_AMONG_SENTENCES: shifts(article.line_starts, article.sentence_starts, "sentences"),
        SECTION: shifts(section_starts, every_token, "tokens"),
        SECTION_AMONG_LINES: shifts(section_starts, article.line_starts, "lines"),
    }


def _segments(windows: list[Window], context: int, settings: MeasurementSettings) -> list[dict[str, Segments]]:
    """Each window's segments under every shift."""
    shifts = {window.article: _shifts(window.article, settings) for window in windows}
    return [
        {kind: shifted_segments(*found, window.start, context) for kind, found in shifts[window.article].items()}
        for window in windows
    ]


def _tests(model: Transformer, windows: list[Window], context: int, settings: MeasurementSettings) -> dict[str, ShareTest]:
    """Each kind of boundary's test of all heads, over all windows together."""
    found = _segments(windows, context, settings)
    in_text = [window.article.in_text[window.start : window.start + context] for window in windows]
    num_queries = {
        kind: np.sum([segments[kind].num_queries(counted) for segments, counted in zip(found, in_text, strict=True)], axis=0)
        for kind in found[0]
    }
    num_windows_with_query = np.maximum(np.sum(in_text, axis=0), 1)  # where there is none, the sum is 0 too
    for kind, counts in num_queries.items():
        if not counts[0] or not counts[1:].any():
            raise UserError(
                f"run={settings.run}: no {kind.partition(',')[0]} begins inside the {len(windows)} windows of {context} "
                "tokens of its test text; allowed: text with newlines and with headings such as ' = Title = ', as that of "
                "task=wikipedia, or a larger num_windows."
            )
    sums: dict[str, list[np.ndarray]] = {kind: [] for kind in num_queries}
    expected: dict[str, list[np.ndarray]] = {kind: [] for kind in num_queries}
    # All windows go through the layers together, so that only one layer's arrays are ever in memory.
    walks = [_layers(model, window, context) for window in windows]
    for _ in model.layers:
        layer_sums = dict.fromkeys(num_queries, np.zeros(()))
        total = np.zeros(())
        for walk, segments, counted in zip(walks, found, in_text, strict=True):
            attention = next(walk).attention
            if attention is None:
                raise UserError(
                    f"run={settings.run}: its encoding adds nothing to the attention logits, so that no head attends by "
                    "position alone; allowed: runs of an encoding that does (cope and its variants, relative)."
                )
            total = total + attention * counted[:, None]
            running = running_shares(attention, counted)
            layer_sums = {kind: layer_sums[kind] + share_sums(running, segments[kind]) for kind in segments}
        mean = total / num_windows_with_query[:, None]
        layer_expected = dict.fromkeys(num_queries, np.zeros(()))
        for segments, counted in zip(found, in_text, strict=True):
            running = running_shares(mean, counted)
            layer_expected = {kind: layer_expected[kind] + share_sums(running, segments[kind]) for kind in segments}
        for kind in num_queries:
            sums[kind].append(layer_sums[kind])
            expected[kind].append(layer_expected[kind])
    return {
        kind: compare_shares(np.concatenate(sums[kind]), np.concatenate(expected[kind]), num_queries[kind]) for kind in sums
    }


def _layers(model: Transformer, window: Window, context: int) -> Iterator[LayerPositions]:
    tokens = torch.from_numpy(window.article.tokens[window.start : window.start + context])
    return positions_by_layer(model, tokens.to(next(model.parameters()).device))


def _described(test: ShareTest, num_heads: int) -> dict[str, Any]:
    """A test as JSON, the head that is furthest above chance first; layers and heads count from 1."""
    columns = {name: values for name, values in test._asdict().items() if isinstance(values, np.ndarray)}
    heads = [
        {"layer": int(index) // num_heads + 1, "head": int(index) % num_heads + 1}
        | {name: float(values[index]) for name, values in columns.items()}
        for index in test.ranking
    ]
    significant = int((test.p_corrected < LEVEL).sum())
    return {"num_queries": test.num_queries, "num_shifts": test.num_shifts, "num_significant": significant, "heads": heads}


def _arrays_to_draw(model: Transformer, window: Window, context: int, heads: list[int]) -> dict[str, np.ndarray]:
    """Attention by position alone and gates of some heads' last query in one window, and the lines that begin there."""
    num_heads = model.encoding.shape.num_heads
    found: dict[str, dict[int, np.ndarray]] = {"attention": {}, "gates": {}}
    for index, layer in enumerate(_layers(model, window, context)):
        for head in heads:
            for name, by_head in found.items():
                values = getattr(layer, name)
                if head // num_heads == index and values is not None:
                    by_head[head] = values[head % num_heads, -1]
    lines = window.lines(context)
    return {
        "line_starts": np.array([line.start - window.start for line in lines], dtype=np.int64),
        "line_titles": np.array([line.title for line in lines], dtype=str),
        "line_is_heading": np.array([line.is_heading for line in lines], dtype=bool),
        **{name: np.stack([by_head[head] for head in heads]) for name, by_head in found.items() if by_head},
    }
