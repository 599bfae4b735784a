"""Certified robustness by randomized smoothing over a family's parameters: laws, votes, predictions, certificates."""

from deformreg.certification import laws
from deformreg.certification.certify import (
    Certificates,
    CertifiedCurve,
    Progress,
    ProgressCallback,
    Recall,
    Votes,
    certified_accuracy,
    certify,
)
from deformreg.certification.laws import SmoothingLaw, gaussian, uniform
from deformreg.certification.predictions import smoothed_predictions
from deformreg.certification.votes import smoothed_votes

__all__ = [
    "Certificates",
    "CertifiedCurve",
    "Progress",
    "ProgressCallback",
    "Recall",
    "SmoothingLaw",
    "Votes",
    "certified_accuracy",
    "certify",
    "gaussian",
    "laws",
    "smoothed_predictions",
    "smoothed_votes",
    "uniform",
]
