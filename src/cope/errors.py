"""Errors that speak to the person at the keyboard.

A :class:`UserError` names the key, the value, what is allowed and, where there is one, the nearest match. ``train.py`` prints
its text alone and exits with status 1; a stack trace is for our own bugs.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

NEAR = 0.55  # of 1: how alike two words are by difflib's ratio; at 0.5 "nope" would be a slip of "code"


class UserError(ValueError):
    """Something the user can put right: a setting, a file, a folder, a missing package."""


class Interrupted(UserError):
    """What was running was asked to stop, has saved its state, and can go on."""


class Preempted(Interrupted):
    """It was a cluster that asked, by the signal it sends before it takes the machine back."""


class AlreadyRunning(UserError):
    """Another process has the folder."""


def reason_of(error: BaseException) -> str:
    """The first line of what ``error`` says; its kind if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def nearest(value: object, allowed: Iterable[object]) -> str:
    """`` Did you mean 'x'?`` for the closest of ``allowed``, or an empty string."""
    typed = str(value)
    if typed.isdigit():  # a number is no slip of another
        return ""
    matches = difflib.get_close_matches(typed, [str(choice) for choice in allowed], n=3, cutoff=NEAR)
    matches.sort(key=lambda match: sorted(match) != sorted(typed))  # two letters that changed places are the likeliest slip
    return f" Did you mean {matches[0]!r}?" if matches else ""


def counted(number: int, thing: str) -> str:
    """``1 run``, ``2 runs``, ``1,000 runs``."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def check_choice(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raise UserError unless ``value`` is one of ``allowed``."""
    allowed = list(allowed)
    if value not in allowed:
        listed = ", ".join(str(choice) for choice in allowed)
        raise UserError(f"{key}={value} is not known; allowed: {listed}.{nearest(value, allowed)}")


def check_at_least(key: str, value: float, minimum: float) -> None:
    """Raise UserError if ``value`` is below ``minimum``, infinite or NaN."""
    if not minimum <= value < math.inf:
        wrong = "not finite" if value == math.inf else "too small"
        raise UserError(f"{key}={value} is {wrong}; allowed: {minimum} or more.")


def check_between(key: str, value: float, low: float, high: float) -> None:
    """Raise UserError unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise UserError(f"{key}={value} is out of range; allowed: {low} to {high}.")
