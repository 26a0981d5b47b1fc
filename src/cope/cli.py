"""The words of the commands: settings as ``key=value``, errors told in one message, exit statuses."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cope.errors import AlreadyRunning, Interrupted, UserError, nearest
from cope.files import user_path
from cope.run.lookup import run_path

INTERRUPTED = 130  # the shell's exit status of a program stopped by Ctrl-C
LEFT_OVER = 3  # of a sweep, some of whose runs failed or were stopped; 1 is of a command that was refused
BUSY = 75  # of one whose run another process has (EX_TEMPFAIL of sysexits.h)

Settings = TypeVar("Settings")

# For each type of a setting: what makes a value of what was typed, and what may be typed.
CONVERSIONS: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "text"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: ({"true": True, "false": False}.__getitem__, "true, false"),
    tuple[str, ...]: (lambda text: tuple(text.split(",")), "values with commas between"),
    tuple[int, ...]: (lambda text: tuple(map(int, text.split(","))), "whole numbers with commas between"),
}


def is_sweep() -> bool:
    """Whether this process runs a job of a sweep now; the one that launches the jobs does not, unless they run in it."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return not OmegaConf.is_missing(HydraConfig.get().job, "num")


def read_settings(arguments: Sequence[str], settings: type[Settings], example: str) -> Settings:
    """The settings that ``key=value`` arguments make, for a command that is not configured by Hydra: values may be any text.

    Args:
        settings: a dataclass: its fields are the keys, their types what may be typed, those without a default must be given.
        example: a command that has what must be given.

    Raises:
        UserError: a key that is unknown, missing or given twice, a value of another type, or one that ``settings`` refuses.
    """
    values, others = _values(arguments, settings)
    for argument in others:
        key = argument.partition("=")[0]
        names = list(get_type_hints(settings))
        raise UserError(f"{key} is not a setting; allowed: {', '.join(names)}.{nearest(key, names)}")
    return _made(settings, values, example)


def split_settings(arguments: Sequence[str], settings: type[Settings], example: str) -> tuple[Settings, list[str]]:
    """The settings that some of ``arguments`` make, see :func:`read_settings`, and the others, which are for ``train.py``."""
    values, others = _values(arguments, settings)
    return _made(settings, values, example), others


def _values(arguments: Sequence[str], settings: type[Settings]) -> tuple[dict[str, Any], list[str]]:
    hints = get_type_hints(settings)
    values: dict[str, Any] = {}
    others = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not key or not (equals or argument.startswith("~")):  # Hydra's, which removes a key
            raise UserError(
                f"{argument!r} is not of the form key=value; allowed keys: {', '.join(hints)}. Text with spaces needs quotes: "
                f'key="...".{nearest(argument, hints)}'
            )
        if key not in hints:
            others.append(argument)
            continue
        if key in values:
            raise UserError(f"{argument} is one {key} too many; allowed: one {key}=... in a command.")
        values[key] = _converted(argument, text, hints[key])
    return values, others


def _made(settings: type[Settings], values: dict[str, Any], example: str) -> Settings:
    required = [field.name for field in fields(settings) if field.default is MISSING]  # type: ignore[arg-type]  # a dataclass
    if missing := [f"{name}=..." for name in required if name not in values]:
        raise UserError(f"{' and '.join(missing)} must be given: {example}")
    return settings(**values)


def _converted(argument: str, text: str, hint: Any) -> Any:
    may_be_null = type(None) in get_args(hint)
    if may_be_null:
        if text == "null":
            return None
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if hint is Path:
        key = argument.partition("=")[0]
        return run_path(text) if key == "run" else user_path(key, text)
    make, allowed = CONVERSIONS[hint]
    try:
        return make(text)
    except (ValueError, KeyError) as error:
        raise UserError(f"{argument} has the wrong type; allowed: {allowed}{', or null' if may_be_null else ''}.") from error


def tell_loading(arguments: Sequence[str]) -> None:
    """On a terminal, say what is loaded before what takes seconds is imported."""
    if sys.stderr.isatty() and (run := next((text for text in arguments if text.startswith("run=")), None)):
        print(f"loading {run}", file=sys.stderr, flush=True)


def run_command(main: Callable[[list[str]], None], documentation: str | None) -> None:
    """Run a command that is not configured by Hydra with what was typed, or show what may be typed."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(documentation)
    else:
        with reporting_errors():
            main(arguments)


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Print a UserError's message alone and exit with status 1; a job of a sweep says it, and lets its launcher go on."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        if is_sweep() and not isinstance(error, KeyboardInterrupt):
            _tell(str(error))
            raise KeyboardInterrupt from error  # the launcher's to end
        _tell(str(error) or "Stopped; the same command goes on from there.")
        sys.exit(INTERRUPTED)
    except (UserError, OmegaConfBaseException, HydraException) as error:
        message = message_of(error)
        if is_sweep():
            _tell(f"FAILED: {' '.join(HydraConfig.get().overrides.task)}\n{message}")
            raise
        if wants_stack_trace() and not isinstance(error, AlreadyRunning):
            raise
        _tell(message)
        sys.exit(BUSY if isinstance(error, AlreadyRunning) else 1)
    except Exception:
        if is_sweep():  # a bug of ours: the others may be spared it, but its trace is wanted
            _tell(f"FAILED: {' '.join(HydraConfig.get().overrides.task)}\n{traceback.format_exc()}")
        raise


def wants_stack_trace() -> bool:
    """Whether the user asked for stack traces, in Hydra's way."""
    return os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")


def message_of(error: BaseException) -> str:
    """What to tell the user of an error that a setting caused."""
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'config'}: {str(error).splitlines()[0]}"
    if isinstance(error, (UserError, HydraException, RuntimeError)):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
