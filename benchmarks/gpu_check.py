"""Is this GPU right and how fast is it? One command of at most eight minutes, one
page to paste into docs/benchmarks.md.

    # (make gpu-check)
    python benchmarks/gpu_check.py to=outputs/gpu-check
    # only some parts, in at most two minutes
    python benchmarks/gpu_check.py to=FOLDER parts=kernels limit=120

Parts, in this order: ``kernels`` (errors of the Triton kernels, in each type),
``attention`` (time and memory beside PyTorch's), ``training`` (tokens a second
beside RoPE's), ``run`` (the paper's flip-flop model for 1,000 steps). They
share ``limit`` seconds; what one leaves is the next one's. Whatever fails says
so in its cell and the rest goes on. At the end stand the options that kernels
were compiled with, which ``attention`` and ``training`` try on a new card.
Writes ``results.json`` and ``results.md`` into the folder, again after every
cell. Exit status 1 if kernels are wrong or anything failed for another reason
than time.

    to=            the folder to write
    parts=         only these, with commas between
    limit=450      seconds of everything
    device=cuda    cpu tries out what can be without a GPU: kernels in Triton's
                   interpreter, attention with backend=native
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__)  # before anything slow is imported

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import gpu_attention
import gpu_kernels
import torch
from timing import as_cell, circumstances

from cope.cli import read_settings, run_command
from cope.errors import UserError, check_at_least, check_choice
from cope.files import write_text
from cope.metrics import METRICS

ROOT = Path(__file__).resolve().parent.parent
SHARES = {"kernels": 120, "attention": 100, "training": 150, "run": 80}  # of the limit, and the parts in their order
SCALE = "paper"
TRAINING_PARTS = ("check", "alone", "gpt2")
TRAINING_SECONDS = 2.5  # a cell
STEPS, VALIDATIONS = 1000, 4
SEED = 1
RECIPE = ("task=flip_flop", "pe=cope", "pe.scale=paper", "trainer.precision=bf16-mixed")


@dataclass(frozen=True)
class CheckSettings:
    """The keys.

    Args:
        to: the folder to write.
        limit: seconds of everything.
        device: cpu tries out what can be without a GPU: kernels in Triton's interpreter, attention with backend=native.
    """

    to: Path
    parts: tuple[str, ...] = tuple(SHARES)
    limit: float = 450.0
    device: str = "cuda"

    def __post_init__(self) -> None:
        for part in self.parts:
            check_choice("parts", part, SHARES)
        check_at_least("limit", self.limit, 1)
        check_choice("device", self.device, ["cuda", "cpu"])
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("gpu-check needs a GPU, and PyTorch finds none here.")


def rows_of(part: str, settings: CheckSettings, limit: float) -> Iterator[dict[str, Any]]:
    """What a part finds, row by row, within ``limit`` seconds."""
    if part == "kernels":
        yield from gpu_kernels.rows_of(settings.device, limit)
    elif part == "attention":
        yield from gpu_attention.rows_of(settings.device, limit)
    elif part == "training":
        import gpu_training  # Lightning with it, which the processes of other parts need not wait for

        planned = gpu_training.cells(list(TRAINING_PARTS), SCALE, TRAINING_SECONDS, settings.device, [])
        yield from gpu_training.rows_of(planned, limit)
    else:
        yield run(settings, limit)


def run(settings: CheckSettings, limit: float) -> dict[str, Any]:
    """A training run by ``train.py``, from the start: its validations, result, and what it failed of."""
    recipe = [
        f"scale={SCALE}", *RECIPE, f"trainer.steps={STEPS}", f"trainer.eval_every={STEPS // VALIDATIONS}", f"seed={SEED}",
        f"trainer.device={settings.device}", "logger=none",
    ]  # fmt: skip
    from cope.run.folder import RunFolder

    runs, begun = settings.to / "runs", time.time()
    command = [sys.executable, str(ROOT / "train.py"), *recipe, "force=true", f"output_dir={runs}"]
    error = None
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit)
        if done.returncode != 0:
            error = " ".join(done.stdout.splitlines()[-3:]) or f"exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        error = f"given up after {limit:.0f} s"
    found: dict[str, Any] = {"wall_s": time.time() - begun}
    written = [path for path in runs.glob("*/*/*/seed=*/metrics.jsonl") if path.stat().st_mtime >= begun]
    if written:
        folder = RunFolder(written[0].parent)
        found |= {"metrics": folder.read_metrics(), "result": folder.read_result()}
    row = {"recipe": " ".join(recipe), "found": found | ({} if error is None else {"error": error})}
    print(f"run: {row['recipe']}: {error or 'finished'}", flush=True)
    return row


def run_table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = []
    for row in rows:
        found = row["found"]
        lines += [f"`python train.py {row['recipe']}`", ""]
        if "error" in found:
            lines += [f"Failed: {as_cell(found['error'])}", ""]
        metrics = found.get("metrics", [])
        validations = [line for line in metrics if "eval/validation/token_error" in line]
        if validations:
            metric = METRICS["token_error"]
            errors = [metric.text(line["eval/validation/token_error"]) for line in validations]
            lines += [
                f"| step | {' | '.join(str(line['step']) for line in validations)} |",
                "|---|" + "---|" * len(validations),
                f"| validation {metric.label} | {' | '.join(errors)} |",
                "",
            ]
        rates = [line["train/tokens_per_s"] for line in metrics if "train/tokens_per_s" in line]
        result = found.get("result")
        if result:
            metric = METRICS[result["headline"]]
            splits = ", ".join(f"{split} {metric.text(own[result['headline']])}" for split, own in result["splits"].items())
            rate = f", median {median(rates):,.0f} tokens/s" if rates else ""
            lines.append(
                f"At the end {metric.label}: {splits}. {result['num_tokens']:,} tokens in {result['time_s']:.1f} s{rate}; "
                f"{found['wall_s']:.0f} s with start and scoring. A short run, whose learning rate falls to its end within "
                "these steps: not the paper's."
            )
    return lines


def training_table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    import gpu_training

    return gpu_training.table(rows)


TITLES = {
    "kernels": ("Kernels", gpu_kernels.table),
    "attention": ("Attention", gpu_attention.table),
    "training": ("Training", training_table),
    "run": ("A run", run_table),
}


def page(result: dict[str, Any]) -> str:
    """The Markdown."""
    lines = [
        f"## On one GPU: {result['hardware']['device']}",
        "",
        f"`make gpu-check`: {result['in_words']}; seeds: inputs of kernels and attention 0, training and run {SEED}; "
        f"{result['elapsed_s']:.0f} s of at most {result['limit_s']:.0f}.",
    ]
    for part, rows in result["parts"].items():
        title, table = TITLES[part]
        lines += ["", f"### {title}", ""]
        lines += table(rows) if rows else []
        if part in result["failures"]:
            lines += ["", f"This part failed: {as_cell(result['failures'][part])}"]
    if result["kernel_options"]:
        lines += ["", "### Options of the kernels", "", *gpu_kernels.options_table(result["kernel_options"])]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    settings = read_settings(arguments, CheckSettings, "python benchmarks/gpu_check.py to=outputs/gpu-check")
    begun = time.monotonic()
    result: dict[str, Any] = circumstances(settings.device) | {"limit_s": settings.limit, "parts": {}, "failures": {}}

    def write() -> None:
        result["elapsed_s"] = time.monotonic() - begun
        result["kernel_options"] = gpu_kernels.options_kept(settings.device)
        write_text(settings.to / "results.json", json.dumps(result, indent=1) + "\n")
        write_text(settings.to / "results.md", page(result))

    parts = [part for part in SHARES if part in settings.parts]
    for number, part in enumerate(parts):
        left = settings.limit - (time.monotonic() - begun)
        share = left * SHARES[part] / sum(SHARES[following] for following in parts[number:])
        rows = result["parts"][part] = []
        try:
            for row in rows_of(part, settings, share):
                rows.append(row)
                write()
        except Exception as error:  # whatever it is: the other parts are still wanted
            result["failures"][part] = f"{type(error).__name__}: {error}"
        write()
    print(page(result), f"written: {settings.to / 'results.md'} and results.json", sep="\n")
    failed = [
        part
        for part, rows in result["parts"].items()
        if part in result["failures"] or not all(is_good(part, row) for row in rows)
    ]
    if failed:
        raise UserError(f"Something is wrong or failed in {', '.join(failed)}: see {settings.to / 'results.md'}.")


def is_good(part: str, row: dict[str, Any]) -> bool:
    """Whether kernels are right, and of the others whether nothing but time was lacking."""
    found = row["found"]
    return gpu_kernels.is_right(row) if part == "kernels" else "error" not in found or "out_of_time" in found


if __name__ == "__main__":
    run_command(main, __doc__)
