"""What an evaluation finds and says: the outcome of an attack, costs, progress, and the functions that it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from deformreg.attacks.attack import Attack, AttackResult, Budget
from deformreg.evaluation.data import HostArray
from deformreg.evaluation.found import Found


class AttackOutcome(NamedTuple):
    """The result of one attack on one model.

    Attributes:
        name: the attack's.
        robust_accuracy: share of *all* examples that are classified correctly and that neither this attack nor an
            earlier one of the suite broke. In an independent evaluation earlier attacks do not count.
        attacked: number of examples it was run on.
        broken: number of attacked examples that it broke.
        success_rate: broken / attacked; None if it was run on none.
        model_calls: rows computed, idle rows and the fresh check included.
        seconds: wall clock, without compiling.
        compile_seconds: wall clock of compiling.
        radius_pixels: the budget, if it bounds a displacement field; else None.
        budget: radius, norm and unit.
        norms: mean and maximum, over the broken examples, of each norm of the final field (or image difference).
        mean_calls: mean number of model calls spent on an attacked example.
        rejected: number of claimed successes that the check did not confirm.
        uses_gradients: whether the attack differentiates the model.
        settings: the attack's.
        attacked_mask: bool[n].
        broken_mask: bool[n].
    """

    name: str
    robust_accuracy: float
    attacked: int
    broken: int
    success_rate: float | None
    model_calls: int
    seconds: float
    compile_seconds: float
    radius_pixels: float | None
    budget: Budget
    norms: dict[str, dict[str, float]]
    mean_calls: float
    rejected: int
    uses_gradients: bool
    settings: dict[str, Any]
    attacked_mask: HostArray
    broken_mask: HostArray


class Spent(NamedTuple):
    """What a part of an evaluation cost.

    Attributes:
        model_calls: images passed through the model.
        seconds: wall clock, without compiling.
        compile_seconds: wall clock of compiling.
    """

    model_calls: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0

    def plus(self, other: Spent) -> Spent:
        """The sum."""
        return Spent(
            self.model_calls + other.model_calls,
            self.seconds + other.seconds,
            self.compile_seconds + other.compile_seconds,
        )


class Progress(NamedTuple):
    """The state of a running attack.

    Attributes:
        attack: its name; ``"diagnosis"`` for the search for red flags.
        finished: examples finished.
        total: examples in all.
        robust_accuracy: share of all examples that stand so far.
    """

    attack: str
    finished: int
    total: int
    robust_accuracy: float


class ProgressCallback(Protocol):
    """A function that an evaluation calls whenever examples are finished."""

    def __call__(self, progress: Progress, /) -> object: ...


class Collect(Protocol):
    """A function that an evaluation calls with what an attack claims for finished examples, before the fresh check."""

    def __call__(self, attack: Attack, indices: HostArray, result: AttackResult, /) -> object: ...


class Run(Protocol):
    """A function that runs an attack of an evaluation, and returns its outcome.

    All arguments may be left out. `begun` is what an earlier start has found: its finished examples are not attacked
    again. `keep` is called with everything found so far whenever more is known. Where several processes share the
    work, `share` is this one's number and their count; `gather` gets what this process has found beside `begun`, and
    returns what all have.
    """

    def __call__(
        self,
        begun: Found | None = None,
        *,
        keep: Callable[[Found], object] | None = None,
        share: tuple[int, int] = (0, 1),
        gather: Callable[[Found], Found] | None = None,
    ) -> AttackOutcome: ...


class Recall(Protocol):
    """A function that returns an attack's outcome: kept from an earlier evaluation of the same, or that of `run()`."""

    def __call__(self, attack: Attack, run: Run, /) -> AttackOutcome: ...
