"""The values that the paper prints, from ``paper.yaml``."""

from __future__ import annotations

from cope.report.names import packaged

# Sections that are judged by something else than errors of whole sequences.
_HEADLINES = dict.fromkeys(("flip_flop", "flip-flop"), "token_error") | dict.fromkeys(
    ("wikipedia", "code", "variants", "position alone", "trained at the full context", "trained at half of it"), "perplexity"
)


def paper_values() -> dict[str, dict[str, dict[str, list[float]]]]:
    """``{section: {row: {split: [mean, standard deviation] or [value]}}}``: test error in percent, or perplexity."""
    content: dict[str, dict[str, dict[str, list[float]]]] = packaged("paper.yaml")
    return content


def headline_of(section: str) -> str:
    """The metric of a section's published values."""
    return _HEADLINES.get(section.partition(",")[0], "error")
