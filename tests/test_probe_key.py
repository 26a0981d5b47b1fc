"""The key of the word-counting probe goes to the server alone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from probe_server import KEY, Server, completion, everything_below, refusal, settings

from cope.errors import UserError
from cope.probe import models
from cope.probe.word_counting import failures_line, probe_table, run_probe


def test_the_key_goes_into_the_header_and_nowhere_else(
    server: Server, tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv(models.KEY_VARIABLE, KEY)
    # The server repeats the key wherever it can.
    server.queue = [completion(f"0, and your key is {KEY}"), *[refusal(500, f"{'x' * 190} {KEY}")] * (models.RETRIES + 1)]
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
        monkeypatch.setenv(models.KEY_VARIABLE, key)
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
    monkeypatch.setenv(models.KEY_VARIABLE, key)
    with pytest.raises(UserError, match="OPENAI_API_KEY") as told:
        run_probe(settings(server), str(tmp_path))
    assert "secret" not in str(told.value)
    assert server.requests == []


def test_redirects_are_not_followed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(models.KEY_VARIABLE, KEY)
    other = Server()
    try:
        server.queue = [refusal(302, Location=f"{other.address}/models")]
        with pytest.raises(UserError, match="redirects"):
            run_probe(settings(server), str(tmp_path))
        assert other.authorizations == other.requests == []
    finally:
        other.close()


def test_a_key_sent_without_encryption_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(models.KEY_VARIABLE, KEY)
    for endpoint in ("https://host.example/v1", "http://localhost:1/v1"):
        models.Endpoint(settings(endpoint=endpoint, model="m"))
    assert caplog.text == ""
    models.Endpoint(settings(endpoint="http://host.example/v1", model="m"))
    assert "is sent to http://host.example/v1 unencrypted" in caplog.text
    assert KEY not in caplog.text
