"""Errors that a user can cause and mend. Each message is one line: what is wrong, and what to do about it.

The command line prints the message and exits with the class's `exit_code`; any other exception is a defect of this
program and keeps its traceback.
"""

from __future__ import annotations

import sys
from typing import ClassVar


class UserError(Exception):
    """Something the user gave or the machine did; the message names the culprit and the remedy.

    Attributes:
        exit_code: of the command line.
    """

    exit_code: ClassVar[int] = 2

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(UserError):
    """An option or a stored config cannot be used."""


class DataError(UserError):
    """A data set cannot be used."""


class NoSplit(DataError):
    """A data set has no such split."""


class RunError(UserError):
    """A run folder cannot be used."""


class CheckpointError(UserError):
    """There is no usable checkpoint."""


class StorageError(UserError):
    """The disk or the memory fails what is under way; a training continues by `--resume`."""

    exit_code = 4


class Stopped(UserError):
    """The run stops in all processes, at the same step and for the same reason."""


class NonFiniteLoss(Stopped):
    """The loss, gradient or parameters became NaN or infinite in more steps than may be skipped."""

    exit_code = 3


class Preempted(Stopped):
    """SIGTERM reached one of the processes; all of them saved the step that the message names."""

    exit_code = 143  # 128 + 15, what a shell reports for a process that SIGTERM ends


def one_line(error: object) -> str:
    """The first line of an error's message, at most 200 characters, or the error's type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def printable(text: str) -> str:
    """The text with control characters, line ends and what is no text as escapes.

    File names may contain any of them; on a terminal they would move the cursor or forge other lines.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 images``, ``1,000 images``."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def say(line: str) -> None:
    """Prints one line on standard error, `printable` whatever names it holds."""
    print(printable(line), file=sys.stderr)
