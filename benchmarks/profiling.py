"""Where the time of a training step goes, and what keeping freed memory saves: the
project's own step, of real recipes.

Everything here runs in one thread on the CPU and is counted in processor time,
which on an idle machine is what the clock shows and on a shared one leaves out
what others take. Shares come from torch.profiler, which makes small operators
look slower than they are; milliseconds a step come from steps without it. Each
figure is a median of rounds over the same few batches.

    # asks this file, in processes of their own
    python benchmarks/profile_step.py
    python benchmarks/profiling.py --help

With dropout PyTorch's own attention has no kernel for CPUs: it is made of plain
operators, and each counts as what it is.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from timing import large_matmul, matmul_rate, medians
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from cope.errors import UserError
from cope.run.device import keep_freed_memory
from cope.run.experiment import Experiment
from cope.run.loggers import NoLogger
from cope.run.loop import TrainingLoop

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PAPER_SHAPE = "scale=paper task=flip_flop pe=cope trainer.batch_size=4"  # dim 256, T 512
RECIPES = [
    *(f"task={task} pe={pe}" for task in ("counting", "flip_flop", "wikipedia", "code") for pe in ("cope", "rope")),
    PAPER_SHAPE,
]
MEMORY_RECIPES = ["task=wikipedia pe=cope", PAPER_SHAPE]
STEPS = 3  # a round, each of another batch
WHOLE_STEP = "training step"

# An operator belongs to the first category that has a part of its name; what an operator calls, to its own category or else
# to its caller's.
CATEGORIES = {
    "optimiser": ("Optimizer.", "_foreach_", "linalg_vector_norm", "clip_grad"),
    "matmul": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("cope::", "cope_native", "scaled_dot_product"),
    "softmax, loss": ("softmax", "nll_loss", "cross_entropy"),
    "dropout's random": ("bernoulli",),
    "norm, activation": ("layer_norm", "rms_norm", "LayerNorm", "RMSNorm", "relu", "gelu", "silu", "threshold_backward"),
    "copies, fills": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::cat", "aten::clone", "aten::contiguous"),
}
PYTHON = "Python, batches"  # the step's time outside of operators
SHARES = [*CATEGORIES, "other operators", PYTHON]


def read_recipe(recipe: str) -> DictConfig:
    """What ``train.py`` would compose of these overrides.

    Raises:
        UserError: Hydra refuses them.
    """
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose("train", overrides=["logger=none", *recipe.split()])
    except HydraException as error:
        raise UserError(f"recipes={recipe} cannot be composed; allowed: overrides of train.py. {error}") from error


class Recipe:
    """The training loop of a configuration, of which a few steps are run over and over."""

    def __init__(self, config: DictConfig) -> None:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:  # named in the configuration, but never written to
            config.output_dir, config.trainer.device = folder, "cpu"
            experiment = Experiment(config)
            self.loop = TrainingLoop(
                experiment.model, experiment.task, config.seed, experiment.trainer, experiment.optimizer,
                experiment.trainer.fabric(), experiment.folder, NoLogger(), "profile", show_progress=False,
            )  # fmt: skip
        self.loop.model.train()
        self.batches = [part.inputs.shape for step in range(STEPS) for part in self.loop.batches.at(step).parts]

    def run(self) -> None:
        """The first steps of a run, whatever has been trained before."""
        for self.loop.step in range(STEPS):
            self.loop.train_on(self.loop.batches.at(self.loop.step))
            self.loop.look()

    def num_tokens(self) -> int:
        """Of a round, padding included."""
        return sum(batch * length for batch, length in self.batches)

    def matmul_operations(self) -> int:
        """Additions and multiplications of a round: 6 for each weight and token, and causal attention's, which is half."""
        model = self.loop.core
        weights = sum(parameter.numel() for parameter in model.parameters())
        if model.output.weight is not model.embedding.weight:
            weights -= model.embedding.weight.numel()  # looked up, not multiplied
        shape = model.encoding.shape
        attention = sum(6 * shape.num_layers * shape.dim * batch * length**2 for batch, length in self.batches)
        return 6 * weights * self.num_tokens() + attention


def category(event: FunctionEvent) -> str:
    """Which part of the step an operator's own time belongs to."""
    caller: FunctionEvent | None = event
    while caller is not None:
        for name, parts in CATEGORIES.items():
            if any(part in caller.name for part in parts):
                return name
        caller = caller.cpu_parent
    return "other operators"


