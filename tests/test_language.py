"""Language modelling: windows that score each token once, perplexities, the paper's model sizes, and runs bound to a corpus."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from omegaconf import DictConfig
from runs import run

from cope.building import build
from cope.errors import UserError
from cope.model.transformer import Transformer
from cope.positions.base import ModelShape, PositionEncoding
from cope.run.evaluation import score
from cope.run.experiment import Experiment
from cope.run.model_building import build_model
from cope.run.reevaluation import reevaluate
from cope.tasks.base import IGNORE
from cope.tasks.language import Language
from cope.tasks.scores import Score
from cope.tasks.windows import Windows, scoring_windows, training_windows

Compose = Callable[..., DictConfig]
SEPARATOR = 9
TEST_TEXT = "".join(f"cat sat {number}\n" for number in range(20))


def stream_of(lengths: list[int]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Documents of the given lengths, no token of which occurs twice (but for the separator), and their spans."""
    tokens, spans = [], []
    for length in lengths:
        begin = len(tokens)
        tokens += [SEPARATOR + 1 + begin + index for index in range(length)] + [SEPARATOR]
        spans.append((begin, len(tokens)))
    return np.array(tokens, dtype=np.uint16), spans


def scored(windows: Windows) -> list[tuple[list[int], int]]:
    """For every scored token: what the model sees before it, and the token."""
    found = []
    for index in range(len(windows)):
        inputs, targets = windows.batch(np.array([index]))
        for place in range(inputs.shape[1]):
            if targets[0, place] != IGNORE:
                found.append((inputs[0, : place + 1].tolist(), int(targets[0, place])))
    return found


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 12), st.data())
def test_each_token_of_a_document_is_scored_once_after_enough_of_its_own_past(lengths, context, data):
    stride = data.draw(st.integers(1, context))
    stream, spans = stream_of(lengths)
    found = scored(scoring_windows(stream, spans, context, stride, SEPARATOR))
    assert [token for _, token in found] == stream.tolist()  # in order, the closing separators too
    whole = {}  # what stands before each token in its own document
    for begin, end in spans:
        for place in range(begin, end):
            whole[place] = [SEPARATOR, *stream[begin:place].tolist()]
    for place, (past, _) in enumerate(found):
        assert past == whole[place][-len(past) :]
        assert len(past) >= min(len(whole[place]), context - stride + 1)
        assert len(past) <= context


def test_windows_side_by_side_begin_afresh_but_for_a_documents_last():
    stream, spans = stream_of([6])
    found = scored(scoring_windows(stream, spans, context=3, stride=3, separator=SEPARATOR))
    assert [len(past) for past, _ in found] == [1, 2, 3, 1, 2, 3, 3]  # the last window ends with the document


def test_windows_of_a_batch_are_padded_to_the_longest():
    stream, spans = stream_of([2, 7])
    windows = scoring_windows(stream, spans, context=20, stride=20, separator=SEPARATOR)
    inputs, targets = windows.batch(np.array([0, 1]))
    assert inputs.shape == targets.shape == (2, 8)
    assert (targets[0, 3:] == IGNORE).all() and (inputs[0, 4:] == 0).all()
    assert targets[0, :3].tolist() == stream[:3].tolist() and inputs[0, 0] == inputs[1, 0] == SEPARATOR


@pytest.mark.parametrize("offset", [0, 3, 4])
def test_training_windows_lie_side_by_side_and_are_as_many_whatever_the_offset(offset):
    stream = np.arange(23, dtype=np.uint16)
    windows = training_windows(stream, 5, offset, SEPARATOR)
    assert len(windows) == 3
    inputs, targets = windows.batch(np.arange(3))
    assert inputs.flatten().tolist() == list(range(offset, offset + 15))
    assert torch.equal(targets, inputs + 1)


