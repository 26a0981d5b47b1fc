"""Whatever goes wrong is told in one message that names the setting, its value and what is allowed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from omegaconf import DictConfig
from runs import folder_of, run, train

from cope.corpora import hub
from cope.errors import UserError
from cope.overrides import check_overrides, given_twice
from cope.run.experiment import Experiment

Compose = Callable[..., DictConfig]
SHORT = ("pe=none", "trainer.steps=18", "trainer.eval_every=5", "task.num_validation=32", "task.num_test=16")

# ---- on the command line -------------------------------------------------------------------------------------------------


def told(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """What is told of a command line that is refused, by line."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
    with pytest.raises(UserError) as refused:
        check_overrides(arguments, "configs")
    return str(refused.value).splitlines()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pe=cop"], [r"pe=cop is not known; allowed: absolute, .*sinusoidal, .*\. Did you mean 'cope'\?"]),
        (["pe=cpoe"], [r"pe=cpoe is not known; .*Did you mean 'cope'\?"]),  # pope has as many letters in common
        (["task=countin"], [r"task=countin .* counting, flip_flop, .*\. Did you mean 'counting'\?"]),
        (["-m", "pe=cope,rop", "scale=smok"], ["pe=rop .*'rope'", "scale=smok .*'smoke'"]),
        (["pe=null"], [r"pe=null is not known; allowed: absolute, "]),
        (["recipe=paper/countin"], [r"recipe=paper/countin .* paper/counting, .*Did you mean 'paper/counting'\?"]),
        (["hydra/launcher=loca"], [r"hydra/launcher=loca .*Did you mean 'local'\?"]),
        (["=3"], [r"^=3 is not a setting\. Allowed: .*trainer"]),
        (["peh.num=3"], [r"peh\.num is not a setting\. Allowed: .*trainer"]),
        (["~pe.nope"], [r"pe\.nope is not a setting\. Allowed: .*num_positions"]),
        (["trainer.stepz=3"], [r"trainer\.stepz is not a setting\. .*batch_size, .*Did you mean 'trainer\.steps'\?"]),
        (["sed=3", "pe.num_position=3"], ["sed is .*'seed'", r"pe\.num_position is .*gates, .*'pe\.num_positions'"]),
        (
            ["-m", "scale=night,smoke", "task=code"],
            [r"scale=night has no recipe for task=code; allowed: another task \(counting, "],
        ),
        (["task=counting", "corpus=files"], [r"corpus=files has no effect: .* nothing has a corpus"]),
        (["seed=1,2"], [r"seed=1,2 is several values: -m before all settings"]),
        (["pe=[cope,rope]"], [r"pe=\[cope,rope\] is a list; allowed: one of absolute, .* -m pe=cope,rope"]),
        (["task.splits=[a]"], [r"task\.splits=\[a\] Cannot merge a table with a list$"]),
        (["+pe=cope"], ["pe appears more than once"]),
        (["+trainer.steps=3"], ["An item is already at 'trainer.steps'"]),
        (["hydra.mode=NOPE"], ["'NOPE', expected one of .*MULTIRUN.$"]),
        (
            ["trainer", "trainer.=3", "seed=a=b"],
            ["'trainer' is not of the form", "'trainer.=3' cannot be read", '"seed=.a=b."$'],
        ),
        (["pe=rope", "-m", "seed=1"], ["seed=1: options such as -m belong before all settings"]),
        (["hydra.run.dir=/dev/null/nowhere"], ["hydra.run.dir=/dev/null/nowhere cannot be made: Not a directory"]),
        (["--experimental-rerun", "nowhere"], ["--experimental-rerun nowhere is not a file"]),
        # A setting that only some of the encodings of a sweep have.
        (["-m", "pe=none,cope", "pe.num_positions=4"], [r"pe\.num_positions is not .*pe=none"]),
    ],
)
def test_unknown_names_on_the_command_line(monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: list[str]) -> None:
    lines = told(monkeypatch, *arguments)
    assert len(lines) == len(expected)
    for pattern, line in zip(expected, lines, strict=True):
        assert re.search(pattern, line), line


