"""What an option may hold, said on the field itself.

A field of a config is annotated with its type and its range; its docstring is its help text::

    epochs: Annotated[int, Interval(ge=1, le=10**6)] = 10
    '''Passes over the training images.'''

A help text of several lines breaks where a sentence ends, for tyro keeps the breaks of the source.

`FREE` among the annotations marks what may change when a run is continued. Upper limits are there because larger
values are typos or untrusted input and would exhaust memory or overflow far from their cause.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import tyro
from annotated_types import Interval

FREE = "may change when a run is continued"
"""Marks fields that say where, how fast and what else, not what is computed."""

Count = Annotated[int, Interval(ge=1, le=10**9)]
CountOrNone = Annotated[int, Interval(ge=0, le=10**9)]  # 0 stands for none, or for all
Steps = Annotated[int, Interval(ge=1, le=10**4)]
Pixels = Annotated[int, Interval(ge=0, le=4096)]
Positive = Annotated[float, Interval(gt=0, le=1e9)]
NonNegative = Annotated[float, Interval(ge=0, le=1e9)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
Share = Annotated[float, Interval(gt=0, le=1)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]

HIDDEN: Any = tyro.conf.Suppress
"""Marks the name of a kind: it is chosen by `--method NAME` and the like, not as a field."""

Statistics = Literal["batch", "running"]
PenaltyStatistics = Literal["batch", "held", "running"]
