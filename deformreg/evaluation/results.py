"""The result of an evaluation; printed, it is a short table."""

from __future__ import annotations

from typing import NamedTuple

from deformreg.evaluation.data import HostArray
from deformreg.evaluation.flags.flag import Flag
from deformreg.evaluation.outcomes import AttackOutcome, Spent


class Evaluation(NamedTuple):
    """The result of `evaluate`: plain data; printed, a short table. `deformreg.evaluation.reports` writes it.

    "Classified correctly" means: not broken in the sense of the criterion.

    Attributes:
        examples: number of examples.
        clean_accuracy: fraction of examples classified correctly without an attack.
        robust_accuracy: fraction of examples classified correctly and not broken by any attack.
        robust_interval: its 95 % Wilson interval.
        attacks: the outcome of each attack, in the order in which they ran.
        flags: the red flags raised.
        diagnosis: what the search for red flags cost.
        model_calls: images passed through the model, including the clean pass and the diagnosis.
        seconds: total wall-clock time, including compilation and the time that recalled attacks took when they ran.
        independent: whether every attack ran on every correctly classified example.
        correct_mask: bool[n], classified correctly.
        standing_mask: bool[n], classified correctly and not broken by any attack.
        criterion: the name of the criterion.
    """

    examples: int
    clean_accuracy: float
    robust_accuracy: float
    robust_interval: tuple[float, float]
    attacks: tuple[AttackOutcome, ...]
    flags: tuple[Flag, ...]
    diagnosis: Spent
    model_calls: int
    seconds: float
    independent: bool
    correct_mask: HostArray
    standing_mask: HostArray
    criterion: str = "classification"

    def __str__(self) -> str:
        low, high = self.robust_interval
        width = max([len("worst case"), *(len(outcome.name) for outcome in self.attacks)])
        rows = [("clean", self.clean_accuracy, "", "", "")]
        rows += [
            (o.name, o.robust_accuracy, f"{o.attacked:,}", f"{o.model_calls:,}", f"{o.seconds + o.compile_seconds:.1f}")
            for o in self.attacks
        ]
        rows.append(("worst case", self.robust_accuracy, "", f"{self.model_calls:,}", f"{self.seconds:.1f}"))
        lines = [f"{'attack':<{width}}  accuracy  attacked  model calls  seconds"]
        lines += [
            f"{name:<{width}}  {accuracy:>8.1%}  {attacked:>8}  {calls:>11}  {seconds:>7}"
            for name, accuracy, attacked, calls, seconds in rows
        ]
        lines.append(f"{self.examples} examples; 95 % interval of the worst case: {low:.1%} to {high:.1%}")
        names = ", ".join(flag.name for flag in self.flags)
        lines.append(f"red flags: {names}; see .flags" if names else "no red flags")
        return "\n".join(lines)