@pytest.mark.parametrize(
    "arguments",
    [
        ["pe=rope", "pe.base=100"],
        ["-m", "pe=cope,cope_mlp", "pe.num_positions=4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["task=code", "corpus=files", "corpus.train=/some/where"],
        ["pe=[cope]"],
        ["+task.splits.rare={pass_weight: 400}", "logger=none"],
        ["-sc", "query=bash"],  # completion, which has its half a word from the environment
        ["task=counting", "recipe=paper/counting"],
        ["-m", "seed=range(1,100000)", "optimizer.lr=choice(1e-3,2e-3)"],
    ],
)
def test_what_is_right_is_let_through(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
    check_overrides(arguments, "configs")


@pytest.fixture
def my_configs(tmp_path: Path) -> Path:
    """A folder with an encoding of the user's own."""
    (tmp_path / "pe").mkdir()
    (tmp_path / "pe" / "mine.yaml").write_text("defaults: [cope, _self_]\nname: mine\nnum_positions: 4\n")
    return tmp_path


@pytest.mark.parametrize("way", ["--config-dir {}", "hydra.searchpath=[file://{}]", "--config-dir={} -m seed=1,2"])
def test_configurations_of_the_users_own(monkeypatch: pytest.MonkeyPatch, my_configs: Path, way: str) -> None:
    arguments = way.format(my_configs).split()
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py")])
    check_overrides([*arguments, "pe=mine", "pe.num_positions=3"], "configs")
    (line,) = told(monkeypatch, *arguments, "pe=min")
    assert re.search(r"pe=min is not known; allowed: .*, mine, .*Did you mean 'mine'\?", line)
    (line,) = told(monkeypatch, *arguments, "pe=mine", "pe.num_position=3")
    assert re.search(r"pe\.num_position is not a setting\. Allowed with pe=mine: .*'pe\.num_positions'", line)


@pytest.mark.parametrize("place", ["pkg://my_package.configs", "file:///nowhere/configs"])
def test_a_place_of_configurations_that_is_not_there(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (line,) = told(monkeypatch, f"hydra.searchpath=[{place}]", "pe=mine")
    assert line.startswith(
        f"hydra.searchpath: {place.partition('://')[2]} is not there; allowed: [file:///a/folder] of configs, or"
    )


@pytest.mark.slow
def test_an_encoding_of_the_users_own_runs(my_configs: Path) -> None:
    few = ("scale=smoke", "trainer.steps=4", "trainer.eval_every=2", "task.num_test=16", "task.num_validation=16")
    finished = train("--config-dir", str(my_configs), "pe=mine", "logger=none", *few, folder=my_configs)
    assert finished.returncode == 0, finished.stderr
    assert list((my_configs / "outputs" / "counting" / "mine").glob("*/seed=1/result.json"))


# ---- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.steps=foo"], r"trainer\.steps='?foo.* wrong type; allowed: int"),
        (["model=3"], r"^model=3 is not one setting; allowed: model\.key=\.\.\., "),
        (["task=code", "task.tokenizer=3"], r"^task\.tokenizer=3 is not one setting; allowed: task\.tokenizer\.kind, "),
        (["++pe.nope=1"], r"^pe\.nope is not a setting; allowed: .*num_positions"),
        (["trainer.steps=1.5"], r"trainer\.steps=1\.5 .* int"),
        (["trainer.steps=null"], r"trainer\.steps=None .* int"),
        (["pe.num_positions=abc"], r"pe\.num_positions='?abc.* int"),
        (["model.dim=1.5"], r"model\.dim=1\.5 .* int"),
        (["model.dropout=much"], r"model\.dropout='?much.* float"),
        (["model.dropout=1.5"], r"model\.dropout=1\.5 .* 0\.0 to"),
        (["model.norm=per"], r"model\.norm=per .* pre, post\. Did you mean 'pre'\?"),
        (["model.num_heads=3"], r"model\.num_heads=3 does not divide model\.dim=16; allowed: 1, 2, 4, 8, 16\."),
        (["pe=rope", "model.dim=18"], r"even head size; model\.dim=18 with model\.num_heads=2 gives 9"),
        (["pe.num_positions=0"], r"pe\.num_positions=0 is too small; allowed: 1 or more"),
        (["pe.gates=kes"], r"pe\.gates=kes .* Did you mean 'keys'\?"),
        (["pe=relative", "pe.beyond=error"], r"pe\.beyond=error has positions for 31 tokens, .* 47 are read\."),
        (["+pe.num_position=4"], r"pe\.num_position is not a setting; allowed: .*Did you mean 'num_positions'\?"),
        (["pe=cope_mlp", "+pe.backend=auto"], r"pe\.backend is not a setting"),  # it has no kernel of its own to choose
        (["~pe._target_"], r"^pe\._target_=None names no class; allowed: package\.module\.Class\.$"),
        (["pe._target_=2"], r"^pe\._target_=2 names no class"),
        (["pe._target_=cope.nowhere.Nothing"], r"pe\._target_=cope\.nowhere\.Nothing cannot be loaded"),
        (["optimizer.lr=-1"], r"optimizer\.lr=-1\.0 .* above 0"),
        (["optimizer.algorithm=adan"], r"optimizer\.algorithm=adan .* adam, adamw"),
        (["trainer.device=tpu"], r"trainer\.device=tpu .* auto, cpu, cuda"),
        (["trainer.device=cuda"], r"trainer\.device=cuda, .* no GPU .* auto, cpu"),
        (["trainer.devices=2"], r"trainer\.devices=2 needs trainer\.strategy=ddp"),
        (["trainer.num_nodes=2"], r"trainer\.num_nodes=2 needs trainer\.strategy=ddp"),
        (
            ["trainer.num_nodes=2", "trainer.strategy=ddp"],
            r"nothing says which of them this machine is; allowed: 1, or",
        ),
        (["~pe"], r"^pe must be set"),
        (["~seed"], r"^seed must be set"),
        (["+forse=1"], r"^forse is not a setting; allowed: pe, task, .*Did you mean 'force'\?"),
        (["+foo=1"], r"^foo is not a setting; allowed: pe, task, [^.]*\.$"),  # not near anything
        (["seed=[1,2]"], r"^seed=\[1, 2\] has the wrong type; allowed: int\.$"),
        (["trainer.accumulate=3"], r"trainer\.batch_size=16 .* multiples of 3"),
        (["seed=-1"], "seed=-1 is too small; allowed: 0 or more"),
        (["logger=wandb", "logger.mode=ofline"], r"logger\.mode=ofline .* Did you mean 'offline'\?"),
        (
            ["task=flip_flop", "task.source=/no/such/folder"],
            r"task\.source=/no/such/folder is not a folder; allowed: generator",
        ),
        (["task.loss=everyware"], r"task\.loss=everyware .* Did you mean 'everywhere'\?"),
    ],
)
def test_a_setting_that_cannot_be(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, overrides: list[str], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = compose(*overrides)
    with pytest.raises(UserError) as error:
        Experiment(config)
    assert re.search(expected, str(error.value)), str(error.value)
    assert not Path(config.output_dir).exists()


def test_everything_that_is_wrong_is_told_at_once(compose: Compose) -> None:
    with pytest.raises(UserError) as error:
        Experiment(compose("trainer.steps=0", "optimizer.lr=0", "model.num_heads=5", "seed=-3"))
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    for key in ("trainer.steps=0 ", "optimizer.lr=0.0 ", "model.num_heads=5 ", "seed=-3 "):
        assert sum(line.startswith(key) for line in lines) == 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.batch_size=512"], r"trainer\.batch_size=512 is more than the 256 training examples"),
        (["task.context=12", "task.overflow=error"], r"task\.context=12 .* longest \d+ tokens"),
    ],
)
def test_settings_that_the_data_do_not_allow(compose: Compose, overrides: list[str], expected: str) -> None:
    config = compose(*SHORT, *overrides)
    with pytest.raises(UserError, match=expected):
        run(config)
    assert not folder_of(config).last_checkpoint.exists()


