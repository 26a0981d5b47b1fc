"""What a command does first, before it imports what takes seconds: nothing around it may end it with a stack trace."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

from cope.endings import NO_READER, end_at_once
from cope.lines import as_typed, break_lines_of

# Variables for whose wrong values PyTorch cannot be imported.
PYTORCH_REFUSES = ("TORCH_LOGS", "TORCH_LOGS_OUT", "TORCH_LOGS_FORMAT", "TORCH_DISTRIBUTED_DEBUG")


def start_command(documentation: str | None = None, doing: str = "", has_settings_of_train: bool = False) -> None:
    """Get ready for Ctrl-C at any moment, output that nobody takes, and variables that are meant for other programs.

    Args:
        documentation: of a command that has its settings there: printed at once if ``--help`` was asked for; keys that it has
            no line for are refused.
        doing: what it does for more than a second before it has anything to say: said at once, beside the output.
        has_settings_of_train: allow the keys of ``train.py`` as well.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, end_at_once)
    _open_standard_streams()
    if documentation is not None and {"-h", "--help"} & set(sys.argv[1:]):
        try:
            print(as_typed(documentation), flush=True)
        except BrokenPipeError:
            os._exit(NO_READER)
        except OSError as error:
            os.write(2, f"The output cannot be written: {error.strerror}.\n".encode())
            os._exit(1)  # nothing is to be written any more
        sys.exit()
    if doing:
        with suppress(OSError):
            print(f"{doing} ...", file=sys.stderr, flush=True)
    os.environ["MPLBACKEND"] = "agg"  # pictures are files here; a notebook's backend is not installed everywhere
    if any(map(os.environ.__contains__, PYTORCH_REFUSES)):
        _check_variables_of_pytorch()
    if documentation is not None:  # python -OO leaves none
        from cope.cli import OF_TRAIN, check_keys  # here, since it imports Hydra

        check_keys(documentation, OF_TRAIN if has_settings_of_train else ())


def _open_standard_streams() -> None:
    """What is closed leads nowhere, instead of into the next file that is opened; every character can be printed.

    On a terminal lines break between words.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a TextIOWrapper
        if stream.isatty():
            break_lines_of(stream)
    import logging

    logging.raiseExceptions = False  # a full disk behind the output is told once, at the end, not at each line


def _check_variables_of_pytorch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise
    except Exception as error:
        set_here = ", ".join(f"{name}={os.environ[name]}" for name in PYTORCH_REFUSES if name in os.environ)
        sys.exit(f"PyTorch cannot start with {set_here}: {str(error).strip()}")
