"""docs/add-your-own.md: its files compose and build here; test_installation.py follows the page to the letter."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from conftest import CONFIGS, ENCODINGS, ROOT
from hydra import compose, initialize_config_dir

from cope.overrides import Composer
from cope.run.experiment import Experiment

PAGE = (ROOT / "docs" / "add-your-own.md").read_text()
SEARCH = "hydra.searchpath=[pkg://my_ideas.configs]"


def files_of_the_page() -> dict[str, str]:
    return dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


def commands_of_the_page() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    return [command for block in blocks for command in block.replace("\\\n", " ").splitlines()]


def write_files(folder: Path) -> None:
    for name, text in files_of_the_page().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.filterwarnings("error:provider=hydra.searchpath")
def test_the_pages_encoding_and_task_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COPE_PACKAGES", "my_ideas")
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            asking = [name for name in ENCODINGS if "${recipe." in (CONFIGS / "pe" / f"{name}.yaml").read_text()]
            assert "cope" in asking
            for other in asking:  # a recipe has what every encoding asks of it
                Experiment(compose("train", overrides=[SEARCH, f"pe={other}", "task=backwards", "logger=none"]))
            config = compose(
                "train",
                overrides=[
                    *(SEARCH, "pe=decay", "task=backwards", "logger=none", f"output_dir={tmp_path / 'outputs'}"),
                    *(
                        "trainer.steps=4",
                        "trainer.eval_every=4",
                        "trainer.batch_size=4",
                        "task.num_validation=8",
                        "task.num_test=8",
                    ),
                ],
            )
        experiment = Experiment(config)
        result = experiment.run(show_progress=False)
        assert set(result["splits"]) == {"validation", "test", "ood_longer"}
        assert experiment.folder.path.parts[-4:-2] == ("backwards", "decay")
        told = Composer(CONFIGS).problems([SEARCH, "pe=decai"])
        assert len(told) == 1 and "Did you mean 'decay'?" in told[0]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_ideas"]:
            del sys.modules[name]
