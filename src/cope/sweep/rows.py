"""What rows of tables compose to, kept between commands.

To compose a row takes Hydra a tenth of a second, and a report reads over a hundred. So what it comes to is kept in the user's
cache folder (``$COPE_CACHE``, or ``~/.cache/cope-lab``), if it hangs on nothing but files that are looked at again each time:
the package's and its configs. Where it may hang on more (the environment, other packages, other folders) it is not.

Rows that are new differ in few choices of files and in many settings. Files are put together once for each set of choices.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

import cope
from cope.building import named_packages
from cope.errors import UserError
from cope.files import cache_folder, digest_of, read_json, write_json
from cope.run.configuration import check_top_level, definition, folder_of
from cope.run.folder import RunFolder

MOST_KEPT = 2000  # some 3 MB; then the oldest go
COMPOSES = ("hydra-core", "omegaconf", "PyYAML")
# An override that says all of what it means: a choice or a value, or another key of the same config.
PLAIN = re.compile(r"(?!hydra\b)[\w.]+(/\w+)*=([\w.+\-/,:~ \[\]]|\$\{[\w.]+\})*")
NOT_PLAIN = re.compile(r"_target_|(^|[=/])\.\.(/|$)")
# In a config file: what makes it hang on something else. `oc.select` reads the same config.
OF_ELSEWHERE = re.compile(rb"searchpath|\$\{\s*(?!oc\.select\b|user_path\b)[\w.]+\s*:")

Compose = Callable[[tuple[str, ...]], DictConfig]

log = logging.getLogger(__name__)
_of_choices: dict[tuple[Path, str, tuple[str, ...]], bytes] = {}  # what choices of files compose to, pickled


@dataclass(frozen=True)
class Row:
    """What a plan needs of a row's configuration.

    Args:
        defined: what :func:`cope.run.configuration.definition` says of it.
    """

    scale: str
    output_dir: str
    defined: dict[str, Any]

    @classmethod
    def of(cls, config: DictConfig) -> Row:
        """Raises UserError where a key outside every group is wrong."""
        check_top_level(config)
        return cls(config.scale, config.output_dir, definition(config))

    def folder(self, seed: int) -> RunFolder:
        """Where its run with ``seed`` is."""
        return folder_of(self.output_dir, self.defined, seed)


@contextmanager
def kept_rows(configs: Path, compose: Compose) -> Iterator[Callable[[tuple[str, ...]], Row]]:
    """What gives the row of some overrides, by ``compose`` where it is not known; new ones are kept at the end of the block."""
    before = _state(configs)
    kept = _read(configs, before) if before else {}
    new: dict[str, Row] = {}

    def row_of(overrides: tuple[str, ...]) -> Row:
        key = json.dumps(overrides)
        if key not in kept:
            if not (before and all(map(_is_plain, overrides))):
                return Row.of(compose(overrides))
            row = Row.of(_composed_in_two_steps(configs, before, compose, overrides))
            if not _is_json(asdict(row)):
                return row
            kept[key] = new[key] = row
        return kept[key]

    yield row_of
    if new and before == _state(configs):  # else a file was changed meanwhile, and nobody knows which rows are of which
        try:
            rows = {key: asdict(row) for key, row in [*kept.items()][-MOST_KEPT:]}
            write_json(_file(configs), {"state": before, "sum": digest_of(rows), "rows": rows})
        except UserError as error:
            log.debug("rows are composed again next time: %s", error)


def _composed_in_two_steps(configs: Path, state: str, compose: Compose, overrides: tuple[str, ...]) -> DictConfig:
    """What ``compose`` makes of plain ``overrides``: of the choices among them; then the others are set as Hydra does it."""
    choices = tuple(override for override in overrides if (configs / override.partition("=")[0]).is_dir())
    settings = OverridesParser.create().parse_overrides([override for override in overrides if override not in choices])
    if not settings or any(override.is_sweep_override() for override in settings):
        return compose(overrides)
    key = (configs, state, choices)
    if key not in _of_choices:
        _of_choices[key] = pickle.dumps(compose(choices))
    config: DictConfig = pickle.loads(_of_choices[key])
    try:
        ConfigLoaderImpl._apply_overrides_to_config(settings, config)
    except HydraException:
        return compose(overrides)  # which tells what is wrong with all of them
    return config


def _is_plain(override: str) -> bool:
    return PLAIN.fullmatch(override) is not None and NOT_PLAIN.search(override) is None


def _is_json(content: Any) -> bool:
    """Whether JSON gives ``content`` back as it is: it has no infinity, no tuples, and keys of text alone."""
    try:
        return bool(json.loads(json.dumps(content, allow_nan=False)) == content)
    except ValueError:
        return False


def _read(configs: Path, state: str) -> dict[str, Row]:
    """The rows that are known; none if they are of another state, damaged, or not to be read."""
    try:
        content = read_json(_file(configs))
        if content["state"] == state and content["sum"] == digest_of(content["rows"]):
            return {key: Row(**row) for key, row in content["rows"].items()}
    except (UserError, KeyError, TypeError, RecursionError):
        pass  # it is written anew
    return {}


def _file(configs: Path) -> Path:
    """Where the rows of ``configs`` are kept.

    Raises:
        UserError: there is no home folder.
    """
    return cache_folder() / f"rows-{hashlib.sha256(str(configs).encode()).hexdigest()[:8]}.json"


def _state(configs: Path) -> str | None:
    """A hash of all that a row hangs on; None where that cannot be known."""
    if named_packages() or Plugins.instance().discover(SearchPathPlugin):
        return None
    digest = hashlib.sha256(json.dumps([python_version(), *map(version, COMPOSES)]).encode())
    try:
        for folder, kind in ((configs, ".yaml"), (Path(cope.__file__).parent, ".py")):
            for path in sorted(_files_below(folder, kind)):
                text = path.read_bytes()
                if kind == ".yaml" and OF_ELSEWHERE.search(text):
                    return None
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + text + b"\0")
    except OSError:
        return None
    return digest.hexdigest()


def _files_below(folder: Path, kind: str) -> Iterator[Path]:
    """Also by way of links; an editor's lock, a link that leads nowhere, is no file."""
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(place, name)
            if path.suffix == kind and path.is_file():
                yield path
