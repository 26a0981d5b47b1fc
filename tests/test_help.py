"""``--help`` and completion: every command says what it is for, what it takes and how it is called; nothing is started."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from runs import command_here

FOLDERS = (ROOT, ROOT / "scripts", ROOT / "benchmarks")
COMMANDS = sorted(path for folder in FOLDERS for path in folder.glob("*.py") if '__name__ == "__main__"' in path.read_text())
ASKED_BY_OTHERS = ("profiling", "peak_memory", "complete", "sanitize")  # which need no second example


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_commands_help_has_its_purpose_keys_and_examples(path: Path) -> None:
    tree = ast.parse(path.read_text())
    documentation = ast.get_docstring(tree) or ""
    assert documentation.splitlines()[0].endswith((".", "?", ":")) or "." in documentation.splitlines()[0]
    called = path.relative_to(ROOT).as_posix()
    examples = re.findall(rf"python (?:-S )?{re.escape(called)}", documentation)
    assert len(examples) >= (1 if path.stem in ASKED_BY_OTHERS else 2)
    for settings in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Settings")):
        for field in (node for node in settings.body if isinstance(node, ast.AnnAssign)):
            assert isinstance(field.target, ast.Name)
            assert re.search(rf"(^|\s){field.target.id}=", documentation), f"{called} has {field.target.id}="


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
    line = next(line for line in done.stdout.splitlines() if line.strip().startswith(key))
    assert meaning in line and "${" not in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("python train.py pe=cope_r", {"cope_relative", "cope_rope"}),
        ("python train.py task=flip_flop task.p_i", {"task.p_ignore="}),
        ("python train.py pe=rope,cope_re", {"rope,cope_relative"}),
        ("python evaluate.py run=runs/cou", {"runs/counting/"}),
        ("python generate.py tem", {"temperature="}),
        ("python scripts/compare.py form", {"format="}),
        ("python scripts/table.py table=table4", {"table4"}),
        ("python -m pytest tes", set()),
        ("python train.py nothing_of_the_kind=", set()),
    ],
)
def test_the_shell_completes_every_command_and_prints_nothing(typed: str, found: set[str], tmp_path: Path) -> None:
    (tmp_path / "runs" / "counting").mkdir(parents=True)
    for name in ("train.py", "evaluate.py", "generate.py", "scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = (
        'source scripts/completion.bash; COMP_WORDBREAKS=" =:"; COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}; '
        'COMP_WORDS=("$PYTHON"); _cope_complete; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "-c", script, "bash", typed], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
    )
    assert set(done.stdout.split()) == found and done.stderr == ""


def test_a_command_that_takes_long_to_begin_says_what_it_does_in_a_pipe_too() -> None:
    done = subprocess.run([sys.executable, "evaluate.py", "run=nowhere"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[0] == "loading the run ..." and done.stdout == ""


def test_a_slip_is_told_before_pytorch_is_waited_for() -> None:
    command = [sys.executable, "-X", "importtime", "evaluate.py", "run=nowhere", "format=cvs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Did you mean 'csv'?" in done.stderr and "| torch\n" not in done.stderr
