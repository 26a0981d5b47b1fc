"""The word-counting probe: its settings, local models, and the command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from probe_server import KEY, Server, completion, everything_below, refusal, settings
from runs import clean_environment, command_here

from cope.errors import UserError
from cope.probe.questions import paper_questions
from cope.probe.word_counting import run_probe

# ---- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"endpoint": "localhost:8000/v1"}, r"endpoint=localhost:8000/v1 is not an address of a server; allowed: http://"),
        ({"endpoint": "http://host:port/v1"}, "endpoint is not an address that can be read"),
        ({"endpoint": "http:///v1"}, "endpoint=http:///v1 is not an address"),
        ({"endpoint": 8000}, "endpoint=8000 is not an address"),
        ({"model": None}, "model must be set"),
        ({"local": "/some/folder"}, "both set"),
        ({"temperature": "warm"}, "temperature='warm' has the wrong type; allowed: float"),
        ({"temperature": float("nan")}, "temperature=nan is out of range"),
        ({"top_p": 1.5}, r"top_p=1\.5 is out of range; allowed: 0 to 1"),
        ({"samples": 0}, "samples=0 is too small; allowed: 1 or more"),
        ({"samples": 2.5}, r"samples=2\.5 has the wrong type; allowed: int"),
        ({"seed": True}, "seed=True has the wrong type"),
        ({"max_tokens": 0}, "max_tokens=0 is too small"),
        ({"prompts": -1}, "prompts=-1 is too small"),
        ({"lengths": 4}, "lengths=4 has the wrong type; allowed: list"),
        ({"lengths": [4, 1]}, "lengths=1 is too small; allowed: 2 or more"),
        ({"lengths": [4, 4]}, "names a length twice"),
        ({"timeout_s": 0}, r"timeout_s=0\.0 is out of range"),
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
    with pytest.raises(UserError, match=r"local=some/model needs the package transformers.*install -e '\.\[transformers\]'"):
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
        cwd=folder, env={**clean_environment(), **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_command_without_a_model_shows_what_is_missing_and_the_papers_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = command_here("scripts/probe_llm.py")
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
