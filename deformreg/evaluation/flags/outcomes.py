"""Red flags in the outcomes of a suite's attacks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deformreg.evaluation.data import HostArray
from deformreg.evaluation.flags.flag import Flag
from deformreg.evaluation.outcomes import AttackOutcome

TOLERANCE = 0.002  # the share of the examples that AutoAttack allows Square over the gradient attacks


def gradient_free_beats_gradients(outcomes: Sequence[AttackOutcome]) -> Flag | None:
    """Flags random fields, Square or a grid that broke examples on which every gradient attack failed.

    Raised if those are at least two, and at least 0.2 % of all examples; of an attack that ran on a sample, of as small
    a share of the examples.
    """
    tried = [outcome for outcome in outcomes if outcome.uses_gradients]
    if not tried:
        return None
    resisted = np.any([outcome.attacked_mask for outcome in tried], axis=0)
    resisted &= ~np.any([outcome.broken_mask for outcome in tried], axis=0)
    free = [outcome for outcome in outcomes if not outcome.uses_gradients]
    missed = {o.name: o.broken_mask & resisted for o in free}
    nobody = np.zeros_like(resisted)
    every = np.any([nobody, *missed.values()], axis=0)
    attacked = np.any([nobody, *(o.attacked_mask for o in free)], axis=0)

    def many(broken: HostArray, attacked: HostArray) -> bool:
        share = (attacked & resisted).sum() / max(resisted.sum(), 1)
        return bool(broken.sum() >= max(2, TOLERANCE * len(resisted) * share))

    # Each attack also by itself: what one breaks of a sample says as much as what another breaks of all examples.
    if not many(every, attacked) and not any(many(missed[o.name], o.attacked_mask) for o in free):
        return None
    return Flag(
        "gradient_free_beats_gradients",
        "Attacks without gradients broke examples on which every gradient attack failed: the gradients mislead.",
        {
            "examples_missed": int(every.sum()),
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
