"""Parts of a stored split, named as TFDS names them: ``train``, ``train[:98%]``, ``validation[1000:]``."""

from __future__ import annotations

import re
from typing import NamedTuple

from train.errors import DataError

_FORM = re.compile(r"(?P<name>\w[\w.-]*)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


class Part(NamedTuple):
    """A range of a stored split's examples, in their order.

    Attributes:
        name: of the stored split.
        start, stop: as in ``[start:stop]``: a number of examples, from the end if negative, or a percentage; None for
            the split's own start and end.
    """

    name: str
    start: str | None = None
    stop: str | None = None

    def rows(self, size: int) -> range:
        """The examples, of a stored split with `size` of them; percentages are rounded to the nearest example."""
        return range(size)[slice(*(_place(end, size) for end in (self.start, self.stop)))]


def parse(text: str) -> Part:
    """The part that a text names.

    Raises:
        DataError: it names none.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise DataError(f"{text!r} is not a split: give its name, or a part of it such as train[:98%] or train[5000:]")
    return Part(match["name"], match["start"], match["stop"])


def _place(end: str | None, size: int) -> int | None:
    if end is None:
        return None
    if not end.endswith("%"):
        return int(end)
    return round(size * int(end[:-1]) / 100)
