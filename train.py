"""Train a Transformer with one position encoding on one task, and score it in and
out of distribution.

    python train.py pe=cope task=counting
    python train.py -m pe=absolute,relative,rope,cope task=counting seed=1,2,3

The same command again goes on with an unfinished run and shows a finished one.
``python train.py task=flip_flop --help`` lists the settings of flip-flop;
``--cfg job`` shows all that a command composes to.
"""

import sys

if __name__ == "__main__":
    from cope.command_start import start_command

    # Before anything is imported that takes seconds. A single run's first line comes soon enough.
    start_command(doing="composing the runs" if {"-m", "--multirun"} & set(sys.argv) else "")

import hydra
from omegaconf import DictConfig

from cope.cli import is_sweep, reporting_errors, run_hydra_command


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def train(config: DictConfig) -> None:
    with reporting_errors():
        if not is_sweep():
            run = f"{config.pe.name} on {config.task.name}, scale {config.scale}, seed {config.seed}"
            print(f"{run}: loading PyTorch ...", flush=True)
        # Imported here, so that the first line, and --help, need not wait for PyTorch.
        from cope.report.cost_sheets import cost_sheet
        from cope.report.figures import draw_run
        from cope.report.run_sheets import run_sheet
        from cope.report.sheets import show
        from cope.run.experiment import Experiment
        from cope.run.summary import run_line

        experiment = Experiment(config)
        if config.dry:
            show(
                [cost_sheet(f"{config.pe.name} on {config.task.name}", experiment.cost(), config.dry, config.trainer.precision)]
            )
            return
        result = experiment.run(show_progress=sys.stderr.isatty() and not is_sweep())
        if experiment.is_main_process:
            pictures = draw_run(experiment.folder)
            experiment.logger.images(pictures)
            experiment.logger.finish(result["splits"])
            if is_sweep():
                print(run_line(result), flush=True)
            else:
                show([run_sheet(result, experiment.folder, pictures.values())])


if __name__ == "__main__":
    run_hydra_command(train, "configs", "train")
