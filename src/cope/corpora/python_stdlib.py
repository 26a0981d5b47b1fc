"""The sources of the Python that is running, as a corpus of code that is always at hand.

Why: no download, and a licence that allows it. A document is a file, exactly as it is: newlines, tabs and form feeds too. Its
path within the library decides its split, so that a file stays where it is from one version of Python to the next. Left out are
files that a program wrote: tables of characters, which are near-copies of one another and would stand in every split, and the
manual as one module of strings.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cope.corpora.base import HashedCorpus, LeftOut, files_digest, split_by_hash
from cope.errors import UserError

INSTALLED = ("site-packages", "dist-packages")  # what others wrote
GENERATED = ("encodings", "pydoc_data")
TEST_FOLDERS = ("test", "tests", "idle_test")


@dataclass(kw_only=True)
class PythonStdlib(HashedCorpus):
    """Files named ``*.py``, in the order of their paths.

    Args:
        tests: whether the library's own tests belong to it; they are nearly half of it.
        packages: names of installed packages whose sources are read as well.
    """

    tests: bool
    packages: list[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.packages = sorted(set(self.packages))
        self.folders = {"stdlib": Path(sysconfig.get_path("stdlib")), **{name: _package(name) for name in self.packages}}

    @property
    def license(self) -> str:
        others = f"; {', '.join(self.packages)}: see the packages' own" if self.packages else ""
        return f"Python {platform.python_version()}: Python Software Foundation License{others}"

    def documents(self, split: str) -> Iterator[str | LeftOut]:
        for key, path in self._files():
            if split_by_hash(key, *self.fractions) == split:
                try:
                    yield path.read_bytes().decode()
                except UnicodeDecodeError:
                    yield LeftOut(f"files that are not UTF-8, in {split}")
                except OSError as error:
                    raise UserError(f"corpus={self.name}: {path} cannot be read ({error.strerror}).") from error

    def identity(self) -> dict[str, Any]:
        return {"fractions": list(self.fractions), "files": files_digest(self._files())}

    def _files(self) -> list[tuple[str, Path]]:
        """``(name, path)`` of every file, sorted by name; names are the same on every machine."""
        found = []
        for name, place in self.folders.items():
            paths = [place] if place.is_file() else self._below(place, (*INSTALLED, *GENERATED) if name == "stdlib" else ())
            root = place.parent if place.is_file() else place
            found += [(f"{name}/{path.relative_to(root).as_posix()}", path) for path in paths]
        if not found:
            raise UserError(f"corpus={self.name}: there are no sources in {self.folders['stdlib']}. Take another corpus.")
        return sorted(found)

    def _below(self, folder: Path, left_out: tuple[str, ...]) -> list[Path]:
        """The sources in ``folder``; folders that are left out are not entered, for they can be far larger than the rest."""
        paths = []
        for parent, inner, names in os.walk(folder):
            inner[:] = [name for name in inner if name not in left_out and (self.tests or name not in TEST_FOLDERS)]
            paths += [Path(parent, name) for name in names if name.endswith(".py")]
        return paths


def _package(name: str) -> Path:
    """Where the top-level package or module ``name`` lies; it is not imported."""
    try:
        found = importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:  # __main__
        found = None
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise UserError(f"corpus.packages: {name!r} is not an installed package with sources; allowed: names to import it by.")
    origin = Path(found.origin)
    return origin.parent if found.submodule_search_locations else origin