class Uncertain(torch.nn.Module):
    """Predicts the next token from the last three alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(100, 100)

    def forward(self, tokens, where):
        x = self.table(tokens)
        x = x + F.pad(x, (0, 0, 1, 0))[:, :-1] + F.pad(x, (0, 0, 2, 0))[:, :-2]
        return x.flatten(0, 1)[where]


def test_with_enough_overlap_windows_score_as_one_long_window_does():
    stream, spans = stream_of([40, 3, 25])
    fabric, model = Fabric(accelerator="cpu", devices=1), Uncertain()
    losses = {
        (context, stride): score(model, scoring_windows(stream, spans, context, stride, SEPARATOR), fabric)
        for context, stride in [(100, 100), (8, 6), (8, 8)]
    }
    assert {found.token_count for found in losses.values()} == {71}
    assert losses[8, 6].loss == pytest.approx(losses[100, 100].loss, rel=1e-6)  # each sees its last three
    assert losses[8, 8].loss != pytest.approx(losses[100, 100].loss, rel=1e-3)


@pytest.fixture
def task(compose: Compose, tmp_path: Path) -> Language:
    """Over three files of words, one a split."""
    for split, text in (("train", "all the cats sat " * 200), ("validation", "the cat\n" * 30), ("test", TEST_TEXT)):
        (tmp_path / f"{split}.txt").write_text(text)
    return build(text_config(compose, tmp_path).task, "task")


def text_config(compose: Compose, folder: Path, *overrides: str) -> DictConfig:
    config = compose("task=wikipedia", "corpus=files", "pe=cope", *overrides)
    config.task.max_documents, config.task.stride = None, "half"
    for split in ("train", "validation", "test"):
        config.corpus[split] = str(folder / f"{split}.txt")
    config.task.context, config.task.tokenizer.vocab_size = 16, 272
    return config


def test_metrics_are_per_token_per_word_and_per_byte(task):
    nats = 700.0
    tokens = len(task.prepared.test.tokens)
    found = task.metrics("test", Score(1, 1, tokens, 1, nats / tokens, 0))
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert found["num_words"] == 60 and found["word_perplexity"] == pytest.approx(math.exp(nats / 60))
    assert found["num_bytes"] == len(TEST_TEXT)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(TEST_TEXT))


def test_what_is_drawn_of_a_text_is_no_longer_than_the_encoding_reads(compose):
    """Figure 3's rows at half the context, scale=smoke: all was trained and scored, and then the run failed."""
    config = compose("task=wikipedia", "pe=cope_relative", "task.context=16", "trainer.steps=1", "trainer.eval_every=1")
    folder, result = run(config)
    assert result["splits"]["longer_2_5"]["context"] == 40
    assert len(np.load(folder.gates)["words"]) == 40 + 1


def test_splits_read_the_same_tokens_in_other_contexts(task):
    counts = {}
    for split in task.test_splits:
        windows = task.evaluation_examples(split)
        counts[split] = sum(int((windows.batch(np.array([index]))[1] != IGNORE).sum()) for index in range(len(windows)))
    assert set(counts.values()) == {len(task.prepared.test.tokens)}
    assert task.views["longer_2"] == (32, 16) and task.views["test_disjoint"] == (16, 16) and task.longest_context == 40


def test_whole_documents_are_taken_until_there_are_enough_tokens(compose, tmp_path, task):
    config = text_config(compose, tmp_path)
    config.corpus.document = "line"
    config.task.num_test = 30
    few = build(config.task, "task")
    found = few.metrics("test", Score(1, 1, 1, 1, 1.0, 0))
    assert found["num_words"] == 3 * found["num_documents"]  # twenty lines of three words
    windows, longest = few.evaluation_examples("test"), int(np.diff(few.prepared.test.starts).max())
    assert 30 <= int((windows.lengths - windows.first_scored).sum()) < 30 + longest


