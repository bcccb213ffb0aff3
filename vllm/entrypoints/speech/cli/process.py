# SPDX-License-Identifier: Apache-2.0
"""What a short command sets up around an engine in its own process, and how it leaves."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, NoReturn

from vllm.exceptions import VLLMError


def prepare_process(verbose: bool = False) -> None:
    """Settings that suit a short command; what the user has set in the environment stays.

    Args:
        verbose: whether what upstream logs is shown.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if verbose:
        return
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # The package has set up its logging already.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    warnings.simplefilter("ignore", FutureWarning)
    import transformers

    transformers.utils.logging.disable_progress_bar()


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Start-up without garbage collections.

    It makes some millions of objects that stay; each collection would look through all of them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@dataclass
class Console:
    """The streams that the process was started with.

    Attributes:
        output: standard output, for the result alone.
        errors: standard error, for progress and errors.
    """

    output: IO[bytes]
    errors: IO[str]


@contextlib.contextmanager
def console(verbose: bool = False) -> Iterator[Console]:
    """Keep libraries off the streams while the context lasts.

    What they print (native code too, which knows no logging) goes nowhere, or to standard error if
    `verbose`; else it would end up in the middle of the result.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with (
        os.fdopen(os.dup(1), "wb") as output,
        os.fdopen(os.dup(2), "w", errors="backslashreplace") as errors,
        open(os.devnull, "wb") as nowhere,
    ):
        os.dup2(errors.fileno() if verbose else nowhere.fileno(), 1)
        if not verbose:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield Console(output, errors)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)


def printable(text: str) -> str:
    """`text` without what a terminal would obey; models and servers may send any character."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def end_on_signals() -> None:
    """Let signals that end the process unwind it, so that unfinished files are removed."""

    def end(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    for name in (signal.SIGTERM, signal.SIGHUP):
        # What the parent ignores (nohup) stays ignored.
        if signal.getsignal(name) == signal.SIG_DFL:
            signal.signal(name, end)


def leave(status: int) -> NoReturn:
    """End the process at once. Taking down the interpreter module by module takes seconds."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(status)


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Errors of the request and of files end the command with a line, not with a traceback."""
    try:
        yield
    except BrokenPipeError:
        # Whoever read the output has seen enough. Python must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"error: {printable(str(error))}") from error
    except VLLMError as error:  # upstream's are no ValueErrors, and repeat the field in brackets
        raise SystemExit(f"error: {printable(str(next(iter(error.args), error)))}") from error
