"""Finished runs side by side: the settings in which they differ, their scores, time and size.

    python scripts/compare.py outputs/counting/cope/1a2b3c4d/seed=1 outputs/counting/rope/5e6f7a8b/seed=1
    python scripts/compare.py outputs task=counting seed=1,2       # every run below a folder, those that are asked for
    python scripts/compare.py outputs pe=cope,rope split=test,ood_shorter

Filters: task, pe, seed, scale, split; several values are separated by commas.
"""

import sys
from pathlib import Path

import pandas as pd

from cope.cli import key_values
from cope.errors import UserError, check_choice
from cope.metrics import METRICS
from cope.report.collect import describe_differences, read_results
from cope.report.tables import MISSING

FILTERS = {"task": "task", "pe": "encoding", "seed": "seed", "scale": "scale"}  # what is typed -> the key in result.json
KEYS = {key: (lambda text: text.split(","), "values separated by commas") for key in [*FILTERS, "split"]}


def main(arguments: list[str]) -> None:
    named = [argument for argument in arguments if argument and ("=" not in argument or Path(argument).is_dir())]
    filters = key_values([argument for argument in arguments if argument not in named], KEYS)
    folders = [Path(argument) for argument in named]
    if not folders:
        raise UserError("no folder is named; allowed: folders of runs, or any above them, such as outputs.")
    results = []
    for folder in folders:
        found = read_results(folder)
        if not found:
            raise UserError(f"{folder} holds no finished run; allowed: folders of runs, or any above them, such as outputs.")
        results += found
    for key, column in FILTERS.items():
        if key in filters:
            for value in filters[key]:
                check_choice(key, value, sorted({str(result[column]) for result in results}))
    results = [
        result for result in results if all(str(result[FILTERS[key]]) in filters[key] for key in FILTERS if key in filters)
    ]
    if not results:
        raise UserError("no finished run has all of these filters' values; leave one out.")
    splits = list(dict.fromkeys(split for result in results for split in result["splits"]))
    for split in filters.get("split", []):
        check_choice("split", split, splits)
    splits = filters.get("split", splits)
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
    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        try:
            main(sys.argv[1:])
        except UserError as error:
            sys.exit(f"error: {error}")
