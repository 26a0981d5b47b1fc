"""W&B: its client is asked who is logged in and where; a network that is not there stops nothing; a run is one record of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from omegaconf import DictConfig
from runs import after_step, folder_of, run

from cope.errors import Interrupted, UserError
from cope.run.folder import RunFolder
from cope.run.loggers import WandbLogger
from cope.run.loop import TrainingLoop
from cope.sweep.jobs import Job, tell_end

wandb = pytest.importorskip("wandb")
get_core_path = pytest.importorskip("wandb.util").get_core_path

Compose = Callable[..., DictConfig]
KEY = "0123456789abcdef" * 2 + "01234567"
CONFIG = {"task": {"name": "counting"}, "pe": {"name": "none"}, "seed": 1, "scale": "smoke"}
SHORT = ("logger=wandb", "pe=none", "trainer.steps=8", "trainer.eval_every=2", "trainer.log_every=2", "task.num_test=16")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty one, and a client that has read no settings yet."""
    for variable in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    wandb.teardown()
    yield tmp_path
    wandb.teardown()


def records(folder: Path) -> list[dict[str, Any]]:
    """The one record that W&B has in a run's folder, as its own reader sees it."""
    wandb.teardown()  # ends the process that writes it
    (path,) = folder.glob("wandb/*run-*/*.wandb")
    # What `wandb leet inspect --json` starts, which imports the whole client first.
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(path), str(folder)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in shown.splitlines()]


def history(folder: Path) -> list[tuple[int, set[str]]]:
    """Each step of the record, and the keys that were logged there."""
    items = [record["history"]["item"] for record in records(folder) if record["type"] == "history"]
    return [(item["_step"], {key for key in item if not key.startswith("_")}) for item in items]


# ---- who is logged in, and where ---------------------------------------------------------------------------------------


def test_nobody_is_logged_in() -> None:
    assert WandbLogger().mode == "offline"


def test_a_login_made_by_the_client_is_seen(home: Path) -> None:
    from wandb.sdk.lib.wbauth import wbnetrc

    wbnetrc.write_netrc_auth(host=wandb.setup().settings.base_url, api_key=KEY)
    assert WandbLogger().mode == "online"


def test_the_host_of_the_settings_file_is_asked(home: Path) -> None:
    settings = Path(wandb.setup().settings.settings_system)
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("[default]\nbase_url = http://wandb.example.org\n")
    (home / ".netrc").write_text(f"machine wandb.example.org\n  login user\n  password {KEY}\n")
    wandb.teardown()
    logger = WandbLogger()
    assert (logger.mode, logger.host) == ("online", "http://wandb.example.org")


def test_a_key_of_another_host_is_none(home: Path) -> None:
    (home / ".netrc").write_text(f"machine wandb.example.org\n  login user\n  password {KEY}\n")
    assert WandbLogger().mode == "offline"


@pytest.mark.parametrize(
    ("value", "mode"),
    [("online", "online"), ("run", "online"), ("offline", "offline"), ("dryrun", "offline"), ("disabled",) * 2],
)
def test_what_wandb_mode_says(value: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", value)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert WandbLogger().mode == mode


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WANDB_MODE": "ofline"}, "WANDB_MODE=ofline.*'offline'.*logger=none"),
        ({"WANDB_MODE": "shared"}, "WANDB_MODE=shared is not known; allowed: online, offline, disabled"),
        ({"WANDB_BASE_URL": "nonsense"}, "WANDB_BASE_URL=nonsense.*URL"),
        ({"WANDB_API_KEY": "short"}, "WANDB_API_KEY invalid.*40"),
        ({"WANDB_CONSOLE": "loud"}, "WANDB_CONSOLE=loud"),
        ({"WANDB_MODE": "online"}, "nobody is logged in at .*wandb login"),
    ],
)
def test_wrong_variables_are_named(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=expected):
        WandbLogger()


