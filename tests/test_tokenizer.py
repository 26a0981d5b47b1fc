"""Tokenizers: nothing is lost, whatever the text; the same text gives the same vocabulary; and what cannot be is said."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cope.building import arguments
from cope.corpora import gpt2
from cope.corpora.encoding import load_tokenizer, train_tokenizer
from cope.corpora.subwords import SEGMENT, SubwordTokenizer, segments
from cope.corpora.tokenizer import Tokenizer, TokenizerSettings, printable
from cope.errors import UserError

SENTENCES = [
    "def add(first, second):",
    "    return first + second",
    "        if first is None and second is None:",
    "            raise ValueError('no number')",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
]
LINES = [*SENTENCES, "</s> <unk> <s> <0x41> \t\0\u2581\u2585 é", ""] * 40
# What tokenizers like to lose or to mistake.
TRAPS = [
    "\n",
    "\t",
    " ",
    "     ",
    "\r",
    "\f",
    "\0",
    "\x1b",
    "\u2581",
    "\u2585",
    "\u2047",
    "\ufffd",
    "\ufeff",
    "\u200b",
    "😀",
    "é",
]
TRAPS += ["</s>", "<unk>", "<s>", "<0x41>", "<|endoftext|>", "def", "\ue000", "\U0010ffff", "\u0301"]
texts = st.one_of(st.text(), st.lists(st.sampled_from(TRAPS)).map("".join))


SIZES = {"bpe": 360, "unigram": 312}  # what so little text can fill


@cache
def tokenizer(kind: str, *, byte_fallback: bool = True) -> Tokenizer:
    settings = TokenizerSettings(kind, SIZES[kind] if byte_fallback else 100, byte_fallback)
    return load_tokenizer(settings, train_tokenizer(settings, LINES, "a test"))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@given(text=texts)
def test_no_text_loses_anything_or_contains_the_separator(kind: str, text: str) -> None:
    subwords = tokenizer(kind)
    tokens = subwords.encode(text)
    assert subwords.decode(tokens) == text
    assert subwords.separator not in tokens
    assert all(0 <= token < subwords.vocab_size for token in tokens)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_vocabulary_has_exactly_the_size_asked_for(kind: str) -> None:
    assert tokenizer(kind).vocab_size == SIZES[kind]


def test_code_keeps_its_shape_in_few_tokens() -> None:
    subwords = tokenizer("bpe")
    pieces = subwords.pieces(subwords.encode("    def\n\n        if first\t\t"))
    assert pieces[0] == "␣␣␣␣"
    assert pieces[pieces.index("↵") :][:3] == ["↵", "↵", "␣␣␣␣␣␣␣␣"]  # a newline is never merged, not even with another
    assert pieces[-3:] == ["␣first", "⇥", "⇥"]


def test_pieces_can_be_printed() -> None:
    subwords = tokenizer("bpe")
    pieces = subwords.pieces([*subwords.encode("\0\u2581ß"), subwords.separator, 0])
    assert pieces == ["<0x00>", "<0xE2>", "<0x96>", "<0x81>", "<0xC3>", "<0x9F>", "</s>", "<unk>"]
    assert printable(" a\n\x07\ufeff") == "␣a↵\\x07\\ufeff"


def test_separators_are_left_out_of_the_text() -> None:
    subwords = tokenizer("bpe")
    assert subwords.decode([*subwords.encode("one"), subwords.separator, *subwords.encode("two")]) == "onetwo"


def test_half_a_character_decodes_to_the_replacement_character() -> None:
    subwords = tokenizer("bpe")
    assert subwords.decode(subwords.encode("😀")[:-1] + subwords.encode("def")) == "\ufffddef"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_is_deterministic(kind: str) -> None:
    settings = TokenizerSettings(kind, SIZES[kind], True)
    assert train_tokenizer(settings, LINES, "a test") == train_tokenizer(settings, iter(LINES), "another")
    assert train_tokenizer(settings, LINES, "a test") != train_tokenizer(settings, LINES + ["zygote zygote"] * 99, "a test")


def test_long_texts_are_cut_where_no_token_is() -> None:
    subwords = tokenizer("bpe")
    assert isinstance(subwords, SubwordTokenizer)
    text = "\n".join(SENTENCES * 700)
    assert len(text) > 2 * SEGMENT
    assert subwords.encode(text) == subwords._model.encode(text)  # in one piece
    without_newlines = text.replace("\n", "")
    assert subwords.decode(subwords.encode(without_newlines)) == without_newlines


@given(text=st.text(alphabet="ab\n"), longest=st.integers(1, 10))
def test_segments_are_the_text(text: str, longest: int) -> None:
    parts = list(segments(text, longest))
    assert "".join(parts) == text
    assert all(0 < len(part) <= longest for part in parts)
    assert all(part.endswith("\n") for part in parts[:-1] if "\n" in part)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_half_a_surrogate_pair_is_refused_with_its_place(kind: str) -> None:
    with pytest.raises(UserError, match=r"U\+D83D at character 3"):
        tokenizer(kind).encode("abc\ud83d")


def test_without_byte_fallback_unknown_characters_become_one_token() -> None:
    subwords = tokenizer("bpe", byte_fallback=False)
    assert subwords.vocab_size == 100
    tokens = subwords.encode("def\u2581😀")
    assert subwords.pieces(tokens)[-2:] == ["<unk>", "<unk>"]
    assert subwords.decode(tokens) == "def\ufffd\ufffd"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_too_large_for_the_text_is_told_what_would_fit(kind: str) -> None:
    with pytest.raises(UserError, match=r"task\.tokenizer\.vocab_size=5000 is too large for corpus=x.*up to \d+") as told:
        train_tokenizer(TokenizerSettings(kind, 5000, True), LINES, "corpus=x")
    fits = int(str(told.value).rsplit(" ", 1)[1].rstrip("."))
    train_tokenizer(TokenizerSettings(kind, fits, True), LINES, "corpus=x")  # it does


def test_a_vocabulary_too_small_for_the_characters_is_told_what_would_do() -> None:
    with pytest.raises(UserError, match=r"task\.tokenizer\.vocab_size=262 is too small for the characters of corpus=x") as told:
        train_tokenizer(TokenizerSettings("bpe", 262, True), LINES, "corpus=x")
    enough = int(str(told.value).split("allowed: ")[1].split()[0])
    train_tokenizer(TokenizerSettings("bpe", enough, True), LINES, "corpus=x")


def test_nothing_can_be_learned_from_nothing() -> None:
    with pytest.raises(UserError, match="corpus=x has no text"):
        train_tokenizer(TokenizerSettings("bpe", 300, True), ["", "\0"], "corpus=x")


def settings(values: dict[str, object]) -> TokenizerSettings:
    """As a configuration has them."""
    return TokenizerSettings(**arguments(OmegaConf.create(values), TokenizerSettings, "task.tokenizer"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "bpee"}, r"task\.tokenizer\.kind=bpee.*Did you mean 'bpe'"),
        ({"vocab_size": 260}, r"task\.tokenizer\.vocab_size=260 is too small; allowed: 261 or more"),
        ({"vocab_size": 4, "byte_fallback": False}, r"allowed: 5 or more"),
        ({"vocab_size": "many"}, r"task\.tokenizer\.vocab_size='many' has the wrong type; allowed: int"),
        ({"byte_fallback": "maybe"}, r"task\.tokenizer\.byte_fallback='maybe' has the wrong type; allowed: bool"),
        ({"vocab_sise": 300}, r"task\.tokenizer\.vocab_sise is not a setting.*Did you mean 'vocab_size'"),
        ({"kind": "gpt2"}, r"task\.tokenizer\.vocab_size=300 is not GPT-2's.*50257"),
        ({"kind": "gpt2", "vocab_size": 50257, "byte_fallback": False}, r"byte_fallback=false is not possible"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings({"kind": "bpe", "vocab_size": 300, "byte_fallback": True} | values)


def test_settings_must_be_complete() -> None:
    with pytest.raises(UserError, match=r"task\.tokenizer\.byte_fallback must be set"):
        settings({"kind": "bpe", "vocab_size": 300})


def test_gpt2_says_when_its_vocabulary_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(gpt2, "is_reachable", lambda url: False)
    with pytest.raises(UserError, match=r"task\.tokenizer\.kind=gpt2: .* cannot be reached.*task\.tokenizer\.kind=bpe"):
        load_tokenizer(TokenizerSettings("gpt2", 50257, True), b"")


@given(text=texts)
def test_gpt2_loses_nothing(text: str) -> None:
    pytest.importorskip("tiktoken")
    if not gpt2._is_downloaded():
        pytest.skip("GPT-2's vocabulary is not at hand")
    published = load_tokenizer(TokenizerSettings("gpt2", 50257, True), b"")
    tokens = published.encode(text)
    assert published.decode(tokens) == text
    assert published.separator == 50256 and published.separator not in tokens
