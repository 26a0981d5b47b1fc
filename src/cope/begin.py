"""What a command does first that has its settings in its own documentation: a slip is told before PyTorch is waited for."""

from __future__ import annotations

import cope.start


def begin(documentation: str | None, doing: str = "", has_settings_of_train: bool = False) -> None:
    """:func:`cope.start.start`; then refuse keys that ``documentation`` has no line for.

    Args:
        has_settings_of_train: allow those of ``train.py`` as well.
    """
    cope.start.start(documentation, doing)
    from cope.cli import OF_TRAIN, check_keys  # after that: it imports Hydra

    check_keys(documentation, OF_TRAIN if has_settings_of_train else ())
