"""Finished runs side by side: the settings in which they differ, their scores, time and size.

    python scripts/compare.py runs=outputs/counting/cope/1a2b3c4d/seed=1,outputs/counting/rope/5e6f7a8b/seed=1
    python scripts/compare.py runs=outputs task=counting seed=1,2       # every run below a folder, those that are asked for
    python scripts/compare.py runs=outputs pe=cope,rope split=test,ood_shorter

Filters: task, pe, seed, scale, split; several values are separated by commas.
"""

from dataclasses import dataclass

import pandas as pd

from cope.cli import read_settings, run_command
from cope.errors import UserError, check_choice
from cope.files import user_path
from cope.metrics import METRICS
from cope.report.collect import describe_differences, read_results
from cope.report.tables import MISSING

FILTERS = {"task": "task", "pe": "encoding", "seed": "seed", "scale": "scale"}  # what is typed -> the key in result.json


@dataclass(frozen=True)
class ComparisonSettings:
    runs: tuple[str, ...]  # folders of runs, or any above them
    task: tuple[str, ...] = ()  # of this and those below: () takes all
    pe: tuple[str, ...] = ()
    seed: tuple[str, ...] = ()
    scale: tuple[str, ...] = ()
    split: tuple[str, ...] = ()


def main(arguments: list[str]) -> None:
    settings = read_settings(arguments, ComparisonSettings, "python scripts/compare.py runs=outputs [task=counting ...]")
    wanted = {key: values for key in FILTERS if (values := getattr(settings, key))}
    results = []
    for folder in (user_path("runs", text) for text in settings.runs):
        found = read_results(folder)
        if not found:
            raise UserError(f"{folder} holds no finished run; allowed: folders of runs, or any above them, such as outputs.")
        results += found
    for key, values in wanted.items():
        for value in values:
            check_choice(key, value, sorted({str(result[FILTERS[key]]) for result in results}))
    results = [result for result in results if all(str(result[FILTERS[key]]) in values for key, values in wanted.items())]
    if not results:
        raise UserError("no finished run has all of these filters' values; leave one out.")
    splits = list(dict.fromkeys(split for result in results for split in result["splits"]))
    for split in settings.split:
        check_choice("split", split, splits)
    splits = list(settings.split) or splits
    rows = []
    for result, differences in zip(results, describe_differences([result["config"] for result in results]), strict=True):
        metric = METRICS[result["headline"]]
        scores = {
            split: metric.text(result["splits"][split][result["headline"]]) if split in result["splits"] else MISSING
            for split in splits
        }
        rows.append(
            {"task": result["task"], "pe": result["encoding"], "seed": result["seed"], "scale": result["scale"]}
            | {"metric": metric.label}
            | scores
            | {"seconds": round(result["time_s"]), "parameters": f"{result['num_parameters']:,}", "differs in": differences}
        )
    print(pd.DataFrame(rows).sort_values(["task", "pe", "seed"], kind="stable").to_string(index=False))


if __name__ == "__main__":
    run_command(main, __doc__)
