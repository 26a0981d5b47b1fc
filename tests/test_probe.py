"""The word-counting probe: prompts and their truth, reading replies, and asking a real server on this machine."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from runs import clean_environment

from cope.errors import UserError
from cope.probe import client
from cope.probe.prompts import FAMILIES, NOUNS, ORDINALS, TIMES, VERBS, count_word, generated_questions, paper_questions
from cope.probe.run import run_probe
from cope.probe.scoring import NUMBER_WORDS, outcome, parse_answer
from cope.probe.settings import ProbeSettings
from cope.probe.table import failures_line, probe_table
from cope.results.record import RunFolder

KEY = "sk-very-secret-0123456789"
Answer = tuple[int, dict[str, str], bytes]


def completion(text: Any, **message: Any) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    return 200, {}, json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def refusal(status: int, message: str = "", **headers: str) -> Answer:
    return status, headers, json.dumps({"error": {"message": message, "type": "test"}}).encode()


class Server:
    """A chat-completions server whose answers a test decides; it notes what it was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Answer] = lambda body: completion("0")
        self.queue: list[Answer] = []  # given first
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/chat/completions"
                server.requests.append(body)
                server.authorizations.append(self.headers["Authorization"])
                self._send(server.queue.pop(0) if server.queue else server.answer(body))

            def do_GET(self) -> None:
                assert self.path == "/v1/models"
                self._send((200, {}, json.dumps({"data": [{"id": "small-chat"}, {"id": "large-chat"}]}).encode()))

            def _send(self, answer: Answer) -> None:
                status, headers, content = answer
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(client.KEY_VARIABLE, raising=False)
    running = Server()
    yield running
    running.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which are noted instead of made."""
    noted: list[float] = []
    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=noted.append))
    return noted


def settings(server: Server | None = None, **changes: Any) -> ProbeSettings:
    """The paper's two prompts alone, unless ``prompts`` is given."""
    defaults: dict[str, Any] = {
        "endpoint": server.address if server else None, "model": "small-chat" if server else None, "local": None,
        "temperature": 1.0, "top_p": 1.0, "max_tokens": 512, "samples": 1, "seed": 1, "lengths": [2, 4], "prompts": 0,
        "timeout_s": 5.0,
    }  # fmt: skip
    return ProbeSettings(**{**defaults, **changes})


# ---- prompts -------------------------------------------------------------------------------------------------------------


def test_the_papers_prompts() -> None:
    alice, book = paper_questions()
    assert (alice.truth, book.truth) == (0, 0)
    assert alice.prompt.endswith('\n\nTell me how many times word "Alice" is mentioned in the last sentence.')
    assert alice.prompt.replace('"Alice"', '"book"') == book.prompt
    text = alice.prompt.split("\n\n")[0]
    # Llama's answer of 2 is what the sentence before holds.
    assert (count_word(text, "Alice"), count_word(text, "book")) == (2, 2)


def test_only_whole_words_count() -> None:
    assert count_word("The key, a Key; keys, monkey, key-ring", "key") == 3


def recount(prompt: str) -> int:
    """The truth by another way than the generator's: from the finished prompt alone, without its regular expression."""
    text, question = prompt.split("\n\n")
    word = question.split('"')[1]
    sentences = [sentence.strip() for sentence in text.split(".") if sentence.strip()]
    if "in the last sentence" in question:
        sentences = sentences[-1:]
    elif "sentence from the end" in question:
        place = next(number for number, name in ORDINALS.items() if f"the {name} sentence" in question)
        sentences = [sentences[-place]]
    else:
        assert "in the text?" in question
    return sum(token.strip(",").lower() == word for sentence in sentences for token in sentence.split())


def test_the_truth_of_generated_prompts_is_what_their_text_says() -> None:
    questions = generated_questions(seed=3, lengths=[2, 5, 9], count=8)
    assert len({question.name for question in questions}) == len({question.prompt for question in questions}) == 3 * 3 * 8
    for question in questions:
        assert recount(question.prompt) == question.truth, question
        assert question.prompt.split("\n\n")[0].count(".") == question.length
    for family in FAMILIES:
        truths = {question.truth for question in questions if question.family == family}
        assert {0, 1, 2, 3} <= truths or (family == "whole_text" and 0 in truths and len(truths) > 4)


