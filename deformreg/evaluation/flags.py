"""Red flags: symptoms of a model that only looks robust, or of an evaluation that measures something else.

A flag is a reason to distrust a robust accuracy, not a proof; its evidence is the numbers it was raised on. An
evaluation raises those that its attacks' outcomes show (`flags_from_outcomes`) and runs a short diagnosis of its own
on some examples (`deformreg.evaluation.diagnosis.diagnose`).

References:
    Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 3.1.
    Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705.
    Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
    ICML 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

GRADIENT_FREE_WINS = "gradient_free_beats_gradients"
REJECTED = "success_not_confirmed"
BUDGET = "budget_without_effect"
STEPS = "more_steps_are_weaker"
UNBOUNDED = "unbounded_attack_fails"
ZERO_GRADIENTS = "zero_gradients"
IDENTITY = "identity_changes_the_loss"
RANDOMNESS = "outputs_change_between_calls"
BATCH = "outputs_depend_on_the_batch"
PROBABILITIES = "probabilities_not_logits"
NOT_FINITE = "logits_not_finite"

TOLERANCE = 0.002  # the share of all examples that AutoAttack allows Square over the gradient attacks


class Flag(NamedTuple):
    """A red flag.

    Attributes:
        name: one of this module's constants.
        explanation: what it means, for a reader who did not write the evaluation.
        evidence: the numbers, plain data.
    """

    name: str
    explanation: str
    evidence: dict[str, Any]


def flags_from_outcomes(outcomes: Sequence[Any]) -> tuple[Flag, ...]:
    """The flags that attacks' outcomes show.

    Args:
        outcomes: `deformreg.evaluation.evaluate.AttackOutcome`, in the order run.

    Returns:
        The flags raised.
    """
    return (*gradient_free_beats_gradients(outcomes), *success_not_confirmed(outcomes))


def gradient_free_beats_gradients(outcomes: Sequence[Any]) -> tuple[Flag, ...]:
    """Random fields, Square or a grid broke examples on which the gradient attacks failed.

    Args:
        outcomes: `deformreg.evaluation.evaluate.AttackOutcome`.

    Returns:
        A flag if those are at least 0.2 % of all examples and at least two.
    """
    tried = [outcome for outcome in outcomes if outcome.uses_gradients]
    if not tried:
        return ()
    attacked = np.any([outcome.attacked_mask for outcome in tried], axis=0)
    broken = np.any([outcome.broken_mask for outcome in tried], axis=0)
    evidence = {}
    missed = np.zeros_like(broken)
    for outcome in outcomes:
        if not outcome.uses_gradients:
            extra = outcome.broken_mask & attacked & ~broken
            if extra.any():
                evidence[outcome.name] = int(extra.sum())
            missed |= extra
    if missed.sum() < max(2, TOLERANCE * len(missed)):
        return ()
    return (
        Flag(
            GRADIENT_FREE_WINS,
            "Attacks without gradients broke examples on which every gradient attack failed: the gradients mislead.",
            {"examples_missed": int(missed.sum()), "examples": len(missed), "by_attack": evidence},
        ),
    )


def success_not_confirmed(outcomes: Sequence[Any]) -> tuple[Flag, ...]:
    """Claimed successes did not survive a fresh forward pass, or left the budget or the images' range.

    Args:
        outcomes: `deformreg.evaluation.evaluate.AttackOutcome`.

    Returns:
        A flag if more than 1 % of an attack's claims were rejected.
    """
    evidence = {o.name: o.rejected for o in outcomes if o.rejected > 0.01 * (o.rejected + o.broken)}
    if not evidence:
        return ()
    return (
        Flag(
            REJECTED,
            "Attacked images were not misclassified by a fresh pass, or were not finite, in range or in budget.",
            {"rejected_by_attack": evidence},
        ),
    )
