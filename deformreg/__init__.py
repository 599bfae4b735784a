"""Resistance to adversarial deformations: warps, flow gradient penalties and attacks as pure JAX functions.

Conventions: images ``float[n, h, w, c]``; a flow ``float[n, h, w, 2]`` in pixels, last axis (dy, dx), read backward
(``out[p] = images(p + flow[p])``); a ``loss_fn`` maps images to *unreduced* losses ``[n]``.
"""

from deformreg import (
    attacks,
    balls,
    certification,
    diagnosis,
    flows,
    losses,
    noise,
    penalties,
    perturbations,
    redflags,
    reports,
    smoothing,
    statistics,
    suites,
)
from deformreg.attacks import Attack, AttackResult, Perturbed, multi_step, one_step, projected_ascent
from deformreg.balls import Ball, l2, linf, pixelwise_l2
from deformreg.certification import Certificates, CertifiedCurve, certified_accuracy, certify
from deformreg.curves import Curve, accuracy_curve
from deformreg.evaluation import Evaluation, evaluate, evaluator
from deformreg.penalties import (
    finite_difference_penalty,
    flow_gradient_penalty,
    gradient_penalty,
    image_gradients,
    input_gradient_penalty,
    paper_weight,
    random_start,
    squared_norm,
)
from deformreg.perturbations import Perturbation, additive, affine, flow, lowres_flow, pull_back
from deformreg.smoothing import SmoothingLaw, smoothed_votes
from deformreg.warping import forward_differences, warp

__version__ = "0.1.0"

__all__ = [
    "Attack",
    "AttackResult",
    "Ball",
    "Certificates",
    "CertifiedCurve",
    "Curve",
    "Evaluation",
    "Perturbation",
    "Perturbed",
    "SmoothingLaw",
    "accuracy_curve",
    "additive",
    "affine",
    "attacks",
    "balls",
    "certification",
    "certified_accuracy",
    "certify",
    "diagnosis",
    "evaluate",
    "evaluator",
    "finite_difference_penalty",
    "flow",
    "flow_gradient_penalty",
    "flows",
    "forward_differences",
    "gradient_penalty",
    "image_gradients",
    "input_gradient_penalty",
    "l2",
    "linf",
    "losses",
    "lowres_flow",
    "multi_step",
    "noise",
    "one_step",
    "paper_weight",
    "penalties",
    "perturbations",
    "pixelwise_l2",
    "projected_ascent",
    "pull_back",
    "random_start",
    "redflags",
    "reports",
    "smoothed_votes",
    "smoothing",
    "squared_norm",
    "statistics",
    "suites",
    "warp",
]
