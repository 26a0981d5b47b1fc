"""Reads many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cope.run.configuration import flatten
from cope.run.folder import RunFolder


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Every finished run in ``folder``, which may be a run's own or any above it, in the order of their folders' names.

    Damaged results are told, and left out.
    """
    return [result for run in RunFolder.below(folder) if (result := run.sound_result()) is not None]


def describe_differences(configs: list[dict[str, Any]]) -> list[str]:
    """For each of several runs, ``key=value`` of the settings in which runs of the same encoding differ."""
    flat = [flatten(config) for config in configs]
    by_encoding: dict[Any, list[dict[str, Any]]] = {}
    for settings in flat:
        by_encoding.setdefault(settings.get("pe.name"), []).append(settings)
    labels = []
    for settings in flat:
        others = by_encoding[settings.get("pe.name")]
        keys = [key for key in settings if any(other.get(key) != settings[key] for other in others)]
        labels.append(" ".join(f"{key}={settings[key]}" for key in keys))
    return labels
