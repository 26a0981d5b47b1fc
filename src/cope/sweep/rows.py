"""What rows of tables compose to, kept between commands.

To compose a row takes Hydra a tenth of a second, and a report reads over a hundred. So what it comes to is kept in the user's
cache folder (``$COPE_CACHE``, or ``~/.cache/cope-lab``), for as long as nothing changes that it hangs on: configs, the package,
and the versions of what composes. Rows that may take in something else are composed each time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

import cope
from cope.errors import UserError
from cope.files import cache_folder, read_json, write_json
from cope.run.configuration import check_top_level, definition, run_folder
from cope.run.folder import RunFolder

MOST_KEPT = 2000  # some 3 MB; then all are composed anew
COMPOSES = ("hydra-core", "omegaconf", "PyYAML")
# In an override: Hydra's own settings, among them where configs are looked for; another package's class; the environment.
FROM_OUTSIDE = re.compile(r"hydra|_target_|\$\{[^{}]*:")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """What a plan needs of a row's configuration.

    Args:
        defined: what :func:`cope.run.configuration.definition` says of it.
    """

    scale: str
    task: str
    output_dir: str
    defined: dict[str, Any]

    @classmethod
    def of(cls, config: DictConfig) -> Row:
        """Raises UserError where a key outside every group is wrong."""
        check_top_level(config)
        return cls(config.scale, config.task.name, config.output_dir, definition(config))

    def folder(self, seed: int) -> RunFolder:
        """Where its run with ``seed`` is."""
        return run_folder(OmegaConf.create({"output_dir": self.output_dir}), seed, self.defined)


@contextmanager
def kept_rows(configs: Path, compose: Callable[[tuple[str, ...]], DictConfig]) -> Iterator[Callable[[tuple[str, ...]], Row]]:
    """What gives the row of some overrides, by ``compose`` where it is not known; new ones are kept at the end of the block."""
    kept, path = _read(configs), _file(configs)
    new: dict[str, Row] = {}

    def row_of(overrides: tuple[str, ...]) -> Row:
        if any(map(FROM_OUTSIDE.search, overrides)) or _configs_from_packages():
            return Row.of(compose(overrides))
        key = json.dumps(overrides)
        if key not in kept:
            kept[key] = new[key] = Row.of(compose(overrides))
        return kept[key]

    try:
        yield row_of
    finally:
        if new and path is not None:
            _write(path, configs, kept if len(kept) <= MOST_KEPT else new)


@cache
def _read(configs: Path) -> dict[str, Row]:
    """The rows that are known; none if they are of another state, or cannot be read."""
    path = _file(configs)
    if path is None or not path.exists():
        return {}
    try:
        content = read_json(path)
        return {key: Row(**row) for key, row in content["rows"].items()} if content["state"] == _state(configs) else {}
    except (UserError, KeyError, TypeError, AttributeError):  # damaged: it is written anew
        return {}


def _write(path: Path, configs: Path, rows: dict[str, Row]) -> None:
    kept = {key: asdict(row) for key, row in rows.items()}
    try:
        write_json(path, {"state": _state(configs), "rows": {key: row for key, row in kept.items() if _is_json(row)}})
    except UserError as error:
        log.debug("rows are composed again next time: %s", error)


def _is_json(content: Any) -> bool:
    """Whether JSON gives ``content`` back as it is: it has no infinity, no tuples, and keys of text alone."""
    try:
        return bool(json.loads(json.dumps(content, allow_nan=False)) == content)
    except ValueError:
        return False


def _file(configs: Path) -> Path | None:
    """Where the rows of ``configs`` are kept; None if there is no home folder."""
    try:
        return cache_folder() / f"rows-{hashlib.sha256(str(configs).encode()).hexdigest()[:8]}.json"
    except UserError:
        return None


@cache
def _state(configs: Path) -> str:
    """A hash of all that a row hangs on."""
    digest = hashlib.sha256(json.dumps([python_version(), *map(version, COMPOSES)]).encode())
    for folder, kind in ((configs, "*.yaml"), (Path(cope.__file__).parent, "*.py")):
        for path in sorted(folder.rglob(kind)):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def _configs_from_packages() -> bool:
    """Whether an installed package adds a place for configs."""
    return bool(Plugins.instance().discover(SearchPathPlugin))
