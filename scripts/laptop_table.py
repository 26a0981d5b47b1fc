"""Print the README's table from finished runs: each encoding on the three synthetic tasks, beside the paper's figures.

    python scripts/laptop_table.py            # after the sweep; `make laptop-table` does both

Reads the runs that the default settings of each encoding and task define, and no others; what has not been run is "missing".
"""

import argparse
from pathlib import Path

from hydra import compose, initialize_config_dir

from cope.configuration import run_hash
from cope.report.comparison import comparison_table, provenance
from cope.results.record import RunFolder

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
ENCODINGS = ("none", "absolute", "relative", "rope", "cope")
TASKS = ("counting", "selective_copy", "flip_flop")
SEEDS = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", default="outputs", help="where the runs are")
    parser.add_argument("--scale", default="laptop")
    options = parser.parse_args()
    tables, finished = [], []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for task in TASKS:
            results = {}
            for encoding in ENCODINGS:
                config = compose("train", overrides=[f"pe={encoding}", f"task={task}", f"scale={options.scale}"])
                folders = [RunFolder.of(options.output_dir, task, encoding, run_hash(config), seed) for seed in SEEDS]
                results[encoding] = [result for folder in folders if (result := folder.read_result()) is not None]
                finished += results[encoding]
            tables.append(comparison_table(task, results, num_seeds=len(SEEDS)))
    print("\n\n".join(tables))
    if finished:
        print("\n" + provenance(finished))


if __name__ == "__main__":
    main()
