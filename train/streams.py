"""The standard streams of a command: closed ones, those of few characters, and readers that leave (`| head`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

CLOSED = 141
"""The exit code of a command whose reader has left: what a shell reports for a program that SIGPIPE ends."""


def prepare() -> None:
    """Makes the standard streams take any text: closed ones drop it, and those of few characters escape the others."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def until_closed(command: Callable[[], int]) -> int:
    """Runs a command, which ends without a word once the reader of its output has left.

    Returns:
        The exit code: the command's, or `CLOSED`.
    """
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()  # here, because at exit Python prints a warning
    except BrokenPipeError:
        return drop_output()


def drop_output() -> int:
    """Sends what a stream that cannot be written still holds nowhere; returns `CLOSED`."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    return CLOSED
