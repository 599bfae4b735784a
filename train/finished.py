"""The finished attacks of an evaluation, kept in a file: started again, it continues after them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields

import numpy as np
from pydantic import TypeAdapter

from deformreg.attacks import Attack
from deformreg.evaluation import AttackOutcome, Found, Run, together
from train import parts
from train.errors import counted, say
from train.exhibits import Exhibits
from train.partial import Kept, Partial
from train.parts import Begun, Part, Team

KEEP_SECONDS = 60.0
"""How often what the attack at work has found is written to a file: a killed process loses no more."""


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
    """What every attack of an evaluation found, in order, kept in files as soon as it is known.

    Args:
        attacks: the numbers of images that the attacks are given, by name and in order.
        exhibits: what the pictures show.
        file: where results are kept, if anywhere.
        team: the processes that share the work.
        waiting: called again and again while another process is waited for; may raise.

    Attributes:
        missing: the attacks that have not finished.
    """

    def __init__(
        self,
        attacks: Mapping[str, int],
        exhibits: Exhibits,
        file: Partial | None,
        team: Team | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._exhibits, self._file, self._waiting, self._at = exhibits, file, waiting, 0
        self._team = Team() if team is None else team
        self._rows: list[_Row] = []
        self._masks: dict[str, np.ndarray] = {}
        if file is not None:
            file.read(self._restore)
        self.kept, self.missing = list(attacks)[: len(self._rows)], list(attacks)[len(self._rows) :]
        self._begun_at = len(self._rows)
        self._begun: Begun | None = None
        if file is not None and self.missing:
            self._begun = parts.begun(file, self._begun_at, attacks[self.missing[0]])
        self._unwritten: Part | None = None
        self._written = time.perf_counter()
        self._finished = 0 if self._begun is None else int(self._begun.found.finished.sum())

    def _restore(self, kept: Kept) -> None:
        rows = _ROWS.validate_python(kept.facts["outcomes"])
        masks = {name: kept.arrays[name] for at in range(len(rows)) for name in _mask_names(at)}
        if any(mask.dtype != bool for mask in masks.values()):
            raise ValueError("its masks are not bool")
        self._exhibits.restore(kept.arrays)
        self._rows, self._masks = rows, masks

    @contextmanager
    def told(self, name: str, again: str = "the same command") -> Iterator[None]:
        """Says what an earlier start has kept, and what is missing if this one does not come to its end.

        Args:
            name: of the run.
            again: what continues then, in words.
        """
        if self.kept or self._finished:
            say(f"{name}: continuing after {self._counted()} of an earlier start")
        try:
            yield
        except BaseException:
            if self._file is not None:
                if self._unwritten is not None:
                    self._write(self._file, self._unwritten)
                if self.kept or self._finished:
                    say(
                        f"{name}: kept {self._counted()} in {self._file.path}; {again} continues from there; "
                        f"missing: {', '.join(self.missing) or 'the report'}"
                    )
            raise

    def _counted(self) -> str:
        images = f"{counted(self._finished, 'image')} of {self.missing[0]}" if self._finished else ""
        attacks = counted(len(self.kept), "attack") if self.kept or not images else ""
        return " and ".join(filter(None, (attacks, images)))

    def recall(self, attack: Attack, run: Run) -> AttackOutcome:
        """The outcome of the next attack."""
        at, self._at = self._at, self._at + 1
        if at < len(self._rows):
            attacked, broken = (self._masks[name] for name in _mask_names(at))
            return AttackOutcome(
                **asdict(self._rows[at]), budget=attack.budget, uses_gradients=attack.uses_gradients,
                settings=dict(attack.settings), attacked_mask=attacked, broken_mask=broken,
            )  # fmt: skip
        outcome = self._run(at, run)
        self._exhibits.conclude(attack, outcome)
        self._rows.append(_Row(**{each.name: getattr(outcome, each.name) for each in fields(_Row)}))
        self._masks |= zip(_mask_names(at), (outcome.attacked_mask, outcome.broken_mask), strict=True)
        if self._file is not None and self._team.index == 0:
            rows = _ROWS.dump_python(self._rows)
            self._file.write({"outcomes": rows}, {**self._masks, **self._exhibits.arrays})
        self._unwritten, self._finished = None, 0
        self.kept.append(self.missing.pop(0))
        return outcome

    def _run(self, at: int, run: Run) -> AttackOutcome:
        """Runs the next attack, or its rest."""
        file, team = self._file, self._team
        if file is None:
            return run()
        begun = self._begun if at == self._begun_at else None
        before, costs = None, (0, 0.0, 0.0)
        if begun is not None:
            before = begun.found
            costs = before.model_calls, before.seconds, before.compile_seconds
            for each in begun.parts:
                self._exhibits.add(each.shown, each.params)

        def part(found: Found, complete: bool) -> Part:
            calls, seconds, compile_seconds = costs
            local = found._replace(
                model_calls=found.model_calls - calls,
                seconds=found.seconds - seconds,
                compile_seconds=found.compile_seconds - compile_seconds,
            )
            return Part(at, team.start, complete, local, costs, *self._exhibits.at_work)

        def keep(found: Found) -> None:
            self._unwritten, self._finished = part(found, False), int(found.finished.sum())
            if time.perf_counter() - self._written >= KEEP_SECONDS:
                self._write(file, self._unwritten)

        def gather(found: Found) -> Found:
            self._unwritten = None
            everything = parts.gathered(
                file, team, part(found if before is None else found.after(before), True), self._waiting
            )
            for each in everything:
                self._exhibits.add(each.shown, each.params)
            return together(each.found for each in everything)

        if begun is not None and team.count > 1:
            # None begins before all have read what earlier starts found: else their shares would not fit together.
            parts.gathered(file, team, part(begun.found, False), self._waiting)
        return run(before, keep=keep, share=(team.index, team.count), gather=gather if team.count > 1 else None)

    def _write(self, file: Partial, part: Part) -> None:
        parts.write(file, self._team, part)
        self._written = time.perf_counter()


def _mask_names(at: int) -> tuple[str, str]:
    return f"attacked {at}", f"broken {at}"
