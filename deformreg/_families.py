"""Checks of perturbation families and of the images that they perturb; their identity."""

from __future__ import annotations

from jaxtyping import Array

from deformreg import _checks
from deformreg._arrays import aligned
from deformreg.perturbations import Params, Perturbation, flow

_LAYOUTS = {
    4: ("[n, h, w, c]", "[n, c, h, w]", "(0, 2, 3, 1)"),
    5: ("[n, d, h, w, c]", "[n, c, d, h, w]", "(0, 2, 3, 4, 1)"),
}


def family_or_flow(perturbation: Perturbation | None) -> Perturbation:
    """Returns a family that was given, or `flow` for None; raises for anything else."""
    if perturbation is None:
        return flow()
    return _checks.instance("perturbation", perturbation, Perturbation, "deformreg.flow()")


def identity(perturbation: Perturbation, images: Array) -> Params:
    """The parameters of the identity, spread over devices as the images are."""
    return aligned(perturbation.init(images), images)


def check_layout(perturbation: Perturbation, shape: tuple[int, ...]) -> None:
    """Raises if a family would move the pixels of images that look like [n, c, h, w], or of those without channels.

    The first axis is then 1, 3 or 4 channels, and the last is far too long for channels. Of signals, the last axis is
    not shorter than the time.
    """
    if perturbation.field is None:
        return
    first, last, channels = shape[1], shape[-2], shape[-1]
    if len(shape) == 3 and channels >= max(first, 8):
        raise ValueError(
            f"signals must have shape [n, t, c], got {shape}, which looks like images [n, h, w] or signals [n, c, t]: "
            "give images[..., None], or transpose signals to (0, 2, 1) and let the model transpose back"
        )
    if len(shape) > 3 and min(last, channels) >= 8 and (first in (3, 4) or (first == 1 and last == channels)):
        right, wrong, order = _LAYOUTS[len(shape)]
        raise ValueError(
            f"images must have shape {right}, got {shape}, which looks like {wrong}: transpose them to {order}, and "
            "let the model transpose back"
        )
