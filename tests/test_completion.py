"""Completion in a real bash with a terminal: what TAB makes of a line, what it prints, and what it costs."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import runpy
import select
import shutil
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from cope.command import COMMANDS, COMPLETION

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="no bash here")
RUN = "outputs/counting/cope/1a2b3c4d"
PROMPT = "ready: "
MOST_SECONDS = 0.5  # of one TAB; of processor time, which other programs on the machine do not lengthen much


class Shell:
    """An interactive bash, as somebody types into it."""

    def __init__(self, folder: Path) -> None:
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            assert BASH is not None
            os.execve(BASH, ["bash", "--norc", "--noprofile", "-i"], {"PATH": path, "PS1": PROMPT, "TERM": "xterm"})
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 500, 0, 0))  # no line is ever broken
        self.run("bind 'set bell-style none'; bind 'set enable-bracketed-paste off'")
        self.run("""bind -x '"\\C-g": printf "<%s>" "$READLINE_LINE"'""")
        self.run("source scripts/completion.bash")

    def run(self, line: str) -> str:
        """What it prints for a whole line, after which it waits for the next."""
        os.write(self.terminal, f"{line}; echo do''ne\n".encode())
        return self.read_until(rf"\n(.*)done\r\n.*{PROMPT}")[1]

    def after_tab(self, typed: str) -> tuple[str, str]:
        """All that was printed when TAB was pressed at the end of a line, and what it has become. It is then given up."""
        os.write(self.terminal, f"{typed}\t\a".encode())
        printed, line = self.read_until(rf"(.*)<([^>]*)>.*{PROMPT}{typed[:6]}").groups()
        os.write(self.terminal, b"\x15")
        return printed, line

    def read_until(self, pattern: str) -> re.Match[str]:
        text, last = "", time.monotonic() + 300
        while not (found := re.search(pattern, text, re.DOTALL)):
            assert select.select([self.terminal], [], [], max(0.0, last - time.monotonic()))[0], f"{text!r} has no {pattern!r}"
            text += os.read(self.terminal, 65536).decode()
        return found

    def seconds(self) -> float:
        """Of processor time, by itself and by what it has started."""
        return sum(60 * int(minutes) + float(seconds) for minutes, seconds in re.findall(r"(\d+)m([\d.]+)s", self.run("times")))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("train.py", "evaluate.py", "generate.py", "scripts", "benchmarks", "configs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / RUN / "seed=7").mkdir(parents=True)
    (folder / RUN / "seed=7" / "config.yaml").write_text("task:\n  name: counting\n  num_test: 7\n  num_train: 7\n")
    (folder / "outputs" / "README.md").write_text("no run")
    shell = Shell(folder)
    yield shell
    os.close(shell.terminal)  # which ends it
    os.waitpid(shell.process, 0)


LINES = [
    ("python train.py pe=co", "python train.py pe=cope"),
    ("python train.py -m pe=rope,cope_v", "python train.py -m pe=rope,cope_val_gates"),
    ("python train.py task=flip_flop task.p_i", "python train.py task=flip_flop task.p_ignore="),
    ("python evaluate.py run=outputs/", "python evaluate.py run=outputs/counting/"),
    (f"python evaluate.py run={RUN}/", f"python evaluate.py run={RUN}/seed=7/"),
    (f"python evaluate.py run={RUN}/seed=", f"python evaluate.py run={RUN}/seed=7/"),
    ("python evaluate.py run=1a2b task.num_te", "python evaluate.py run=1a2b task.num_test="),
    (f"python evaluate.py run={RUN}/seed=7 task.num_tr", f"python evaluate.py run={RUN}/seed=7 task.num_train="),
    ("python generate.py run=1a", "python generate.py run=1a2b3c4d"),
    ("python generate.py run=1a2b3c4d/", "python generate.py run=1a2b3c4d/seed=7"),
    ("python generate.py run=1a/seed=", "python generate.py run=1a/seed=7"),
    ("python train.py -m hydra/la", "python train.py -m hydra/launcher="),
    ("python train.py -m hydra/launcher=subm", "python train.py -m hydra/launcher=submitit_slurm"),
    ("python generate.py run=1a2b3c4d tem", "python generate.py run=1a2b3c4d temperature="),
    ("python scripts/table.py table=table4 act", "python scripts/table.py table=table4 action="),
    ("python scripts/compare.py runs=outputs/counting,outp", "python scripts/compare.py runs=outputs/counting,outputs/"),
    ("python scripts/table.py action=l", "python scripts/table.py action=list"),
    ("python scripts/runs.py sort=s", "python scripts/runs.py sort=s"),  # seed or state
    ("python scripts/runs.py sort=o", "python scripts/runs.py sort=ood"),
    ("python scripts/runs.py format=mark", "python scripts/runs.py format=markdown"),
    ("python scripts/field.py tasks=mqar,navigation_2", "python scripts/field.py tasks=mqar,navigation_2d"),
    ("python scripts/field.py encodings=fo", "python scripts/field.py encodings=fox"),
    ("python scripts/prepare_corpus.py corp", "python scripts/prepare_corpus.py corpus="),
    ("python scripts/prepare_corpus.py corpus=files corpus.tr", "python scripts/prepare_corpus.py corpus=files corpus.train="),
    ("python scripts/prepare_corpus.py corpus=en", "python scripts/prepare_corpus.py corpus=enwiki_sample"),
    ("python scripts/probe_llm.py end", "python scripts/probe_llm.py endpoint="),
    ("python benchmarks/attention.py rep", "python benchmarks/attention.py repeats="),
    ("cope-lab tr", "cope-lab train "),
    ("cope-lab train pe=co", "cope-lab train pe=cope"),
    ("cope-lab evaluate run=1a", "cope-lab evaluate run=1a2b3c4d"),
    ("cope-lab nothing pe=rop", "cope-lab nothing pe=rop"),
    ("python train.py nothing_of_the_kind=", "python train.py nothing_of_the_kind="),
    ("python -m pytest --nothing", "python -m pytest --nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "line"), LINES, ids=[typed for typed, _ in LINES])
def test_tab_completes_the_line_and_prints_nothing_else(shell: Shell, typed: str, line: str) -> None:
    printed, completed = shell.after_tab(typed)
    assert completed == line
    assert re.sub(rf"\r|\x1b\[K|{PROMPT}", "", printed) == line


def test_a_tab_costs_less_than_half_a_second(shell: Shell) -> None:
    before = shell.seconds()
    for typed, _ in LINES:
        shell.after_tab(typed)
    assert (shell.seconds() - before) / len(LINES) < MOST_SECONDS


def test_the_commands_of_a_wheel_are_completed() -> None:
    complete = runpy.run_path(str(ROOT / "scripts" / "complete.py"))
    assert complete["COMMANDS"] == (*COMMANDS, COMPLETION)
    assert complete["candidates"]("cope-lab ") == [f"{command} " for command in (*COMMANDS, COMPLETION)]
