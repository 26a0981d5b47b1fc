"""Ask a language model how many times a word is mentioned in a sentence: Table 1
of arXiv 2405.18719, and more of the kind.

    python scripts/probe_llm.py endpoint=http://localhost:8000/v1 model=NAME
    python scripts/probe_llm.py endpoint=https://host/v1 model=NAME samples=5
    python scripts/probe_llm.py local=/path/to/model

A server's key is read from the environment variable OPENAI_API_KEY and stored
nowhere. The same command again asks only what is not answered yet.
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command()  # before anything slow is imported

import sys
from dataclasses import fields

import hydra
from omegaconf import DictConfig, OmegaConf

from cope.building import arguments
from cope.cli import reporting_errors, run_hydra_command


@hydra.main(version_base="1.3", config_path="../configs/probe", config_name="llm")
def main(config: DictConfig) -> None:
    # Imported here, so that --help need not wait for PyTorch.
    from cope.probe.models import ProbeSettings
    from cope.probe.word_counting import failures_line, probe_table, run_probe

    names = [field.name for field in fields(ProbeSettings)]
    with reporting_errors():
        settings = ProbeSettings(**arguments(OmegaConf.masked_copy(config, names), ProbeSettings, ""))
        result, path = run_probe(settings, config.output_dir, show_progress=sys.stderr.isatty())
    print(probe_table(result))
    print(f"\nwritten to: {path}")
    if failed := failures_line(result):
        print(failed, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_hydra_command(main, "../configs/probe", "llm")