def test_reading_a_neighbouring_sentence_gives_another_answer() -> None:
    for question in generated_questions(seed=3, lengths=[4], count=8):
        if question.family == "last_sentence":
            assert recount(question.prompt.replace("the last sentence", "the second sentence from the end")) != question.truth


def test_generated_prompts_depend_on_the_seed_alone() -> None:
    few, many = generated_questions(1, [4], 2), generated_questions(1, [2, 4], 5)
    assert [question for question in many if question in few] == few
    assert not {question.prompt for question in generated_questions(2, [4], 2)} & {question.prompt for question in few}


def test_texts_hold_nothing_that_could_be_read_as_an_answer() -> None:
    words = {word for phrase in (*NOUNS, *VERBS, *TIMES) for word in phrase.split()}
    assert not words & set(NUMBER_WORDS)
    assert all(parse_answer(question.prompt) is None for question in generated_questions(1, [2, 8], 4))


# ---- reading replies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("0", 0),
        ("**3**.", 3),
        (r"\boxed{12}", 12),
        ('The word "Alice" is mentioned zero times.', 0),
        ('In the last sentence, the word "Alice" is mentioned 1 time.', 1),
        ("It is mentioned twice: 1. here 2. there", 2),
        ("Once.", 1),
        ("Twenty-one times", 21),
        ("twenty one", 21),
        ("sixteen", 16),
        ("seventy", 70),
        ("It is there two times, or 3.", 2),
        ("In the 2nd sentence: 5", 5),
        ("-1", -1),
        ("1,000 words or 2.5 pages", None),
        ("The word is not mentioned in the last sentence.", None),
        ("Nobody is alone; someone weighted a stone.", None),
        ("", None),
        ("<think>It says 4, no, 5.</think>\n\n2", 2),
        ("It says 4, no, 5.</think>2", 2),
        ("<think>It says 4", None),
    ],
)
def test_the_first_whole_number_is_the_answer(reply: str, answer: int | None) -> None:
    assert parse_answer(reply) == answer


def test_a_reply_without_a_number_is_neither_right_nor_wrong() -> None:
    assert [outcome(0, 0), outcome(1, 0), outcome(None, 0)] == ["right", "wrong", "no answer"]


# ---- asking a server -----------------------------------------------------------------------------------------------------


def test_a_probe_asks_scores_and_writes(server: Server, tmp_path: Path) -> None:
    chosen = settings(server, prompts=4, temperature=0.6, top_p=0.9, samples=2)
    truths = {question.prompt: question.truth for question in chosen.questions()}

    def answer(body: dict[str, Any]) -> Answer:
        prompt = body["messages"][0]["content"]
        if "in the text?" in prompt:
            return completion("I cannot tell.")
        return completion(f"It is {truths[prompt] + ('book' in prompt.splitlines()[-1])} times.")

    server.answer = answer
    result, path = run_probe(chosen, str(tmp_path))
    assert path.relative_to(tmp_path).parts[:2] == ("probe", "small-chat")
    assert json.loads(path.read_text()) == result
    assert len(server.requests) == 2 * (2 + 3 * 2 * 4)
    first, second = server.requests[:2]
    assert {key: first[key] for key in ("model", "temperature", "top_p", "max_tokens")} == {
        "model": "small-chat", "temperature": 0.6, "top_p": 0.9, "max_tokens": 512
    }  # fmt: skip
    assert first["messages"] == second["messages"] == [{"role": "user", "content": paper_questions()[0].prompt}]
    assert first["seed"] != second["seed"]
    assert server.authorizations[0] is None
    scores = {(score["family"], score["sentences"]): score for score in result["scores"]}
    assert scores["paper_alice", 2] == {
        "family": "paper_alice", "sentences": 2, "right": 2, "wrong": 0, "no answer": 0, "failed": 0
    }  # fmt: skip
    assert scores["paper_book", 2]["wrong"] == 2
    assert scores["whole_text", 4]["no answer"] == 8
    reply = result["questions"][1]["replies"][0]
    assert (reply["reply"], reply["answer"], reply["outcome"]) == ("It is 1 times.", 1, "wrong")
    table = probe_table(result)
    assert re.search(r"paper_alice +2 100\.00 \(34\.24 to 100\.00\) +0\.00 \(0\.00 to 65\.76\) .* 2 +0\n", table), table
    assert re.search(r"whole_text +4 +0\.00 \(0\.00 to 32\.44\) .* 100\.00 \(67\.56 to 100\.00\) +8 +0\n", table), table
    assert "paper_book: the truth is 0, the model said 1, 1" in table
    assert "GPT-4 (temperature 1, top-p 1) said 1 and 1" in table
    assert "rebuilt" in table
    assert "No answer, for example: 'I cannot tell.'" in table
    assert failures_line(result) == ""


