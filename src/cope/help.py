"""``--help`` of the commands that Hydra configures: purpose, examples, choices, and every key with its value and meaning."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from cope.errors import UserError
from cope.lines import WIDTH, as_typed
from cope.overrides import Composer

KEY_WIDTH = 36  # what is said of a key begins there
NOT_SHOWN = ("recipe.", "hydra.", "task.corpus", "task.data_dir")  # the last two are corpus and data_dir
SHOWN_GROUPS = ("pe", "task", "corpus", "scale", "logger", "recipe")


def show_help(documentation: str | None, config_folder: str, config_name: str = "train") -> None:
    """If ``--help`` was asked for, print it and exit; what else is on the command line is taken into account.

    Raises:
        UserError: it cannot be composed.
    """
    arguments = sys.argv[1:]
    if not {"-h", "--help"} & set(arguments):
        return
    typed, others = get_args_parser().parse_known_args(arguments)
    overrides = [*typed.overrides, *(argument for argument in others if not argument.startswith("-"))]
    configs = (Path(sys.argv[0]).resolve().parent / config_folder).resolve()
    composer = Composer(configs, config_name, typed.config_dir)
    if problems := composer.problems(overrides, typed.multirun):
        raise UserError("\n".join(problems))
    config = composer.first_composed(overrides)
    print(f"{as_typed(documentation or '')}\n{_groups(composer, config)}{_keys(configs, config_name, config)}")
    sys.exit()


def _groups(composer: Composer, config: DictConfig) -> str:
    lines = []
    for group in SHOWN_GROUPS:
        names = [choice for choice in composer.choices(group) if "/" not in choice]
        if names and group in config:
            lines.append(textwrap.fill(", ".join(names), WIDTH, initial_indent=f"  {group}=", subsequent_indent=" " * 8))
    return "Groups and their choices\n" + "\n".join(lines) + "\n\n" if lines else ""


def _keys(configs: Path, config_name: str, config: DictConfig) -> str:
    """A line a key: what it is with these settings, and what its file says of it."""
    said_of = dict(comments(configs / f"{config_name}.yaml"))
    for group in ("corpus", "task", "pe", "logger"):
        name = str(config[group].name) if group in config and "name" in config[group] else "*"
        for base in (name.partition("_")[0], name):
            for path in (configs / group).glob(f"{base}.yaml"):
                said_of |= {f"{group}.{key}": comment for key, comment in comments(path)}
    lines = []
    for key in leaves(config):
        if key.startswith(NOT_SHOWN) or key.endswith(("._target_", ".name")) or key in SHOWN_GROUPS:
            continue
        last = key.rpartition(".")[2]
        of_split = f"task.{last}, in this split" if key.startswith("task.splits.") and last in config.task else ""
        lines += _entry(f"{key}={_value(config, key)}", said_of.get(key, of_split))
    return "Keys, with their values here\n" + "\n".join(lines)


def _entry(setting: str, comment: str) -> list[str]:
    """In two columns; a setting that is wider than its own has its comment below."""
    told = textwrap.wrap(comment, WIDTH - KEY_WIDTH, break_on_hyphens=False)
    setting = textwrap.fill(setting, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    if not told or len(setting) >= KEY_WIDTH:
        return [setting, *(f"{'':{KEY_WIDTH}}{line}" for line in told)]
    first, *others = told
    return [f"{setting:{KEY_WIDTH}}{first}", *(f"{'':{KEY_WIDTH}}{line}" for line in others)]


def leaves(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() and not node._is_interpolation():
            yield from leaves(node, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _value(config: DictConfig, key: str) -> str:
    try:
        value = OmegaConf.select(config, key, throw_on_missing=True)
    except Exception:  # one that cannot be resolved yet, such as a recipe's that another setting replaces
        return "???"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def comments(path: Path) -> Iterator[tuple[str, str]]:
    """Each key's comment, by its whole name."""
    parents: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"( *)([A-Za-z_]\w*):(.*)", line):
            parents = [*parents[: len(found[1]) // 2], found[2]]
            comment = found[3].partition(" # ")[2]
            if comment:
                yield ".".join(parents), comment.strip()
