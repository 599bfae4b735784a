"""How far long work is, on standard error: a bar on a terminal; elsewhere, such as in a log, a line every half minute.

Work that takes less than half a minute leaves nothing in a log.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from train.errors import printable, say

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class Show(Protocol):
    """A function to call whenever more is done.

    Where work has several parts, such as the attacks of an evaluation, rate and remaining time are those of the part
    at work. The first call of a part says what is done when it begins: neither that nor the time before it counts.
    """

    def __call__(self, done: int, total: int, *, part: str = "", note: str = "") -> None:
        """Takes how many units of a part are done, of how many, and what else to say."""


@contextmanager
def progress(name: str, unit: str, *, visible: bool = True) -> Iterator[Show]:
    """Shows how far work is.

    Args:
        name: of the work.
        unit: of what is counted, in the singular.
        visible: False where another process shows the same.

    Yields:
        The function to call whenever more is done.
    """
    if not visible:
        yield lambda done, total, *, part="", note="": None
    elif sys.stderr.isatty():
        with _bar(name, unit) as show:
            yield show
    else:
        yield _lines(name, unit)


@contextmanager
def _bar(name: str, unit: str) -> Iterator[Show]:
    from tqdm import tqdm

    with tqdm(desc=printable(name), unit=unit) as bar:
        at_work: str | None = None

        def show(done: int, total: int, *, part: str = "", note: str = "") -> None:
            nonlocal at_work
            if part != at_work:
                at_work = part
                bar.reset(total)
                bar.initial = bar.n = done  # the rate is of what this start does
            bar.total = total
            bar.set_postfix_str(", ".join(filter(None, (printable(part), note))), refresh=False)
            bar.update(done - bar.n)

        yield show
        bar.refresh()


def _lines(name: str, unit: str) -> Show:
    at_work: str | None = None
    first, began, said = 0, 0.0, time.monotonic()

    def show(done: int, total: int, *, part: str = "", note: str = "") -> None:
        nonlocal at_work, first, began, said
        now = time.monotonic()
        if part != at_work:
            at_work, first, began = part, done, now
        if now - said < EVERY:
            return
        said = now
        pace = rate(done - first, total - done, now - began, unit)
        counted = f"{done:,} of {total:,} {unit}s"
        say(f"{name}: {'; '.join(filter(None, (counted, pace, part, note)))}")

    return show


def rate(done: int, left: int, seconds: float, unit: str) -> str:
    """Throughput and remaining time in words; nothing before anything is done.

    Args:
        done: units done in these seconds.
        left: units left.
        seconds: since the work began.
        unit: in the singular.
    """
    if done <= 0 or seconds <= 0:
        return ""
    return f"{done / seconds:,.3g} {unit}s/s; {duration(left * seconds / done)} left"


def duration(seconds: float) -> str:
    """A duration in words, to the second below two minutes, to the minute above."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
