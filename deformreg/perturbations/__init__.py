"""Perturbation families ``T(params, images)`` as values, like an Optax transformation: pairs of pure functions.

A family says how images are perturbed; losses, balls and noise are separate. Zero parameters are always the identity.
To write one takes two functions::

    brightness = Perturbation(
        init=lambda images: jnp.zeros(images.shape[0]),
        apply=lambda params, images: images + params[:, None, None, None],
    )

References:
    Xia and Li, "Improving Resistance to Adversarial Deformations by Regularizing Gradients", Neurocomputing 455,
    2021: additive and location perturbations in one form.
"""

from deformreg.perturbations.additive import additive
from deformreg.perturbations.affine import affine
from deformreg.perturbations.diffeomorphic import diffeomorphic
from deformreg.perturbations.flow import Units, flow
from deformreg.perturbations.lowres_flow import lowres_flow
from deformreg.perturbations.perspective import perspective
from deformreg.perturbations.perturbation import Params, Perturbation, pull_back
from deformreg.perturbations.thin_plate_spline import thin_plate_spline

__all__ = [
    "Params",
    "Perturbation",
    "Units",
    "additive",
    "affine",
    "diffeomorphic",
    "flow",
    "lowres_flow",
    "perspective",
    "pull_back",
    "thin_plate_spline",
]