def own_times(recipe: Recipe) -> list[tuple[str, float]]:
    """Category and microseconds of every operator of a round, without those that it calls, and of what is between them."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function(WHOLE_STEP):
        recipe.run()
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    whole = next(event for event in events if event.name == WHOLE_STEP)
    found = [(category(event), event.self_cpu_time_total) for event in events if event.cpu_parent is not None]
    # What the step itself takes lies between its operators; each gap stands alone, as an operator does.
    children = sorted(whole.cpu_children, key=lambda event: event.time_range.start)
    ends = [whole.time_range.start, *(event.time_range.end for event in children)]
    starts = [*(event.time_range.start for event in children), whole.time_range.end]
    return found + [(PYTHON, start - end) for end, start in zip(ends, starts, strict=True)]


def parts_of_step(recipe: Recipe, repeats: int) -> dict[str, float]:
    """Milliseconds a step that each category takes under the profiler."""
    rounds = [own_times(recipe) for _ in range(repeats)]
    sums = dict.fromkeys(SHARES, 0.0)
    # The median of each operator over the rounds: where others use the machine, a few operators of a round are interrupted.
    for same in zip(*rounds, strict=True):
        names = {name for name, _ in same}
        assert len(names) == 1, f"rounds differ: {names}"
        sums[names.pop()] += statistics.median(microseconds for _, microseconds in same)
    return {name: value / 1000 / STEPS for name, value in sums.items()}


def measure(recipe: Recipe, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    seconds = medians({"steps": recipe.run, "matmul": large_matmul()}, repeats, time.process_time)
    parts = parts_of_step(recipe, repeats)
    profiled_ms = sum(parts.values())
    return {
        "ms_per_step": 1000 * seconds["steps"] / STEPS,
        "tokens_per_s": recipe.num_tokens() / seconds["steps"],
        "share_of_matmul_rate": recipe.matmul_operations() / seconds["steps"] / matmul_rate(seconds["matmul"]),
        "ms_per_step_under_profiler": profiled_ms,
        "shares": {name: milliseconds / profiled_ms for name, milliseconds in parts.items()},
    }


def keeping_memory(recipe: str, repeats: int) -> dict[str, Any]:
    """Milliseconds a step with and without :func:`keep_freed_memory`, in two fresh processes that take turns."""
    processes = {}
    for name in ("with", "without"):
        command = [sys.executable, __file__, name, recipe]
        processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    times: dict[str, list[float]] = {name: [] for name in processes}
    try:
        for repeat in range(repeats + 1):
            for name, process in processes.items():
                assert process.stdin is not None and process.stdout is not None
                print(file=process.stdin, flush=True)
                milliseconds = float(next(line for line in process.stdout if line.startswith("ms ")).split()[1])
                if repeat > 0:  # the first warms up
                    times[name].append(milliseconds)
    finally:
        for process in processes.values():
            process.communicate()
    found = {name: statistics.median(values) for name, values in times.items()}
    return {"recipe": recipe, "ms_per_step": found, "ratio": found["with"] / found["without"]}


def answer(memory: str, recipe: str) -> None:
    """Run a round for each line that comes in, and say how long it took."""
    if memory == "with":
        keep_freed_memory()
    steps = Recipe(read_recipe(recipe))
    for _ in sys.stdin:
        start = time.process_time()
        steps.run()
        print("ms", 1000 * (time.process_time() - start) / STEPS, flush=True)


def profiled(recipes: list[str], repeats: int) -> dict[str, Any]:
    """The whole benchmark, printed as it goes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler writes two lines of its own each time
    keep_freed_memory()  # as in every run
    configs = {recipe: read_recipe(recipe) for recipe in recipes}  # all are checked before the first is run
    width = max(map(len, recipes))
    columns = ["ms/step", "tokens/s", "of matmul rate", *SHARES]
    print(" " * width + "".join(f"  {column}" for column in columns))
    rows = []
    for recipe, config in configs.items():
        row = measure(Recipe(config), repeats)
        rows.append({"recipe": recipe, **row})
        cells = [f"{row['ms_per_step']:.1f}", f"{row['tokens_per_s']:,.0f}", f"{row['share_of_matmul_rate']:.0%}"]
        cells += [f"{share:.1%}" for share in row["shares"].values()]
        line = "".join(f"  {cell:>{len(column)}}" for cell, column in zip(cells, columns, strict=True))
        print(f"{recipe:{width}}{line}", flush=True)
    memory = []
    for recipe in MEMORY_RECIPES:
        memory.append(keeping_memory(recipe, max(repeats, 5)))
        kept = memory[-1]["ms_per_step"]
        print(
            f"keeping freed memory, {recipe}: {kept['with']:.1f} ms a step, without {kept['without']:.1f}: "
            f"{memory[-1]['ratio']:.2f} of the time", flush=True,
        )  # fmt: skip
    return {"steps_per_round": STEPS, "rows": rows, "keeping_freed_memory": memory}


if __name__ == "__main__":
    if len(sys.argv) < 3 or {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        answer(*sys.argv[1:])
