"""Learning-rate schedules: one value a kind, one line in `AnySchedule`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

import optax
from annotated_types import Interval

from train.ranges import HIDDEN, Share


@dataclass(frozen=True)
class _WarmedUp:
    """The option that all schedules have.

    Attributes:
        ends: whether the rate depends on the number of epochs, so that more of them are another training.
    """

    ends: ClassVar[bool] = False
    warmup_epochs: Annotated[float, Interval(ge=0, le=10**6)] = 0.0
    """Number of epochs of linear warm-up from zero."""

    def _after_warmup(self, schedule: optax.Schedule, peak: float, steps_per_epoch: int) -> optax.Schedule:
        warmup = self._warmup_steps(steps_per_epoch)
        if not warmup:
            return schedule
        return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])

    def _warmup_steps(self, steps_per_epoch: int) -> int:
        return round(self.warmup_epochs * steps_per_epoch)


@dataclass(frozen=True)
class Constant(_WarmedUp):
    """The peak learning rate to the end."""

    name: Annotated[Literal["constant"], HIDDEN] = "constant"

    def make(self, peak: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        return self._after_warmup(optax.constant_schedule(peak), peak, steps_per_epoch)


@dataclass(frozen=True)
class Cosine(_WarmedUp):
    """Half a cosine from the peak towards zero, which would be reached one step after the last."""

    ends: ClassVar[bool] = True
    name: Annotated[Literal["cosine"], HIDDEN] = "cosine"

    def make(self, peak: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        decay = optax.cosine_decay_schedule(
            peak, max(epochs * steps_per_epoch - self._warmup_steps(steps_per_epoch), 1)
        )
        return self._after_warmup(decay, peak, steps_per_epoch)


@dataclass(frozen=True)
class Linear(_WarmedUp):
    """A straight line from the peak towards zero, which would be reached one step after the last.

    With a warm-up it is the one-cycle schedule."""

    ends: ClassVar[bool] = True
    name: Annotated[Literal["linear"], HIDDEN] = "linear"

    def make(self, peak: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        steps = max(epochs * steps_per_epoch - self._warmup_steps(steps_per_epoch), 1)
        return self._after_warmup(optax.linear_schedule(peak, 0.0, steps), peak, steps_per_epoch)


@dataclass(frozen=True)
class Step(_WarmedUp):
    """The peak, multiplied by a factor after some epochs."""

    decay_epochs: tuple[Annotated[int, Interval(ge=1, le=10**6)], ...] = (40, 60)
    """Epochs after which the rate is multiplied by `decay_factor`."""
    decay_factor: Share = 0.1
    """Factor of every decay."""
    name: Annotated[Literal["step"], HIDDEN] = "step"

    def make(self, peak: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        warmup = self._warmup_steps(steps_per_epoch)
        drops = {epoch * steps_per_epoch - warmup: self.decay_factor for epoch in self.decay_epochs}
        return self._after_warmup(optax.piecewise_constant_schedule(peak, drops), peak, steps_per_epoch)


AnySchedule = (
    Cosine  #
    | Linear
    | Constant
    | Step
)

SCHEDULES = {kind.name: kind for kind in get_args(AnySchedule)}
