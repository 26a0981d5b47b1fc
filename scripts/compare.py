"""Finished runs side by side: the settings in which they differ, their scores, time and size.

    python scripts/compare.py outputs/counting/cope/1a2b3c4d/seed=1 outputs/counting/rope/5e6f7a8b/seed=1
    python scripts/compare.py outputs task=counting seed=1,2       # every run below a folder, those that are asked for
    python scripts/compare.py outputs pe=cope,rope split=test,ood_shorter

Filters: task, pe, seed, scale, split; several values are separated by commas.
"""

import sys
from pathlib import Path

import pandas as pd

from cope.errors import UserError, check_choice
from cope.report.tables import MISSING
from cope.results.collect import describe_differences, read_results
from cope.results.metrics import METRICS

FILTERS = {"task": "task", "pe": "encoding", "seed": "seed", "scale": "scale"}  # what is typed -> the key in result.json


def main(arguments: list[str]) -> None:
    folders = [Path(argument) for argument in arguments if "=" not in Path(argument).parts[0]]
    filters = dict(argument.split("=", 1) for argument in arguments if "=" in Path(argument).parts[0])
    for key in filters:
        check_choice("filter", key, [*FILTERS, "split"])
    wanted = {FILTERS[key]: set(values.split(",")) for key, values in filters.items() if key != "split"}
    results = [
        result for folder in folders for result in read_results(folder)
        if all(str(result[key]) in values for key, values in wanted.items())
    ]  # fmt: skip
    if not results:
        raise UserError(f"there is no finished run in {', '.join(map(str, folders)) or 'no folder'} with these filters.")
    splits = list(dict.fromkeys(split for result in results for split in result["splits"]))
    if "split" in filters:
        for split in filters["split"].split(","):
            check_choice("split", split, splits)
        splits = filters["split"].split(",")
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