@pytest.mark.parametrize("key", ["output_dir", "data_dir"])
def test_a_folder_that_cannot_be_written(compose: Compose, tmp_path: Path, key: str) -> None:
    config = compose(*SHORT, "task=wikipedia")
    config[key] = str(tmp_path / "file" / "folder")  # permissions would not stop root, under whom tests may run
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=rf"{key}.*cannot .*writ(.|\n)*{key}=") as error:
        run(config)
    assert str(tmp_path / "file" / "folder") in str(error.value)


def test_the_hub_cannot_be_reached(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(hub, "is_reachable", lambda url: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)  # where nothing was downloaded before
    with pytest.raises(UserError, match=r"task\.source=hub: .* cannot be reached.*task\.source=generator"):
        run(compose(*SHORT, "task=flip_flop", "task.source=hub", "task.num_pairs=256"))


def test_wandb_is_not_installed(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"logger=wandb needs .*pip install wandb.*logger=none"):
        Experiment(compose("logger=wandb"))


# ---- in a process of its own ---------------------------------------------------------------------------------------------


def test_an_unknown_encoding_costs_no_wait_for_pytorch(tmp_path: Path) -> None:
    finished = train("pe=cop", "scale=smoke", folder=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert finished.returncode == 1
    assert finished.stdout == ""
    imports, told = [], []
    for line in finished.stderr.splitlines():
        (imports if line.startswith("import time:") else told).append(line)
    assert len(told) == 1
    assert "Did you mean 'cope'?" in told[0]
    assert imports
    assert not any(line.endswith("| torch") for line in imports)


@pytest.mark.slow
@pytest.mark.parametrize("wish", ["0", "1"])
def test_a_trace_is_shown_to_those_who_ask(tmp_path: Path, wish: str) -> None:
    arguments = ("scale=smoke", "logger=none", "trainer.steps=foo", "optimizer.schedule=cosin")
    finished = train(*arguments, folder=tmp_path, HYDRA_FULL_ERROR=wish)
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert ("Traceback" in finished.stderr) == (wish == "1")
    if wish == "0":
        first, second = finished.stderr.splitlines()
        assert "trainer.steps" in first
        assert "Did you mean 'cosine'?" in second
    else:
        assert "UserError: trainer.steps" in finished.stderr


def test_a_key_given_twice_is_told_but_for_hydras_own_which_other_devices_processes_get_once_more() -> None:
    assert given_twice(["seed=1", "+task.splits.a={}", "seed=2"]) == [
        "seed=2 is one seed too many after seed=1; allowed: one seed=... in a command."
    ]
    assert given_twice(["hydra.run.dir=/a", "seed=1", 'hydra.run.dir="/a"', "hydra.job.name=train_ddp_process_1"]) == []
