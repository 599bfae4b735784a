"""Robust accuracy: attacks in sequence, verified outcomes, red flags, curves and reports."""

from deformreg.evaluation import flags, reports, suites
from deformreg.evaluation.curves import Curve, accuracy_curve
from deformreg.evaluation.data import OnDemand
from deformreg.evaluation.evaluate import evaluate
from deformreg.evaluation.evaluator import Evaluator, evaluator
from deformreg.evaluation.flags import Flag
from deformreg.evaluation.found import Found, together
from deformreg.evaluation.frames import Frames, frames
from deformreg.evaluation.outcomes import AttackOutcome, Collect, Progress, ProgressCallback, Recall, Run, Spent
from deformreg.evaluation.results import Evaluation
from deformreg.evaluation.suites import Suite

__all__ = [
    "AttackOutcome",
    "Collect",
    "Curve",
    "Evaluation",
    "Evaluator",
    "Flag",
    "Found",
    "Frames",
    "OnDemand",
    "Progress",
    "ProgressCallback",
    "Recall",
    "Run",
    "Spent",
    "Suite",
    "accuracy_curve",
    "evaluate",
    "evaluator",
    "flags",
    "frames",
    "reports",
    "suites",
    "together",
]
