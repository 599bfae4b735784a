"""Red flags in the outcomes of a suite's attacks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deformreg.evaluation.flags.flag import Flag
from deformreg.evaluation.outcomes import AttackOutcome

TOLERANCE = 0.002  # the share of all examples that AutoAttack allows Square over the gradient attacks


def gradient_free_beats_gradients(outcomes: Sequence[AttackOutcome]) -> Flag | None:
    """Flags random fields, Square or a grid that broke examples on which every gradient attack failed.

    Raised if those are at least 0.2 % of all examples, and at least two.
    """
    tried = [outcome for outcome in outcomes if outcome.uses_gradients]
    if not tried:
        return None
    resisted = np.any([outcome.attacked_mask for outcome in tried], axis=0)
    resisted &= ~np.any([outcome.broken_mask for outcome in tried], axis=0)
    missed = {o.name: o.broken_mask & resisted for o in outcomes if not o.uses_gradients}
    count = int(np.any([*missed.values(), np.zeros_like(resisted)], axis=0).sum())
    if count < max(2, TOLERANCE * len(resisted)):
        return None
    return Flag(
        "gradient_free_beats_gradients",
        "Attacks without gradients broke examples on which every gradient attack failed: the gradients mislead.",
        {
            "examples_missed": count,
            "examples": len(resisted),
            "by_attack": {name: int(mask.sum()) for name, mask in missed.items() if mask.any()},
        },
    )


def success_not_confirmed(outcomes: Sequence[AttackOutcome]) -> Flag | None:
    """Flags attacks of which the check rejected more than 1 % of the claimed successes."""
    rejected = {o.name: o.rejected for o in outcomes if o.rejected > 0.01 * (o.rejected + o.broken)}
    if not rejected:
        return None
    return Flag(
        "success_not_confirmed",
        "Attacked images were not misclassified by a fresh pass, or were not finite, in range or in budget.",
        {"rejected_by_attack": rejected},
    )


OUTCOME_FLAGS = (gradient_free_beats_gradients, success_not_confirmed)