def test_evaluation_texts_do_not_depend_on_the_seed_and_training_windows_do(task):
    first, second = task.training_examples(1, 0), task.training_examples(2, 0)
    assert not np.array_equal(first.starts, second.starts)
    assert np.array_equal(first.starts, task.training_examples(1, 0).starts)
    assert len(first) == len(second) == len(task.training_examples(1, 5))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("task.context=1", "task.context=1 is too small"),
        ("task.stride=quarter", "task.stride=quarter is not known; allowed: half, context, or a number"),
        ("task.stride=17", "task.stride=17 is out of range; allowed: 1 to 16"),
        ("task.num_test=0", "task.num_test=0 is too small"),
        ("task.splits.longer_2.context_factor=0", "task.splits.longer_2.context_factor=0 is out of range"),
        ("task.splits=null", "task.splits=null is not a table"),
        ("task.splits.longer_2=null", "task.splits.longer_2=null is not a table.*~task.splits.longer_2"),
        ("+task.splits.longer_2.contxt=3", "task.splits.longer_2.contxt is not a key.*context_factor"),
        ("task.tokenizer.kind=gpt3", "task.tokenizer.kind=gpt3.*gpt2"),
        ("+task.tokenizer.size=3", "task.tokenizer.size is not a setting"),
    ],
)
def test_bad_settings_are_refused_before_any_text_is_read(compose, setting, message):
    config = compose("task=wikipedia", "task.context=16", setting)
    with pytest.raises(UserError, match=message):
        Experiment(config)


def test_a_corpus_is_refused_where_no_text_is_read(compose):
    config = compose("task=counting", "+corpus=python_stdlib")
    with pytest.raises(UserError, match="corpus=python_stdlib has no effect: task=counting"):
        Experiment(config)


def test_a_context_longer_than_the_corpus_is_refused(compose, tmp_path, task):
    config = text_config(compose, tmp_path)
    config.task.context = 4000
    with pytest.raises(UserError, match=r"task\.context=4000 needs a training split of at least 8000 tokens"):
        run(config)


def test_a_run_is_scored_again_at_another_context_and_belongs_to_its_corpus(compose, tmp_path, task):
    config = text_config(compose, tmp_path)
    folder, result = run(config)
    assert result["data"] == task.fingerprint
    assert result["splits"]["test"]["perplexity"] < 272
    found, _ = reevaluate(folder, [])
    assert found["splits"] == {split: scores for split, scores in result["splits"].items() if split != "validation"}
    found, _ = reevaluate(folder, ["task.context=32"])
    assert found["splits"]["test"]["loss"] == pytest.approx(result["splits"]["longer_2"]["loss"], abs=1e-6)
    assert (folder.figures / "gates.npz").exists()
    metrics = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert any("eval/validation/bits_per_byte" in line for line in metrics)

    (tmp_path / "train.txt").write_text("all the dogs sat " * 200)
    with pytest.raises(UserError, match=r"best.pt is of a model that was trained on other data than task=wikipedia has now"):
        reevaluate(folder, [])
    with pytest.raises(UserError, match=r"result.json is of a model that was trained on other data"):
        run(config)


@pytest.mark.parametrize(
    ("task_name", "encoding", "millions"),
    [
        ("wikipedia", "absolute", 124.4),
        ("wikipedia", "relative", 123.7),
        ("wikipedia", "cope", 123.7),
        ("wikipedia", "cope_relative", 123.8),  # not in the paper
        ("wikipedia", "cope_sep_keys", 130.8),
        ("code", "rope", 19.8),
        ("code", "absolute", 20.8),
    ],
)
def test_models_of_the_paper_have_the_papers_sizes(task_name, encoding, millions):
    overrides = [f"task={task_name}", f"pe={encoding}", "scale=paper"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra_compose("train", overrides=overrides)
    task = build(config.task, "task")
    with torch.device("meta"):
        model = build_model(config, task)
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_llama_has_no_biases_and_gates_its_hidden_units():
    shape = ModelShape(dim=8, num_layers=1, num_heads=2, context=4, longest=4)
    model = Transformer(
        5, PositionEncoding(shape), activation="swiglu", feed_forward_multiple=3, normalization="rms", biases=False,
        tied_embeddings=False,
    )  # fmt: skip
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    # Embeddings and output; query, key, value and output; three matrices of the feed-forward; three norms.
    assert model.num_parameters() == 2 * 5 * 8 + 4 * 8 * 8 + 3 * 8 * 24 + 3 * 8
    feed_forward = model.layers[0].feed_forward
    x = torch.randn(3, 8)
    gate, value = (x @ feed_forward.hidden.weight.T).chunk(2, -1)
    expected = (gate * gate.sigmoid() * value) @ feed_forward.output.weight.T
    torch.testing.assert_close(feed_forward(x), expected)
