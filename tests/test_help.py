"""``--help`` and slips: every command says what it is for, what it takes and how it is called; nothing is started."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONFIGS, ROOT
from omegaconf import OmegaConf
from runs import command_here

from cope.help import comments, leaves

FOLDERS = (ROOT, ROOT / "scripts", ROOT / "benchmarks", ROOT / "examples")
COMMANDS = sorted(path for folder in FOLDERS for path in folder.glob("*.py") if '__name__ == "__main__"' in path.read_text())
TERMINAL = 80  # columns
ASKED_BY_OTHERS = ("profiling", "peak_memory", "complete", "sanitize")  # which need no second example


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_commands_help_has_its_purpose_keys_and_examples(path: Path) -> None:
    tree = ast.parse(path.read_text())
    documentation = ast.get_docstring(tree) or ""
    assert documentation.split("\n\n")[0].rstrip().endswith((".", "?", ":"))
    assert max(map(len, documentation.splitlines())) <= TERMINAL
    called = path.relative_to(ROOT).as_posix()
    examples = re.findall(rf"python (?:-S )?{re.escape(called)}", documentation)
    assert len(examples) >= (1 if path.stem in ASKED_BY_OTHERS else 2)
    # What is published is written only when asked for.
    assert not any(place.startswith("docs/") for place in re.findall(r"^ *to=(\S+)", documentation, re.MULTILINE))
    for settings in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Settings")):
        keys = [
            node.target.id for node in settings.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        ]
        assert keys == [key for key in re.findall(r"^ *(\w+)=", documentation, re.MULTILINE) if key.islower()]


@pytest.mark.parametrize(
    ("command", "key", "meaning"),
    [
        ("train.py", "optimizer.lr=", "tuned for each encoding"),
        ("scripts/prepare_corpus.py", "tokenizer.kind=bpe", "unigram or gpt2"),
        ("scripts/probe_llm.py", "samples=1", "replies to each prompt"),
    ],
)
def test_help_of_what_hydra_configures_tells_each_keys_value_and_meaning(command: str, key: str, meaning: str) -> None:
    done = command_here(command, "--help")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    place = next(place for place, line in enumerate(lines) if line.strip().startswith(key))
    assert meaning in " ".join(line.strip() for line in lines[place : place + 3]) and "${" not in done.stdout
    assert max(map(len, lines)) <= TERMINAL
    assert ("  scale=laptop, night, paper, smoke" in lines) == (command == "train.py")  # others refuse it


DESCRIBED = [
    CONFIGS / "train.yaml",
    *(path for group in ("corpus", "task", "pe", "logger") for path in CONFIGS.glob(f"{group}/*.yaml")),
]
NO_SETTINGS = ("_target_", "name", "defaults", "corpus", "data_dir", "hydra")


@pytest.mark.parametrize("path", DESCRIBED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_key_has_words(path: Path) -> None:
    said = {
        key
        for base in (path.stem.partition("_")[0], path.stem)
        for file in path.parent.glob(f"{base}.yaml")
        for key, _ in comments(file)
    }
    for key in leaves(OmegaConf.create(path.read_text())):
        of_the_task = key.rpartition(".")[2] if key.startswith("splits.") else ""  # which a split's help refers to
        assert key in said or of_the_task in said or key.split(".")[0] in NO_SETTINGS, key


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config-dir", "{folder}", "pe=mine"], " mine, none"),
        (["hydra.searchpath=[file://{folder}]"], " mine, none"),
        (["-m", "pe=t5,cope"], "  pe.num_buckets=32"),
        (["pe=cop"], "Did you mean 'cope'?"),
        (["trainer.stepz=4"], "Did you mean 'trainer.steps'?"),
        (["--config-dir", "{folder}/pe/none"], "pe/none is not a folder."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_help_takes_into_account_what_else_is_typed(arguments: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "pe").mkdir()
    (tmp_path / "pe" / "mine.yaml").write_text("_target_: cope.positions.none.NoPositions\nname: mine\n")
    done = command_here("train.py", *(argument.format(folder=tmp_path) for argument in arguments), "--help")
    is_help = done.returncode == 0
    assert told in (re.sub(r"\n {8}", " ", done.stdout) if is_help else done.stderr), done
    assert is_help != told.endswith(("?", "folder.")) and (not is_help or done.stderr == "")


def test_a_command_that_takes_long_to_begin_says_what_it_does_in_a_pipe_too() -> None:
    command = [sys.executable, "evaluate.py", "run=nowhere"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loading the run ...\n"
        process.kill()  # PyTorch need not be waited for
        assert process.communicate()[0] == ""


TAKING_SETTINGS = [path for path in COMMANDS if re.search(r"\brun(_hydra)?_command\(", path.read_text())]
# Runs each command named on its command line in a process of its own, forked so that what they share is imported once.
RUN_EACH = """
import os, runpy, sys
import cope.cli
from pathlib import Path
mistakes, paths = sys.argv[1].split(), sys.argv[2:]
for path in paths:
    if os.fork() == 0:
        sys.argv = [path, *mistakes]
        sys.path.insert(0, str(Path(path).parent))
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as error:
            status = error.code
        heavy = {"torch", "numpy", "scipy", "pandas", "matplotlib"} & sys.modules.keys()
        print(path, "ended with", status, "having imported", sorted(heavy), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize(
    ("mistakes", "told"),
    [("sede=1", "sede is not a setting"), ("seed=1 seed=2", "seed(=2 is one seed too many| is not a setting)")],
)
def test_a_slip_is_told_by_every_command_before_pytorch_is_waited_for(mistakes: str, told: str, tmp_path: Path) -> None:
    paths = [str(path) for path in TAKING_SETTINGS if path.stem != "runs"]  # whose filters are whatever its runs have
    assert len(paths) > 20
    command = [sys.executable, "-c", RUN_EACH, mistakes, *paths]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    parts = re.split(r"^(\S+) ended with (.*)\n", done.stdout, flags=re.MULTILINE)
    ended = {path: (said, how) for said, path, how in zip(parts[::3], parts[1::3], parts[2::3], strict=False)}
    assert ended.keys() == set(paths)
    for path, (said, how) in ended.items():
        assert how == "1 having imported []" and re.search(told, said), (path, how, said)


def test_a_value_that_is_not_allowed_is_told_before_pytorch_is_waited_for() -> None:
    command = [sys.executable, "-X", "importtime", "evaluate.py", "run=nowhere", "format=cvs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "Did you mean 'csv'?" in done.stderr and "| torch\n" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("train", "task=flip_flop", "--help"), 0, "cope-lab train pe=cope task=counting"),
        (("evaluate", "--help"), 0, "cope-lab evaluate run="),
        (("train", "pe=cope", "-m", "seed=1"), 1, "allowed: cope-lab train -m key=value"),
    ],
)
def test_the_installed_command_names_itself(arguments: tuple[str, ...], status: int, told: str) -> None:
    done = subprocess.run([sys.executable, "-m", "cope.command", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == status
    assert told in done.stdout + done.stderr and "python train" not in done.stdout + done.stderr