@pytest.mark.parametrize("project", ["a/b", "50%", "x" * 129, "", " "])
def test_a_project_that_cannot_be(project: str) -> None:
    with pytest.raises(UserError, match=r"^logger\.project="):
        WandbLogger(project=project)


def test_online_without_a_login() -> None:
    with pytest.raises(UserError, match=r"nobody is logged in at .*logger\.mode=offline"):
        WandbLogger(mode="online")


def test_disabled_writes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    caplog.set_level("INFO")
    logger = WandbLogger()
    logger.start(home, CONFIG, "an-id", [])
    logger.metrics({"train/loss": 1.0}, 1)
    logger.finish({})
    assert "disabled" in caplog.text and "sync" not in caplog.text
    assert not (home / "wandb").exists()


# ---- networks ----------------------------------------------------------------------------------------------------------


def hangs() -> Iterator[int]:
    """Takes what comes, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refuses() -> Iterator[int]:
    """Nothing listens there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield port


def answers(status: int, text: bytes) -> Callable[[], Iterator[int]]:
    """Always the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST

        def log_message(self, *_: object) -> None: ...

    def serving() -> Iterator[int]:
        server = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()
        server.server_close()

    return serving


NETWORKS = {
    "hangs": hangs,
    "refuses": refuses,
    "is broken": answers(500, b"broken"),
    "does not know the key": answers(401, b"who?"),
    "asks for a login first": answers(200, b"<html>Welcome to the hotel</html>"),
}
FIRST_NETWORK = "does not know the key"  # an answer that ends the attempt at once; in the others W&B waits, and tries again


@pytest.fixture(
    params=[pytest.param(name, marks=() if name == FIRST_NETWORK else pytest.mark.slow) for name in NETWORKS], ids=NETWORKS
)
def network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One that does not lead to W&B, for somebody who is logged in there."""
    opened = NETWORKS[request.param]()
    url = f"http://127.0.0.1:{next(opened)}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield url
    next(opened, None)


def test_a_key_without_a_network(network: str, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    started = time.perf_counter()
    logger = WandbLogger()
    logger.start(home, CONFIG, "an-id", [])
    assert time.perf_counter() - started < 90  # what W&B itself would wait, and twenty times what it is given
    logger.metrics({"train/loss": 1.0}, 1)
    logger.finish({"test": {"error": 0.5}})
    assert f"{network} does not take this run" in caplog.text and "upload later with: wandb sync" in caplog.text
    assert history(home) == [(1, {"train/loss"})]  # one folder: what the attempt left is gone


@pytest.mark.slow
def test_online_without_a_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{next(refuses())}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"cannot start online, at http://127.*logger\.mode=offline"):
        WandbLogger(mode="online").start(home, CONFIG, "an-id", [])
    assert time.perf_counter() - started < 90  # what W&B itself would wait, and twenty times what it is given


# ---- one run, one record -----------------------------------------------------------------------------------------------


def test_a_continued_run_is_one_record(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = compose(*SHORT)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingLoop, "_end_if_asked", after_step(5, lambda loop: loop.interruption.ask(signal.SIGINT)))
        run(config)
    assert "upload later" not in caplog.text  # it is not finished
    run(config)
    found = history(folder_of(config).path)
    assert [step for step, _ in found] == [2, 4, 6, 8]
    assert all({"train/loss", "eval/validation/error"} <= keys for _, keys in found)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")
