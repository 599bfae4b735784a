"""The finished attacks of an evaluation, kept in a file: started again, it continues after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields

import numpy as np
from pydantic import TypeAdapter

from deformreg.attacks import Attack
from deformreg.evaluation import AttackOutcome
from train.errors import say
from train.exhibits import Exhibits
from train.partial import Kept, Partial


@dataclass(frozen=True)
class _Row:
    """What is kept of an outcome beside its masks; the rest is the attack's."""

    name: str
    robust_accuracy: float
    attacked: int
    broken: int
    success_rate: float | None
    model_calls: int
    seconds: float
    compile_seconds: float
    radius_pixels: float | None
    norms: dict[str, dict[str, float]]
    mean_calls: float
    rejected: int


_ROWS = TypeAdapter(list[_Row])


class Finished:
    """What every attack of an evaluation found, in order, kept in a file as soon as it is known.

    Attributes:
        missing: the attacks that have not finished.
    """

    def __init__(self, attacks: Sequence[str], exhibits: Exhibits, file: Partial | None) -> None:
        self._exhibits, self._file, self._at = exhibits, file, 0
        self._rows: list[_Row] = []
        self._masks: dict[str, np.ndarray] = {}
        if file is not None:
            file.read(self._restore)
        self.kept, self.missing = list(attacks[: len(self._rows)]), list(attacks[len(self._rows) :])

    def _restore(self, kept: Kept) -> None:
        rows = _ROWS.validate_python(kept.facts["outcomes"])
        masks = {name: kept.arrays[name] for at in range(len(rows)) for name in _mask_names(at)}
        if any(mask.dtype != bool for mask in masks.values()):
            raise ValueError("its masks are not bool")
        self._exhibits.restore(kept.arrays)
        self._rows, self._masks = rows, masks

    @contextmanager
    def told(self, name: str) -> Iterator[None]:
        """Says what an earlier start has kept, and what is missing if this one does not come to its end."""
        if self.kept:
            say(f"{name}: continuing after {len(self.kept)} attacks of an earlier start")
        try:
            yield
        except BaseException:
            if self.kept and self._file is not None:
                say(
                    f"{name}: {len(self.kept)} attacks are kept in {self._file.path}, and the same command continues "
                    f"after them; missing: {', '.join(self.missing) or 'the report'}"
                )
            raise

    def recall(self, attack: Attack, run: Callable[[], AttackOutcome]) -> AttackOutcome:
        """The outcome of the next attack."""
        at, self._at = self._at, self._at + 1
        if at < len(self._rows):
            attacked, broken = (self._masks[name] for name in _mask_names(at))
            return AttackOutcome(
                **asdict(self._rows[at]), budget=attack.budget, uses_gradients=attack.uses_gradients,
                settings=dict(attack.settings), attacked_mask=attacked, broken_mask=broken,
            )  # fmt: skip
        outcome = run()
        self._exhibits.conclude(outcome)
        self._rows.append(_Row(**{each.name: getattr(outcome, each.name) for each in fields(_Row)}))
        self._masks |= zip(_mask_names(at), (outcome.attacked_mask, outcome.broken_mask), strict=True)
        if self._file is not None:
            rows = _ROWS.dump_python(self._rows)
            self._file.write({"outcomes": rows}, {**self._masks, **self._exhibits.arrays})
        self.kept.append(self.missing.pop(0))
        return outcome


def _mask_names(at: int) -> tuple[str, str]:
    return f"attacked {at}", f"broken {at}"
