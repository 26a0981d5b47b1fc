"""Generation: what is drawn and from what, with the cache as without it, and ``generate.py`` as a user meets it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from hydra.utils import get_class
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from runs import command_here

from cope.building import build
from cope.cli import read_settings
from cope.endings import INTERRUPTED
from cope.errors import UserError
from cope.functional import BACKENDS
from cope.kernels import native, triton
from cope.model.generate import generate, probabilities
from cope.model.transformer import Transformer
from cope.run.checkpoint import save_checkpoint
from cope.run.configuration import resolved
from cope.run.folder import RunFolder
from cope.run.generation import GenerationSettings, _as_text, text_pieces
from cope.run.model_building import build_model
from cope.run.trained import load_trained
from cope.tasks.base import Task

PROMPT = [3, 1, 4, 1, 5]
LONGEST = 48  # tokens of the longest sequence of task=counting at scale=smoke
PROGRAM = "a = 0 ; a ++; pass; print a"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(model: Transformer, num_tokens: int, seed: int = 0, **settings) -> list[int]:
    return list(generate(model, PROMPT, num_tokens, generator=seeded(seed), **settings))


def drawn_without_cache(model: Transformer, num_tokens: int, draw: Callable[[torch.Tensor], int]) -> list[int]:
    tokens = list(PROMPT)
    with torch.no_grad():
        for _ in range(num_tokens):
            tokens.append(draw(model(torch.tensor([tokens]))[0, -1]))
    return tokens[len(PROMPT) :]


# ---- what is drawn -------------------------------------------------------------------------------------------------------


def test_the_same_tokens_with_the_cache_as_without_it(make_model, encoding_name):
    model = make_model(f"pe={encoding_name}").double()
    generator = seeded()
    expected = drawn_without_cache(model, 16, lambda logits: int(logits.softmax(-1).multinomial(1, generator=generator)))
    assert len(set(expected)) > 5  # so that there is something to get wrong
    assert drawn(model, 16) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_decodes(make_model, backend):
    module = {"native": native, "triton": triton}.get(backend)
    device = "cuda" if torch.cuda.is_available() and backend == "triton" else "cpu"
    lacking = None if module is None else module.missing(device, torch.float32)
    if lacking is not None:
        pytest.skip(lacking)
    model = make_model("pe=cope_sep_keys", f"pe.backend={backend}").to(device)
    # The prompt, and two tokens one at a time: Triton's interpreter takes a quarter of a second for each.
    assert drawn(model, 3) == drawn(make_model("pe=cope_sep_keys", "pe.backend=reference").double(), 3)


def test_temperature_zero_takes_the_most_probable_token(make_model):
    model = make_model("pe=cope")
    expected = drawn_without_cache(model, 20, lambda logits: int(logits.argmax()))
    assert drawn(model, 20, temperature=0.0) == expected
    assert drawn(model, 20, temperature=1e-320) == expected  # as small as numbers get: no infinity becomes a NaN
    assert drawn(model, 20, top_k=1) == expected
    assert drawn(model, 20, top_p=1e-9) == expected


def test_the_generator_alone_decides(make_model):
    model = make_model("pe=rope")
    torch.manual_seed(1)
    first = drawn(model, 30)
    torch.manual_seed(2)
    assert drawn(model, 30) == first
    assert drawn(model, 30, seed=1) != first
    assert drawn(model, 12) == first[:12]


def test_a_stop_token_ends_the_sequence(make_model):
    model = make_model("pe=rope")
    whole = drawn(model, 30)
    stop = whole[10]
    assert drawn(model, 30, stop=stop) == whole[: whole.index(stop)]
    absent = next(token for token in range(model.embedding.num_embeddings) if token not in whole)
    assert drawn(model, 30, stop=absent) == whole


def test_neither_dropout_nor_gradients_while_generating(make_model):
    model = make_model("pe=cope", "model.dropout=0.5")
    expected = drawn(model, 10)
    assert list(generate(model.train(), PROMPT, 10, generator=seeded())) == expected
    model.register_forward_hook(lambda model, inputs, logits: pytest.fail("a graph") if logits.requires_grad else None)
    for _ in generate(model, PROMPT, 3, generator=seeded()):
        assert torch.is_grad_enabled()  # the consumer's own setting, between two tokens


# ---- what is drawn from --------------------------------------------------------------------------------------------------


def test_probabilities_worked_out_by_hand():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[torch.tensor([2, 0, 3, 1])]  # 0.15, 0.5, 0.05, 0.3

    def of(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> list[float]:
        found = probabilities(logits, temperature, top_k, top_p)
        return (found / found.sum()).tolist()

    assert of() == pytest.approx([0.15, 0.5, 0.05, 0.3])
    assert of(top_k=2) == pytest.approx([0, 5 / 8, 0, 3 / 8])
    assert of(top_k=99) == pytest.approx([0.15, 0.5, 0.05, 0.3])
    assert of(top_p=0.49) == pytest.approx([0, 1, 0, 0])
    assert of(top_p=0.51) == pytest.approx([0, 5 / 8, 0, 3 / 8])  # the token that reaches it is in
    assert of(top_p=1.0) == pytest.approx([0.15, 0.5, 0.05, 0.3])
    # top_p is of what top_k left: 0.6 is within 5/8 of it, though not within 0.5 of the whole.
    assert of(top_k=2, top_p=0.6) == pytest.approx([0, 1, 0, 0])
    assert of(temperature=0.5) == pytest.approx([0.15**2 / 0.365, 0.25 / 0.365, 0.05**2 / 0.365, 0.09 / 0.365])
    assert of(temperature=0.5, top_p=0.6) == pytest.approx([0, 1, 0, 0])  # 0.25 / 0.365 = 0.68: temperature comes first
    assert of(temperature=1e9) == pytest.approx([0.25] * 4)
    tied = probabilities(torch.tensor([1.0, 2.0, 1.0, 0.0]), 1.0, 2, None)
    assert (tied > 0).tolist() == [True, True, True, False]


@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12),
    temperature=st.floats(0.1, 5),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | st.floats(0.01, 0.99),
)
def test_what_is_left_is_what_transformers_leaves(logits, temperature, top_k, top_p):
    scores = [logit / temperature for logit in logits]
    if top_k is not None:
        least = sorted(scores)[-min(top_k, len(scores))]
        scores = [-math.inf if score < least else score for score in scores]
    total = sum(map(math.exp, scores))
    ascending = sorted(range(len(scores)), key=lambda token: scores[token])
    mass = list(itertools.accumulate(math.exp(scores[token]) / total for token in ascending))
    # Its rule: ascending, all up to a mass of 1 - top_p go, but never the last. Ties go in an order that nobody promises.
    kept = [scores[token] for token, below in zip(ascending, mass, strict=True) if top_p is None or below > 1 - top_p]
    kept = [score for score in kept or [scores[ascending[-1]]] if score > -math.inf]
    found = probabilities(torch.tensor(logits), temperature, top_k, top_p)
    unsure = top_p is not None and min(abs(below - 1 + top_p) for below in mass) < 1e-6
    if not unsure:
        left = found[found > 0].log() + math.log(total)
        assert sorted(left.tolist()) == pytest.approx(sorted(kept), abs=1e-4)


def parse(arguments: list[str]) -> GenerationSettings:
    return read_settings(arguments, GenerationSettings, "python generate.py run=... prompt=...")


# ---- what is refused, before the first token -----------------------------------------------------------------------------


def test_longer_than_the_encoding_is_defined_for_is_refused_at_once(make_model):
    model = make_model("pe=absolute")
    assert len(drawn(model, LONGEST - len(PROMPT))) == LONGEST - len(PROMPT)  # the last of which is not read
    with pytest.raises(UserError, match=f"a sequence of {LONGEST} tokens is longer than the {LONGEST - 1} positions"):
        generate(model, PROMPT, LONGEST + 1 - len(PROMPT), generator=seeded())  # not even iterated
    with pytest.raises(UserError, match="no token"):
        generate(model, [], 1, generator=seeded())


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("temperature=-0.5", "temperature=-0.5 is too small; allowed: 0.0 or more"),
        ("temperature=nan", "temperature=nan is too small"),
        ("temperature=inf", "temperature=inf is not finite"),
        ("temperature=hot", "temperature='hot' has the wrong type; allowed: float"),
        ("top_p=0", r"top_p=0.0 is out of range; allowed: above 0, up to 1"),
        ("top_p=1.5", "top_p=1.5 is out of range"),
        ("top_p=nan", "top_p=nan is out of range"),
        ("top_k=0", "top_k=0 is too small; allowed: 1 or more"),
        ("top_k=1.5", r"top_k='1\.5' has the wrong type; allowed: int \| None"),
        ("num_tokens=0", "num_tokens=0 is too small; allowed: 1 or more"),
        ("num_tokens=null", "num_tokens='null' has the wrong type"),
        ("seed=-1", "seed=-1 is too small; allowed: 0 or more"),
        ("stream=maybe", "stream='maybe' has the wrong type; allowed: bool"),
        ("temprature=1", "temprature is not a setting; allowed: run, prompt, .*Did you mean 'temperature'"),
        ("stream", "'stream' is not of the form key=value"),
        ("a", "'a' is not of the form key=value; .*needs quotes"),
        ("=", "'=' is not of the form key=value"),
        ("run=elsewhere", "run=elsewhere is one run too many"),
        ("prompt=again", "prompt=again is one prompt too many"),
    ],
)
def test_bad_settings_are_told_before_anything_is_read(argument, said):
    with pytest.raises(UserError, match=said):
        parse(["run=nowhere", "prompt=a", argument])


def test_run_and_prompt_are_needed():
    for arguments in ([], ["run=nowhere"], ["prompt=a"]):
        with pytest.raises(UserError, match=r"must be given: python generate\.py run="):
            parse(arguments)
    with pytest.raises(UserError, match="prompt= is empty"):
        parse(["run=nowhere", "prompt="])


def test_a_prompt_is_taken_as_it_is():
    prompt = "x = {'a': ${b}, \"c\": [1,\n\t2]} # prompt=1"
    request = parse(["run=nowhere", f"prompt={prompt}", "top_k=null", "top_p=0.5", "stream=false"])
    assert (request.prompt, request.top_k, request.top_p, request.stream) == (prompt, None, 0.5, False)


# ---- a run's model -------------------------------------------------------------------------------------------------------


@pytest.fixture
def leave_run(compose: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., RunFolder]:
    """``leave_run(*overrides)``: a folder such as a run leaves, with a model that has learned nothing."""

    def left(*overrides: str) -> RunFolder:
        config = compose(*overrides)
        task = build(config.task, "task")
        folder = RunFolder(tmp_path / "outputs" / "seed=1")
        folder.write_config(resolved(config))
        model = build_model(config, task)
        save_checkpoint(folder.best_checkpoint, {"model": model.state_dict(), "step": 0, "code": "", "data": ""})
        return folder

    return left


def test_the_command_prints_the_prompt_and_what_follows(leave_run):
    folder = leave_run("pe=cope", "task=counting")
    arguments = [f"run={folder.path}", f"prompt={PROGRAM}", "num_tokens=7", "seed=2"]
    pieces = list(text_pieces(parse(arguments)))
    assert len(pieces) == 8
    assert pieces[0] == PROGRAM
    shown = command_here("generate.py", *arguments)
    assert (shown.returncode, shown.stdout) == (0, "".join(pieces) + "\n"), shown.stderr
    # The text is that of the very tokens that the model draws.
    task = load_trained(folder).task
    tokens = task.encode("".join(pieces))
    assert tokens[:-7] == task.encode(PROGRAM)
    assert "".join(text_pieces(parse([*arguments, "stream=false"]))) == "".join(pieces)
    assert "".join(text_pieces(parse([*arguments[:-1], "seed=3"]))) != "".join(pieces)


def test_the_command_says_what_is_wrong_and_nothing_else(tmp_path):
    shown = command_here("generate.py", f"run={tmp_path}", "prompt=a")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert (
        shown.stderr.removeprefix("loading the run ...\n") == f"run={tmp_path} is not a run's folder: it has no config.yaml.\n"
    )


def test_stopping_promises_nothing(leave_run, monkeypatch):
    def interrupted(*arguments: object, **settings: object) -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    monkeypatch.setattr("cope.run.generation.generate", interrupted)
    folder = leave_run("pe=none", "task=counting")
    shown = command_here("generate.py", f"run={folder.path}", "prompt=a")
    assert (shown.returncode, shown.stdout) == (INTERRUPTED, "a =\n")
    assert shown.stderr.removeprefix("loading the run ...\n") == ""


def test_help_names_every_key():
    shown = command_here("generate.py", "--help").stdout
    assert all(f"{key}=" in shown for key in get_type_hints(GenerationSettings))


def test_what_a_run_cannot_do_is_told_before_any_text(leave_run):
    folder = leave_run("pe=absolute", "task=counting")

    def refused(said: str, *arguments: str) -> None:
        with pytest.raises(UserError, match=said):
            text_pieces(parse([f"run={folder.path}", *arguments]))  # not even iterated

    refused("prompt: 'pas;' is not a word of task=counting; allowed: .*Did you mean 'pass;'", "prompt=a = 0 ; pas;")
    refused("prompt=' ' has no token of task=counting; allowed: at least one", "prompt= ")
    refused("num_tokens=200 after a prompt of 9 .*a sequence of 208 tokens is longer than the 47", f"prompt={PROGRAM}")
    weights = folder.best_checkpoint.read_bytes()
    folder.best_checkpoint.write_bytes(weights[:1000])
    refused("best.pt cannot be read .*damaged", f"prompt={PROGRAM}")
    config = folder.read_config()
    assert config is not None
    folder.best_checkpoint.write_bytes(weights)
    folder.write_config(config | {"model": config["model"] | {"dim": 32}})
    refused("best.pt is not of the model that .*config.yaml describes: size mismatch", f"prompt={PROGRAM}")
    folder.best_checkpoint.unlink()
    refused("seed=1 has no checkpoint yet .*allowed: a run that was validated", f"prompt={PROGRAM}")


def test_a_mistyped_run_is_guessed(leave_run, tmp_path):
    leave_run("pe=none", "task=counting")
    (tmp_path / "outputs" / "code").mkdir()
    for typed, said in (
        ("outputs/seed=2", "outputs/seed=2 does not exist. Did you mean 'seed=1'?"),
        ("output/seed=1", "output does not exist. Did you mean 'outputs'?"),
        ("outputs/nope", "outputs/nope does not exist."),  # half of its letters are those of "code"
    ):
        with pytest.raises(UserError) as refused:
            text_pieces(parse([f"run={tmp_path / typed}", "prompt=a"]))
        assert str(refused.value).endswith(said)


# ---- words and text ------------------------------------------------------------------------------------------------------


def test_words_survive_the_way_to_tokens_and_back(words_task):
    @settings(max_examples=30)  # of each task
    @given(words=st.lists(st.sampled_from(words_task.vocabulary)), space=st.sampled_from([" ", "\n", "  \t "]))
    def survive(words: list[str], space: str) -> None:
        tokens = words_task.encode(space.join(words))
        assert [words_task.vocabulary[token] for token in tokens] == words
        assert words_task.decode(tokens) == " ".join(words)

    survive()


@pytest.fixture
def words_task(compose, task_name) -> Task:
    """Every task whose tokens are words; those with a tokenizer of their own have tests of their own."""
    config = compose(f"task={task_name}")
    if get_class(config.task["_target_"]).encode is not Task.encode:
        pytest.skip("has a tokenizer of its own")
    task = build(config.task, "task")
    assert isinstance(task, Task)
    return task


# Any bytes at all, too, such as a model writes that has learned little.
@given(prompt=st.text(min_size=1).map(str.encode), following=st.text().map(str.encode) | st.binary())
def test_text_comes_whole_where_a_character_is_several_tokens(prompt, following):
    def decode(tokens) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")

    asked: list[int] = []

    def one_by_one() -> Iterator[int]:
        for token in following:
            asked.append(token)
            yield token

    shown = ""
    for piece in _as_text(decode, list(prompt), one_by_one()):
        shown += piece
        whole = decode([*prompt, *asked])
        if len(asked) < len(following):
            assert whole.startswith(shown)  # what is shown is never taken back
        if not whole.endswith("\ufffd"):
            assert shown == whole  # and comes as soon as it is sure
    assert shown == decode([*prompt, *following])