@pytest.mark.parametrize("times", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_outlives_the_process_of_wandb(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    """It begins again, with every step in its record; the second time it is done without."""

    def kill(loop: TrainingLoop) -> None:
        for process in Path("/proc/self/task").glob("*/children"):
            for child in process.read_text().split():
                if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

    config = compose(*SHORT)
    with monkeypatch.context() as patch:
        for step in (3, 5)[:times]:
            patch.setattr(TrainingLoop, "_end_if_asked", after_step(step, kill))
        run(config)
    folder = folder_of(config)
    assert folder.read_result() is not None
    assert [line["step"] for line in folder.read_metrics() if "train/loss" in line] == [2, 4, 6, 8]
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING" and "W&B" in record.getMessage()]
    assert len(told) == times and "kept offline from here on" in told[0], told
    if times == 1:
        assert [step for step, _ in history(folder.path)] == [2, 4, 6, 8]
    else:
        assert "goes on without it" in told[1]


def test_a_task_has_charts_in_which_encodings_lie_over_each_other(compose: Compose) -> None:
    folder, result = run(compose(*SHORT, "pe=rope", "task.num_validation=16"))
    found = records(folder.path)
    (begun,) = (record["run"] for record in found if record["type"] == "run")
    names = {key: begun[key] for key in ("display_name", "run_group", "job_type")}
    assert names == {"display_name": "rope seed=1", "run_group": "counting", "job_type": "rope"}
    items = [record["history"]["item"] for record in found if record["type"] == "history"]
    measured = [line for line in folder.read_metrics() if "eval/validation/accuracy" in line]
    assert [item["_step"] for item in items] == [line["step"] for line in measured] == [2, 4, 6, 8]
    for item, line in zip(items, measured, strict=True):
        for split in ("validation", "ood_longer", "ood_shorter", "ood_more_operations"):
            for metric in ("accuracy", "perplexity"):
                value = line[f"eval/{split}/{metric}"]
                assert float(item[f"eval/{split}/{metric}"]) == float(item[f"counting/{split}_{metric}"]) == value
    assert float(items[-1]["best/test/error"]) == result["splits"]["test"]["error"]


def test_a_run_that_is_started_over_is_one_record(compose: Compose) -> None:
    config = compose(*SHORT)
    run(config)
    config.force = True
    run(config)
    assert [step for step, _ in history(folder_of(config).path)] == [2, 4, 6, 8]


def test_a_refused_run_promises_no_upload(compose: Compose, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    config = compose(*SHORT)
    folder = folder_of(config)
    folder.last_checkpoint.parent.mkdir(parents=True)
    folder.last_checkpoint.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"last\.pt cannot be read"):
        run(config)
    assert "W&B" not in caplog.text and not (folder.path / "wandb").exists()


def test_the_end_of_a_sweep_tells_once_how_to_upload(compose: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever of its runs this command has made; those are counted that are finished and were not uploaded."""
    folder, _ = run(compose(*SHORT))
    kept = RunFolder(folder.path.with_name("seed=2"))
    shutil.copytree(folder.path, kept.path)
    unfinished = RunFolder(folder.path.with_name("seed=3"))
    shutil.copytree(folder.path, unfinished.path)
    unfinished.result.unlink()
    without = RunFolder(folder.path.with_name("seed=4"))
    shutil.copytree(folder.path, without.path, ignore=shutil.ignore_patterns("wandb"))
    jobs = [Job((), of, "smoke") for of in (folder, kept, kept, unfinished, without)]
    capsys.readouterr()
    tell_end(jobs, {})
    command = f"wandb sync {folder.outputs}/*/*/*/*/wandb/offline-run-*"
    assert capsys.readouterr().err == f"W&B: 2 runs offline; upload later with: {command}\n"
    listed = subprocess.run(["sh", "-c", f"ls -d {command[11:]}"], capture_output=True, text=True, check=True)
    for path in listed.stdout.split():
        next(Path(path).glob("*.wandb")).with_suffix(".wandb.synced").touch()  # as `wandb sync` does
    tell_end(jobs, {unfinished.path: "stopped"})
    assert capsys.readouterr().err == "stopped\n1 of 5 runs are not finished; the same command runs only those.\n"


def test_a_run_that_failed_says_so(compose: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    config = compose(*SHORT)

    def fails(*_: object) -> None:
        raise UserError("the loss became nan")

    monkeypatch.setattr(TrainingLoop, "_validate", fails)
    with pytest.raises(UserError, match="nan"):
        run(config)
    assert "upload later" not in caplog.text
    assert records(folder_of(config).path)[-1]["exit"]["exit_code"] == 1
