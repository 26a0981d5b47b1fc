"""A corpus as its file in configs/corpus has it, and what can be read of it."""

from __future__ import annotations

from typing import Any

from conftest import CONFIGS
from omegaconf import DictConfig, OmegaConf

from cope.building import build
from cope.corpora.base import Corpus, LeftOut

SPLITS = ("train", "validation", "test")


def made(name: str, **changes: Any) -> Any:
    """The corpus as its file in configs/corpus has it, with ``changes``."""
    node = OmegaConf.load(CONFIGS / "corpus" / f"{name}.yaml")
    assert isinstance(node, DictConfig)
    for key, value in changes.items():
        node[key] = value
    return build(node, "corpus")


def all_documents(corpus: Corpus) -> dict[str, list[str]]:
    return {split: [text for text in corpus.documents(split) if isinstance(text, str)] for split in SPLITS}


def left_out(corpus: Corpus) -> list[str]:
    return [text.reason for split in SPLITS for text in corpus.documents(split) if isinstance(text, LeftOut)]


def flat(corpus: Corpus) -> list[str]:
    return sorted(text for texts in all_documents(corpus).values() for text in texts)
