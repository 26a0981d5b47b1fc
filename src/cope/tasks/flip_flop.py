"""Flip-flop language: a one-bit memory is written, ignored and read; what a read returns is the bit of the last write.

Why: the answer is one step of attention away, at the most recent ``w``, but any number of tokens back. Attention by token
distance fails now and then when that distance is unusual (sparse writes) or distractors are dense; counting writes does not.

Source: Liu et al. 2023 (arXiv 2306.00946), who train on 256 pairs with 80% of ``i`` and test also on 98% ("sparse") and 10%
("dense"). A pair is an instruction and a bit: ``w`` writes the bit, ``i`` is to be ignored, and ``r`` reads: its bit is the
one last written, and is the answer. The first instruction is ``w``, the last is ``r``, the others are ``i`` with probability
``p_ignore`` and else ``w`` or ``r``, equally likely. Bits after ``w`` and ``i`` are coin flips.

As in Liu et al., every read counts as one answer, so the headline is the error per answer (``token_error``).

Picture (loss on answers only):

    inputs   w  1  i  0  r  1  w  0  i  1  r
    labels   .  .  .  .  1  .  .  .  .  .  0

``source`` says where examples come from: the generator here, the data set the authors released (``hub``), or a local copy of
that (``flip_flop_files.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cope.errors import UserError
from cope.tasks.base import Examples
from cope.tasks.flip_flop_files import PUBLISHED_P_IGNORE, FlipFlopFiles
from cope.tasks.synthetic import SyntheticTask, check_number, check_whole_number, smallest_integer

VOCABULARY = ("w", "r", "i", "0", "1")
WRITE, READ, IGNORE_NEXT, ZERO, ONE = range(5)


@dataclass(kw_only=True)
class FlipFlop(SyntheticTask):
    """The flip-flop task; its fields are the keys of ``configs/task/flip_flop.yaml``, explained there."""

    kind: ClassVar[str] = "flip_flop"
    version: ClassVar[int] = 1
    epoch_size: ClassVar[int] = 4096
    headline: ClassVar[str] = "token_error"
    split_keys: ClassVar[tuple[str, ...]] = ("p_ignore", "num_pairs")

    source: str
    num_pairs: int
    p_ignore: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.files: FlipFlopFiles | None = None
        if self.source != "generator":
            self.files = FlipFlopFiles(self.source)
            self._check_against_files(self.files)

    def check_settings(self, where: str) -> None:
        check_whole_number(f"{where}.num_pairs", self.num_pairs, 2)  # the first writes, the last reads
        check_number(f"{where}.p_ignore", self.p_ignore, 0, 1)

    @property
    def longest_sequence(self) -> int:
        return 2 * self.num_pairs

    @property
    def fingerprint(self) -> str:
        return super().fingerprint if self.files is None else self.files.fingerprint

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return VOCABULARY

    def generate(self, num: int, random: np.random.Generator) -> Examples:
        shape = (num, self.num_pairs)
        draw = random.random(shape, dtype=np.float32)
        write_or_read = np.where(draw < (1 + self.p_ignore) / 2, WRITE, READ)
        instructions = np.where(draw < self.p_ignore, IGNORE_NEXT, write_or_read).astype(np.int8)
        instructions[:, 0] = WRITE
        instructions[:, -1] = READ
        bits = random.integers(ZERO, ONE, size=shape, dtype=np.int8, endpoint=True)
        bits = np.where(instructions == READ, last_written(instructions, bits), bits)
        return to_examples(instructions, bits)

    def training_examples(self, seed: int, epoch: int) -> Examples:
        if self.files is None or self.num_train is not None:
            return super().training_examples(seed, epoch)
        texts = self.files.passing_through(self.epoch_size, (self.data_seed, seed), epoch)
        return parse(texts, self.num_pairs, f"task.source={self.source}")

    def fixed_examples(self, stream: str, num: int, seed: int | None) -> Examples:
        if self.files is None:
            return super().fixed_examples(stream, num, seed)
        key = {"train": "num_train", "validation": "num_validation"}.get(stream, "num_test")
        texts = self.files.first(stream, num, f"task.{key}")
        return parse(texts, self.variant(stream).num_pairs, f"task.source={self.source}")

    def _check_against_files(self, files: FlipFlopFiles) -> None:
        """Files have the splits and settings they have: a setting that could only be ignored is an error."""
        for split in self.test_splits:
            files.check_split(split)
        if files.source == "hub":
            for split in ("validation", *self.test_splits):
                p_ignore = self.variant(split).p_ignore
                if p_ignore != PUBLISHED_P_IGNORE[split]:
                    where = "task" if split == "validation" else f"task.splits.{split}"
                    raise UserError(
                        f"{where}.p_ignore={p_ignore} cannot be had with task.source=hub; allowed: "
                        f"{PUBLISHED_P_IGNORE[split]}, as published. Other values can be generated: task.source=generator"
                    )


def last_written(instructions: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """At each pair, the bit of the most recent write up to and including it."""
    places = np.arange(instructions.shape[1], dtype=np.int32)
    latest = np.maximum.accumulate(np.where(instructions == WRITE, places, 0), axis=1)
    return np.take_along_axis(bits, latest, axis=1)


def to_examples(instructions: np.ndarray, bits: np.ndarray) -> Examples:
    """Instructions and bits by turns; the bits after a read are the answers."""
    num, length = len(bits), 2 * bits.shape[1]
    tokens = np.stack([instructions, bits], axis=2).reshape(num, length)
    answers = np.zeros((num, length), dtype=np.bool_)
    answers[:, 1::2] = instructions == READ
    return Examples(tokens, np.full(num, length, dtype=smallest_integer(length)), answers)


def parse(texts: list[str], num_pairs: int, where: str) -> Examples:
    """Examples from texts such as ``w0i1r0``; UserError unless each is ``num_pairs`` pairs of the language."""

    def malformed(row: int, reason: str) -> UserError:
        shown = texts[row] if len(str(texts[row])) <= 40 else f"{texts[row][:40]}..."
        return UserError(f"{where}: {shown!r} is not a flip-flop sequence such as 'w0i1r0': {reason}.")

    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.isascii():
            raise malformed(row, "it is not plain text")
        if len(text) != 2 * num_pairs:
            raise malformed(row, f"it has {len(text)} characters, not {2 * num_pairs} (twice task.num_pairs={num_pairs})")
    ids = np.full(128, -1, dtype=np.int8)
    ids[[ord(word) for word in VOCABULARY]] = range(len(VOCABULARY))
    tokens = ids[np.frombuffer("".join(texts).encode("ascii"), dtype=np.uint8)].reshape(len(texts), 2 * num_pairs)
    instructions, bits = tokens[:, ::2], tokens[:, 1::2]
    wrong_bits = (instructions == READ) & (bits != last_written(instructions, bits))
    for bad, reason in (
        (((instructions < WRITE) | (instructions > IGNORE_NEXT) | (bits < ZERO)).any(axis=1), "w, r or i and 0 or 1 alternate"),
        (instructions[:, 0] != WRITE, "the first instruction is w"),
        (wrong_bits.any(axis=1), "a read returns the bit last written"),
    ):
        if bad.any():
            raise malformed(int(np.argmax(bad)), reason)
    return to_examples(instructions, bits)
