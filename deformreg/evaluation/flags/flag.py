"""The type of a red flag, and how a group of checks raises them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

Seen = TypeVar("Seen")


class Flag(NamedTuple):
    """A red flag.

    Attributes:
        name: of the symptom, the name of the function that looks for it.
        explanation: what it means, for a reader who did not write the evaluation.
        evidence: the numbers behind it, plain data.
    """

    name: str
    explanation: str
    evidence: dict[str, Any]


def raised(checks: Iterable[Callable[[Seen], Flag | None]], seen: Seen) -> tuple[Flag, ...]:
    """Runs checks on what was measured.

    Args:
        checks: functions from the measurement to a flag or None.
        seen: the measurement.

    Returns:
        The flags raised, in order.
    """
    return tuple(flag for check in checks if (flag := check(seen)) is not None)
