"""Python files from GitHub: ``codeparrot/codeparrot-clean-train`` of the Hub, those under permissive licences.

Why: the natural corpus of code, deduplicated by its makers. The split is by repository, so that no repository is trained on
and scored. ``codeparrot-clean-valid`` is not used, since nothing says that it shares no repository with the training files.
The data set is too large to keep (some 50 GB of text), so it is read as it is downloaded, from the start until there is
enough, once for each split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cope.corpora.base import HashedCorpus, LeftOut, check_source, files_digest, split_by_hash
from cope.corpora.rows import find_files, has_rows, read_columns, read_hub
from cope.errors import UserError, check_at_least, check_choice

DATASET = "codeparrot/codeparrot-clean-train"
COLUMNS = ["repo_name", "license", "content"]
# The licences that GitHub recognised when the data set was made.
LICENSES = (
    "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "epl-1.0", "gpl-2.0", "gpl-3.0", "isc",
    "lgpl-2.1", "lgpl-3.0", "mit", "mpl-2.0", "unlicense",
)  # fmt: skip


@dataclass(kw_only=True)
class Codeparrot(HashedCorpus):
    """Files in the order of the data set, split by repository.

    Args:
        licenses: those wanted.
        source: ``hub``, or a folder with files of the same columns (``.json.gz``, ``.jsonl`` or ``.parquet``).
        num_documents: files to take from the start, of all splits together, before duplicates are removed; None takes all.
    """

    licenses: list[str]
    source: str
    num_documents: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for wanted in self.licenses:
            check_choice("corpus.licenses", wanted, LICENSES)
        if not self.licenses:
            raise UserError(f"corpus.licenses is empty; allowed: some of {', '.join(LICENSES)}.")
        self.licenses = sorted(set(self.licenses))
        if self.num_documents is not None:
            check_at_least("corpus.num_documents", self.num_documents, 1)
        check_source(self.source)

    @property
    def license(self) -> str:
        return f"each file's own, one of: {', '.join(self.licenses)}"

    def documents(self, split: str) -> Iterator[str | LeftOut]:
        taken = 0
        for repository, license, content in self._rows():
            is_ours = split_by_hash(repository, *self.fractions) == split
            if license not in self.licenses:
                if is_ours:
                    yield LeftOut(f"files under other licences, in {split}")
                continue
            if is_ours:
                yield content
            taken += 1
            if taken == self.num_documents:
                return

    def identity(self) -> dict[str, Any]:
        files = DATASET if self.source == "hub" else files_digest(self._files())
        return {
            "source": files,
            "licenses": self.licenses,
            "num_documents": self.num_documents,
            "fractions": list(self.fractions),
        }

    def _rows(self) -> Iterator[list[str]]:
        if self.source == "hub":
            yield from read_hub(self.name, DATASET, COLUMNS, split="train", streaming=True)
            return
        for _, path in self._files():
            yield from read_columns(path, COLUMNS, f"corpus.source={self.source}: column")

    def _files(self) -> list[tuple[str, Path]]:
        """The data files of a local folder; its README and the like are passed over."""
        files = find_files("corpus.source", self.source)
        data = [(name, path) for name, path in files if has_rows(path)]
        if not data:
            raise UserError(f"corpus.source={self.source} has no data files; allowed: .json.gz, .jsonl or .parquet.")
        return data
