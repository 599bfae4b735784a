"""Options that several benchmarks share; each has a dataclass `Options` of its own beside its code."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

from annotated_types import Interval, Len

from train.config import ModelName
from train.ranges import Count

T = TypeVar("T")

Several = Annotated[tuple[T, ...], Len(min_length=1)]
BatchSize = Annotated[int, Interval(ge=1, le=10**6)]
Side = Annotated[int, Interval(ge=1, le=4096)]
DType = Literal["float32", "bfloat16"]


class Case(NamedTuple):
    """One combination of network and batch."""

    model: str
    batch_size: int
    image_size: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Written:
    """Options of a benchmark that gives rows."""

    json: Path | None = None
    """Write command, versions, hardware and rows to this file."""


@dataclass(frozen=True, kw_only=True)
class Timed(Written):
    """Options of a benchmark that times candidates in turn."""

    rounds: Count = 7
    """Timed rounds; each runs every candidate."""
    quick: bool = False
    """At most five minutes on two cores: rounds end when the time is used up."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Options that choose networks, of full width with batch normalization, and their batches."""

    model: Several[ModelName] = ("vgg-11",)
    """Networks."""
    batch_size: Several[BatchSize] = (128,)
    """Images per step on one device."""
    image_size: Several[Side] = (32,)
    """Side in pixels."""
    dtype: Several[DType] = ("float32",)
    """Type of the network's arithmetic."""

    def cases(self) -> list[Case]:
        """All combinations."""
        return [Case(*one) for one in itertools.product(self.model, self.batch_size, self.image_size, self.dtype)]


@dataclass(frozen=True, kw_only=True)
class WithTorch:
    """The option of a benchmark that also times PyTorch if it has one."""

    torch_python: str | None = None
    """An interpreter with PyTorch, to time that too."""
