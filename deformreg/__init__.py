"""Resistance to adversarial deformations: warps, flow gradient penalties and attacks as pure JAX functions.

Conventions: images are ``float[n, h, w, c]``; a flow is ``float[n, h, w, 2]`` in pixels, last axis (dy, dx), and says
where to read (``out[p] = images(p + flow[p])``); a ``loss_fn`` maps images to *unreduced* losses ``[n]``. Signals
``[n, t, c]`` and volumes ``[n, d, h, w, c]`` may take the place of images; their flows are ``[n, t, 1]`` and
``[n, d, h, w, 3]``.

The names to start with are here, the rest is in the modules. The library needs JAX, NumPy, SciPy and jaxtyping. Two
packages are optional: Optax for `deformreg.attacks.stadv`, PyTorch for `deformreg.interop.from_torch`.
"""

from deformreg import (
    attacks,
    balls,
    bounds,
    certification,
    criteria,
    evaluation,
    fields,
    interop,
    label_maps,
    losses,
    noise,
    penalties,
    perturbations,
    released,
    statistics,
    testing,
)
from deformreg.attacks import Attack, greedy_step, multi_step, one_step
from deformreg.balls import Ball, l2, linf, pixelwise_l2
from deformreg.certification import certified_accuracy, certify
from deformreg.evaluation import accuracy_curve, evaluate, evaluator
from deformreg.losses import cross_entropy
from deformreg.noise import random_start
from deformreg.penalties import (
    finite_difference_penalty,
    forward_over_reverse_penalty,
    gradient_penalties,
    gradient_penalty,
    image_gradients,
    regularized,
)
from deformreg.perturbations import (
    Perturbation,
    additive,
    affine,
    diffeomorphic,
    flow,
    lowres_flow,
    perspective,
    thin_plate_spline,
)
from deformreg.warping import warp

__version__ = "0.1.0"

__all__ = [
    "Attack",
    "Ball",
    "Perturbation",
    "accuracy_curve",
    "additive",
    "affine",
    "attacks",
    "balls",
    "bounds",
    "certification",
    "certified_accuracy",
    "certify",
    "criteria",
    "cross_entropy",
    "diffeomorphic",
    "evaluate",
    "evaluation",
    "evaluator",
    "fields",
    "finite_difference_penalty",
    "flow",
    "forward_over_reverse_penalty",
    "gradient_penalties",
    "gradient_penalty",
    "greedy_step",
    "image_gradients",
    "interop",
    "l2",
    "label_maps",
    "linf",
    "losses",
    "lowres_flow",
    "multi_step",
    "noise",
    "one_step",
    "penalties",
    "perspective",
    "perturbations",
    "pixelwise_l2",
    "random_start",
    "regularized",
    "released",
    "statistics",
    "testing",
    "thin_plate_spline",
    "warp",
]
