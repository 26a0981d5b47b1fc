"""The word-counting probe asks a real server on this machine, whatever that answers."""

from __future__ import annotations

import json
import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from probe_server import Answer, Server, completion, refusal, settings

from cope.errors import UserError
from cope.probe import models
from cope.probe.questions import paper_questions
from cope.probe.word_counting import failures_line, probe_table, run_probe
from cope.run.folder import RunFolder


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
    assert re.search(r"paper_alice +2 +100\.0 \(34\.2 to 100\.0\) +0\.0 \(0\.0 to 65\.8\) +0\n.*  replies 2\n", table), table
    assert re.search(
        r"whole_text +4 +0\.0 \(0\.0 to 32\.4\) .* 0\n +no answer % 100\.0 \(67\.6 to 100\.0\)  replies 8\n", table
    ), table
    assert "paper_book: the truth is 0, the model said 1, 1" in table
    assert "GPT-4 (temperature 1, top-p 1) said 1 and 1" in table
    assert "rebuilt" in table
    assert "No answer, for example: 'I cannot tell.'" in table
    assert failures_line(result) == ""


def test_what_is_answered_is_not_asked_again(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    server.queue = [completion("0"), *[refusal(500, "out of memory")] * (models.RETRIES + 1)]
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
    assert "1 damaged line;" in caplog.text


def test_two_probes_at_once_do_not_write_to_one_folder(server: Server, tmp_path: Path) -> None:
    other = RunFolder(settings(server).folder(str(tmp_path)))
    other.lock()
    with pytest.raises(UserError, match="already running"):
        run_probe(settings(server), str(tmp_path))
    assert server.requests == []


# ---- what goes wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [refusal(429, "slow down"), refusal(503, "loading"), (502, {}, b"<html>bad gateway</html>")])
def test_what_may_pass_is_tried_again(server: Server, tmp_path: Path, pauses: list[float], first: Answer) -> None:
    server.queue = [first, first, completion("0"), completion("0")]
    result, _ = run_probe(settings(server), str(tmp_path))
    assert [score["right"] for score in result["scores"]] == [1, 1]
    assert len(pauses) == 2 and 0 < pauses[0] < pauses[1]
    assert len(server.requests) == 4


def test_a_server_may_ask_for_a_pause_but_not_for_any(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    server.queue = [refusal(429, Retry_After="7"), completion("0"), refusal(429, Retry_After="86400")]
    result, _ = run_probe(settings(server), str(tmp_path))
    assert pauses == [7.0]
    assert [score["failed"] for score in result["scores"]] == [0, 1]


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"nonsense"),
        (200, {"Content_Type": "application/json"}, b'{"choices": [{"mess'),
        (200, {"Content_Type": "application/json"}, b'{"choices": []}'),
        (200, {"Content_Type": "application/json"}, b'["choices"]'),
        (200, {"Content_Type": "application/json"}, b'{"choices": [{"message": {"content": 3}}]}'),
    ],
    ids=["no JSON", "cut JSON", "no choices", "a list", "no text"],
)
def test_an_answer_that_is_none_does_not_stop_the_others(server: Server, tmp_path: Path, answer: Answer) -> None:
    server.queue = [answer]
    result, _ = run_probe(settings(server), str(tmp_path))
    assert [score["failed"] for score in result["scores"]] == [1, 0]
    assert "the server's answer is not a chat completion" in failures_line(result)
    assert re.search(r"paper_alice +2 +-( +-)+( +0)? +1\n", probe_table(result))


def test_a_refused_prompt_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    server.queue = [refusal(400, "the context is too long")]
    result, _ = run_probe(settings(server), str(tmp_path))
    assert "the request is refused (HTTP 400): the context is too long." in failures_line(result)
    assert len(server.requests) == 2


def test_silence_is_a_failure_of_that_request(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    given_up = threading.Event()

    def answer(body: dict[str, Any]) -> Answer:
        if '"book"' in body["messages"][0]["content"]:
            given_up.wait()
        return completion("0")

    server.answer = answer
    result, _ = run_probe(settings(server, timeout_s=0.25), str(tmp_path))
    given_up.set()
    assert [score["failed"] for score in result["scores"]] == [0, 1]
    assert "no answer within 0.25 s (timeout_s)" in failures_line(result)


def test_a_server_that_is_not_there_is_told_once(tmp_path: Path, server: Server, pauses: list[float]) -> None:
    server.close()
    with pytest.raises(UserError, match=r"^endpoint=http://127.0.0.1:\d+/v1: the server cannot be reached \(.*refused\)"):
        run_probe(settings(server), str(tmp_path))
    assert len(pauses) == (models.RETRIES + 1) - 1


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