def test_what_is_answered_is_not_asked_again(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    server.queue = [completion("0"), *[refusal(500, "out of memory")] * client.ATTEMPTS]
    result, path = run_probe(settings(server, prompts=1), str(tmp_path))
    assert [score["failed"] for score in result["scores"]] == [0, 1, 0, 0, 0, 0, 0, 0]
    told = "1 of 8 requests failed: server error (HTTP 500): out of memory; tried 4 times. The same command asks them again."
    assert failures_line(result) == told
    assert result["questions"][1]["replies"] == [
        {"sample": 0, "outcome": "failed", "error": "server error (HTTP 500): out of memory; tried 4 times"}
    ]
    failing = server.requests[1]  # with its prompt and the seed of its sampling
    assert failing["messages"][0]["content"] == paper_questions()[1].prompt
    server.requests.clear()
    result, _ = run_probe(settings(server, prompts=1), str(tmp_path))
    assert server.requests == [failing]
    assert failures_line(result) == ""
    # A third time: nothing to ask, so nobody has to be there to answer.
    finished = path.read_bytes()
    run_probe(settings(server, prompts=1), str(tmp_path), open_responder=lambda _: pytest.fail("nothing is to be asked"))
    assert path.read_bytes() == finished
    # Other settings are another run.
    assert run_probe(settings(server, prompts=1, seed=2), str(tmp_path))[1] != path


def test_a_resumed_probe_asks_what_an_unbroken_one_would_have_asked(server: Server, tmp_path: Path) -> None:
    run_probe(settings(server, samples=2), str(tmp_path / "unbroken"))
    unbroken = list(server.requests)
    server.requests.clear()
    server.queue = [completion("0"), refusal(401)]
    with pytest.raises(UserError, match="HTTP 401"):
        run_probe(settings(server, samples=2), str(tmp_path / "resumed"))
    assert not list((tmp_path / "resumed").rglob("result.json"))
    run_probe(settings(server, samples=2), str(tmp_path / "resumed"))
    del server.requests[1]  # the one that was refused
    assert server.requests == unbroken


@pytest.mark.parametrize("missing", [20, 1])  # bytes; without its end, the next line would be appended to it
def test_a_damaged_line_is_asked_again_and_the_others_are_kept(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, missing: int
) -> None:
    _, path = run_probe(settings(server, prompts=1), str(tmp_path))
    file = path.with_name("answers.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[:-missing])
    server.requests.clear()
    with caplog.at_level(logging.WARNING):
        run_probe(settings(server, prompts=1), str(tmp_path))
    assert len(server.requests) == 1
    assert file.read_bytes() == whole
    assert "1 damaged line(s)" in caplog.text


def test_two_probes_at_once_do_not_write_to_one_folder(server: Server, tmp_path: Path) -> None:
    other = RunFolder(settings(server).folder(str(tmp_path)))
    other.lock()
    with pytest.raises(UserError, match="already running"):
        run_probe(settings(server), str(tmp_path))
    assert server.requests == []


# ---- what goes wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        refusal(429, "slow down"),
        refusal(503, "loading"),
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'["choices"]'),
        (200, {}, b'{"choices": [{"message": {"content": 3}}]}'),
        (502, {}, b"<html>bad gateway</html>"),
    ],
    ids=["rate limit", "server error", "cut JSON", "no choices", "a list", "no text", "HTML"],
)
def test_what_may_pass_is_tried_again(server: Server, tmp_path: Path, pauses: list[float], first: Answer) -> None:
    server.queue = [first, first, completion("0"), completion("0")]
    result, _ = run_probe(settings(server), str(tmp_path))
    assert [score["right"] for score in result["scores"]] == [1, 1]
    assert pauses == [1.0, 2.0]
    assert len(server.requests) == 4


