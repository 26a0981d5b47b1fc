"""The words of the commands: settings as ``key=value``, errors told in one message, exit statuses."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TextIO, TypeVar, get_args, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cope.building import converted
from cope.endings import BUSY, INTERRUPTED, NO_READER, STOPPED, end_at_once
from cope.errors import AlreadyRunning, Interrupted, UserError, nearest
from cope.help import show_help
from cope.lines import as_typed, write_whole
from cope.memory import is_out_of_memory
from cope.overrides import check_overrides, given_twice, prints_only
from cope.run.configuration import TOP_LEVEL_KEYS
from cope.run.lookup import run_path
from cope.signals import handled_by

OF_TRAIN = (*TOP_LEVEL_KEYS, "hydra")  # what settings of train.py begin with

Settings = TypeVar("Settings")


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
    return split_settings(arguments, settings, example, others=())[0]


def split_settings(
    arguments: Sequence[str], settings: type[Settings], example: str, others: Collection[str] | None = OF_TRAIN
) -> tuple[Settings, list[str]]:
    """The settings that some of ``arguments`` make, see :func:`read_settings`, and the others, which are for ``train.py``.

    Args:
        others: what else a key may begin with; None takes any.
    """
    hints = get_type_hints(settings)
    _check_keys(arguments, list(hints), others)
    typed = {key: text for key, _, text in (argument.partition("=") for argument in arguments) if key in hints}
    required = [field.name for field in fields(settings) if field.default is MISSING]  # type: ignore[arg-type]  # a dataclass
    if missing := [f"{name}=..." for name in required if name not in typed]:
        raise UserError(f"{' and '.join(missing)} must be given: {example}")
    made = settings(**{key: _value(key, text, hints[key]) for key, text in typed.items()})
    return made, [argument for argument in arguments if argument.partition("=")[0] not in hints]


def _value(key: str, text: str, hint: Any) -> Any:
    if key == "run" and hint is Path:
        return run_path(text)
    return None if type(None) in get_args(hint) and text == "null" else converted(text, hint, key)


def check_keys(documentation: str, others: Collection[str] = ()) -> None:
    """Refuse arguments whose keys a command's documentation has no line for, before anything is imported that takes seconds.

    Args:
        others: as for :func:`split_settings`.
    """
    with reporting_errors():
        _check_keys(_typed(), re.findall(r"^ *(\w+)=", documentation, re.MULTILINE), others)


def _check_keys(arguments: Sequence[str], own: Sequence[str], others: Collection[str] | None) -> None:
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not key or not (equals or argument.startswith("~")):  # Hydra's, which removes a key
            raise UserError(
                f"{argument!r} is not of the form key=value; allowed keys: {', '.join([*own, *(others or ())])}. Text with "
                f'spaces needs quotes: key="...".{nearest(argument, own)}'
            )
        if key in own or others is None:
            continue
        key = key.lstrip("+~")
        if re.split(r"[./@]", key)[0] not in others:
            of_train = f"{'; and ' if own else ''}of train.py: {', '.join(TOP_LEVEL_KEYS)}" if others else ""
            allowed = f"{', '.join(own)}{of_train}"
            raise UserError(f"{key} is not a setting; allowed: {allowed}.{nearest(key, [*own, *others])}")
    if twice := given_twice(arguments):
        raise UserError("\n".join(twice))


def _typed() -> list[str]:
    """What was typed; other programs' ``--format csv`` is taken for ``format=csv``."""
    return re.sub(r"(^|\0)--format(=|\0)", r"\1format=", "\0".join(sys.argv[1:])).split("\0") if sys.argv[1:] else []


def run_command(main: Callable[[list[str]], None], documentation: str | None) -> None:
    """Run a command that is not configured by Hydra with what was typed, or show what may be typed."""
    arguments = _typed()
    with reporting_errors():
        if {"-h", "--help"} & set(arguments):
            print(as_typed(documentation or "python -OO leaves no texts to show."))
        else:
            main(arguments)


def run_hydra_command(main: Callable[[], None], config_folder: str, config_name: str) -> None:
    """Run a command that Hydra configures with what was typed, after a look at it."""
    arguments = sys.argv[1:]
    with reporting_errors():
        show_help(sys.modules["__main__"].__doc__, config_folder, config_name)
        check_overrides(arguments, config_folder, config_name)
        text = io.StringIO()
        try:
            with redirect_stdout(text) if prints_only(arguments) else nullcontext():
                main()
        finally:
            write_whole(text.getvalue(), sys.stdout)  # here, where it is known what to do if nobody takes it


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Print a UserError's message alone and exit with status 1; a job of a sweep says it, and lets its launcher go on.

    Ctrl-C ends what is inside with a KeyboardInterrupt, in one line.
    """
    ours = signal.getsignal(signal.SIGINT) is end_at_once
    with handled_by(signal.default_int_handler, *([signal.SIGINT] if ours else [])), _output_may_end():
        try:
            yield
        except (Interrupted, KeyboardInterrupt) as error:
            if is_sweep() and not isinstance(error, KeyboardInterrupt):
                _tell(str(error))
                raise KeyboardInterrupt from error  # the launcher's to end
            _tell(str(error) or STOPPED)
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
        except Exception as error:
            if is_out_of_memory(error) and not wants_stack_trace() and not is_sweep():
                _tell("No memory was left. Take smaller settings (of a run trainer.batch_size, task.context), or more memory.")
                sys.exit(1)
            if is_sweep():  # a bug of ours: the others may be spared it, but its trace is wanted
                _tell(f"FAILED: {' '.join(HydraConfig.get().overrides.task)}\n{traceback.format_exc()}")
            raise


@contextmanager
def _output_may_end() -> Iterator[None]:
    """End with one message if what is printed inside cannot be written; without one if its reader has gone, as "| head" has."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if not _is_lost(sys.stdout):
            raise
        _silence(sys.stdout)
        if isinstance(error, BrokenPipeError):
            sys.exit(NO_READER)
        _tell(f"The output cannot be written: {error.strerror}.")
        sys.exit(1)


def _is_lost(stream: TextIO) -> bool:
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        return True
    return False


def _silence(stream: TextIO) -> None:
    """Let what the stream holds, and all that comes, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


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
    try:
        print(as_typed(message), file=sys.stderr, flush=True)
    except OSError:  # there is nobody to be told
        _silence(sys.stderr)