def test_a_server_may_ask_for_a_pause_but_not_for_any(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    server.queue = [refusal(429, Retry_After="7"), refusal(429, Retry_After="86400"), refusal(429, Retry_After="Wed, 1 Jan")]
    run_probe(settings(server), str(tmp_path))
    assert pauses == [7.0, client.LONGEST_PAUSE_S, 4.0]


def test_a_request_that_keeps_failing_does_not_stop_the_others(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    server.queue = [(200, {}, b"nonsense")] * client.ATTEMPTS
    result, _ = run_probe(settings(server), str(tmp_path))
    assert [score["failed"] for score in result["scores"]] == [1, 0]
    assert "the server's answer is not JSON; tried 4 times" in failures_line(result)
    assert re.search(r"paper_alice +2 +- +- +- +0 +1\n", probe_table(result))


def test_a_refused_prompt_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    server.queue = [refusal(400, "the context is too long")]
    result, _ = run_probe(settings(server), str(tmp_path))
    assert "the request is refused (HTTP 400): the context is too long." in failures_line(result)
    assert len(server.requests) == 2


def test_silence_is_a_failure_of_that_request(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        if '"book"' in body["messages"][0]["content"]:
            time.sleep(0.4)
        return completion("0")

    server.answer = answer
    result, _ = run_probe(settings(server, timeout_s=0.1), str(tmp_path))
    assert [score["failed"] for score in result["scores"]] == [0, 1]
    assert "no answer within 0.1 s (timeout_s)" in failures_line(result)


def test_a_server_that_is_not_there_is_told_once(tmp_path: Path, server: Server, pauses: list[float]) -> None:
    server.close()
    with pytest.raises(UserError, match=r"^endpoint=http://127.0.0.1:\d+/v1: the server cannot be reached \(.*refused\)"):
        run_probe(settings(server), str(tmp_path))
    assert len(pauses) == client.ATTEMPTS - 1


def test_an_unknown_model_is_told_with_those_there_are(server: Server, tmp_path: Path) -> None:
    server.queue = [refusal(404, "no such model")]
    with pytest.raises(UserError) as told:
        run_probe(settings(server, model="smal-chat"), str(tmp_path))
    assert str(told.value) == (
        f"endpoint={server.address} model=smal-chat is not known (HTTP 404): no such model. "
        "Allowed: large-chat, small-chat. Did you mean 'small-chat'?"
    )


def test_an_empty_reply_is_no_answer(server: Server, tmp_path: Path) -> None:
    server.answer = lambda body: completion(None, reasoning_content="it is 0")
    result, _ = run_probe(settings(server), str(tmp_path))
    assert [score["no answer"] for score in result["scores"]] == [1, 1]
    assert "for example" not in probe_table(result)


# ---- the key -------------------------------------------------------------------------------------------------------------


def everything_below(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_the_key_goes_into_the_header_and_nowhere_else(
    server: Server, tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv(client.KEY_VARIABLE, KEY)
    # The server repeats the key wherever it can.
    server.queue = [completion(f"0, and your key is {KEY}"), *[refusal(500, f"{'x' * 190} {KEY}")] * client.ATTEMPTS]
    with caplog.at_level(logging.DEBUG):
        result, _ = run_probe(settings(server), str(tmp_path), show_progress=True)
        print(probe_table(result), failures_line(result))
    assert set(server.authorizations) == {f"Bearer {KEY}"}
    assert result["questions"][0]["replies"][0]["reply"] == "0, and your key is ***"
    written = everything_below(tmp_path)
    assert '"prompt"' in written
    told = "".join(capfd.readouterr())
    assert "HTTP 500" in told
    for text in (written, told, caplog.text):
        assert "very-secret" not in text
        assert "sk-v" not in text  # nor its beginning, where the line was cut
        assert "Bearer" not in text


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("key", [KEY, None])
def test_a_refused_key_is_told_and_not_shown(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, key: str | None
) -> None:
    if key:
        monkeypatch.setenv(client.KEY_VARIABLE, key)
    server.queue = [refusal(status, f"Incorrect API key provided: {KEY[:8]}*****{KEY[-4:]}")]
    with pytest.raises(UserError) as told:
        run_probe(settings(server), str(tmp_path))
    have = "refuses the key in OPENAI_API_KEY" if key else "asks for a key, and OPENAI_API_KEY is not set"
    assert str(told.value) == (
        f"endpoint={server.address} {have} (HTTP {status}). Set the environment variable OPENAI_API_KEY to a key for it."
    )
    assert len(server.requests) == 1


@pytest.mark.parametrize("key", ["sk-secret\nsecond-line", "sk-secret with spaces", "sk-secret-\u00e9"])
def test_a_key_that_is_none_is_refused_and_not_shown(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(client.KEY_VARIABLE, key)
    with pytest.raises(UserError, match="OPENAI_API_KEY") as told:
        run_probe(settings(server), str(tmp_path))
    assert "secret" not in str(told.value)
    assert server.requests == []


def test_redirects_are_not_followed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(client.KEY_VARIABLE, KEY)
    other = Server()
    try:
        server.queue = [refusal(302, Location=f"{other.address}/models")]
        with pytest.raises(UserError, match="redirects"):
            run_probe(settings(server), str(tmp_path))
        assert other.authorizations == other.requests == []
    finally:
        other.close()


def test_a_key_sent_without_encryption_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(client.KEY_VARIABLE, KEY)
    for endpoint in ("https://host.example/v1", "http://localhost:1/v1"):
        client.Endpoint(settings(endpoint=endpoint, model="m"))
    assert caplog.text == ""
    client.Endpoint(settings(endpoint="http://host.example/v1", model="m"))
    assert "is sent to http://host.example/v1 unencrypted" in caplog.text
    assert KEY not in caplog.text


# ---- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"endpoint": "localhost:8000/v1"}, r"endpoint=localhost:8000/v1 is not an address of a server; allowed: http://"),
        ({"endpoint": "http://host:port/v1"}, "endpoint is not an address that can be read"),
        ({"endpoint": "http:///v1"}, "endpoint=http:///v1 is not an address"),
        ({"endpoint": 8000}, "endpoint=8000 is not a name"),
        ({"model": None}, "model must be set"),
        ({"local": "/some/folder"}, "both set"),
        ({"temperature": "warm"}, "temperature=warm is not a number; allowed: 0 to 2"),
        ({"temperature": float("nan")}, "temperature=nan is out of range"),
        ({"top_p": 1.5}, r"top_p=1\.5 is out of range; allowed: 0 to 1"),
        ({"samples": 0}, "samples=0 is too small; allowed: 1 or more"),
        ({"samples": 2.5}, r"samples=2\.5 is not a whole number"),
        ({"seed": True}, "seed=True is not a whole number"),
        ({"max_tokens": 0}, "max_tokens=0 is too small"),
        ({"prompts": -1}, "prompts=-1 is too small"),
        ({"lengths": 4}, "lengths=4 is not a list"),
        ({"lengths": [4, 1]}, "lengths=1 is too small; allowed: 2 or more"),
        ({"lengths": [4, 4]}, "names a length twice"),
        ({"timeout_s": 0}, "timeout_s=0 is out of range"),
        ({"endpoint": None, "local": "m"}, "model=m has no effect"),
        ({"endpoint": None, "model": None, "local": "m", "max_tokens": None}, "max_tokens=null"),
    ],
)
def test_bad_settings_are_told_in_one_message(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        settings(**{"endpoint": "http://host/v1", "model": "m", **changes})


@pytest.mark.parametrize("endpoint", ["http://user:hidden@host/v1", "http://hidden@host/v1", "https://host/v1?api-key=hidden"])
def test_an_address_with_a_secret_is_refused_and_not_shown(endpoint: str) -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY") as told:
        settings(endpoint=endpoint, model="m")
    assert "hidden" not in str(told.value)


@pytest.mark.parametrize("model", ["../../up", "meta-llama/Llama-2-70b-chat-hf", "llama3:8b", "..", "/", "x" * 300])
def test_any_model_has_a_folder_of_its_own(model: str, tmp_path: Path) -> None:
    folder = settings(endpoint="http://host/v1", model=model).folder(str(tmp_path))
    assert folder.resolve().parent.parent == tmp_path.resolve() / "probe"
    folder.mkdir(parents=True)


# ---- a local model -------------------------------------------------------------------------------------------------------


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"local=some/model needs the package transformers.*pip install transformers"):
        run_probe(settings(local="some/model"), str(tmp_path))


class StandInTokens(dict[str, torch.Tensor]):
    """What a tokenizer returns, as far as it is used."""

    def to(self, device: torch.device) -> StandInTokens:
        return self


class StandInTokenizer:
    """Letters are tokens; has a chat template if asked to."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def __call__(self, text: str, return_tensors: str) -> StandInTokens:
        assert return_tensors == "pt"
        return StandInTokens(input_ids=torch.tensor([[ord(letter) for letter in text]]))

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> StandInTokens:
        assert options == {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        return self(f"<user>{messages[0]['content']}<model>", "pt")

    def decode(self, tokens: torch.Tensor, skip_special_tokens: bool) -> str:
        return "".join(chr(token) for token in tokens.tolist())


class StandInModel:
    """Continues every prompt with a random digit, and notes how it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.prompts: list[str] = []

    def to(self, device: torch.device) -> StandInModel:
        return self

    def eval(self) -> StandInModel:
        return self

    def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        self.asked.append(options)
        self.prompts.append("".join(chr(token) for token in input_ids[0].tolist()))
        return torch.cat([input_ids, torch.randint(ord("0"), ord("9") + 1, (1, 1))], dim=1)


@pytest.mark.parametrize("chat_template", ["a template", None])
def test_a_local_model_is_asked_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat_template: str | None) -> None:
    model = StandInModel()
    package = ModuleType("transformers")
    package.AutoTokenizer = SimpleNamespace(from_pretrained=lambda name: StandInTokenizer(chat_template))  # type: ignore[attr-defined]
    package.AutoModelForCausalLM = SimpleNamespace(from_pretrained=lambda name: model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", package)
    chosen = settings(local="some/model", samples=8, temperature=0.6, top_p=0.9, max_tokens=9)
    result, path = run_probe(chosen, str(tmp_path))
    assert path.relative_to(tmp_path).parts[:2] == ("probe", "some_model")
    replies = [reply for question in result["questions"] for reply in question["replies"]]
    assert all(reply["answer"] == int(reply["reply"]) for reply in replies)
    assert len({reply["answer"] for reply in replies}) > 2
    assert model.asked[0] == {"max_new_tokens": 9, "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 0}
    prompt = paper_questions()[0].prompt
    assert model.prompts[0] == (f"<user>{prompt}<model>" if chat_template else prompt)
    # Sampling does not depend on what was asked before.
    assert run_probe(chosen, str(tmp_path / "again"))[0]["questions"] == result["questions"]
    run_probe(settings(local="some/model", temperature=0.0), str(tmp_path))
    assert model.asked[-1] == {"max_new_tokens": 512, "do_sample": False}


def test_a_local_model_that_cannot_be_loaded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(f"{name} is not a local folder\nand more")

    package = ModuleType("transformers")
    package.AutoTokenizer = SimpleNamespace(from_pretrained=fail)  # type: ignore[attr-defined]
    package.AutoModelForCausalLM = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", package)
    with pytest.raises(UserError, match=r"^local=nowhere cannot be loaded \(OSError: nowhere is not a local folder\); allowed"):
        run_probe(settings(local="nowhere"), str(tmp_path))


# ---- the command ---------------------------------------------------------------------------------------------------------


def probe_command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "probe_llm.py"), *arguments],
        cwd=folder, env={**clean_environment(), **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_command_without_a_model_shows_what_is_missing_and_the_papers_figures(tmp_path: Path) -> None:
    shown = probe_command(tmp_path)
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert shown.stderr.startswith("There is no model to ask: set endpoint=")
    assert "GPT-4 (temperature 1, top-p 1) said 1 and 1" in shown.stderr
    assert "Llama-2-70B-Chat (temperature 0.6, top-p 0.9) said 2 and 2" in shown.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command(server: Server, tmp_path: Path) -> None:
    server.queue = [completion("none at all"), refusal(400, f"bad request of {KEY}")]
    arguments = (f"endpoint={server.address}", "model=org/small-chat:8b", "prompts=1", "lengths=[2,3]")
    shown = probe_command(tmp_path, *arguments, OPENAI_API_KEY=KEY, no_proxy="127.0.0.1")
    assert shown.returncode == 1
    assert shown.stderr == (
        "1 of 8 requests failed: the request is refused (HTTP 400): bad request of ***. The same command asks them again.\n"
    )
    assert "No answer, for example: 'none at all'" in shown.stdout
    assert re.search(r"^written to: outputs/probe/org_small-chat_8b/\w{8}/result.json$", shown.stdout, re.MULTILINE)
    assert server.authorizations[0] == f"Bearer {KEY}"
    assert "very-secret" not in shown.stdout + everything_below(tmp_path)
