"""Checks of perturbation families, and of the images that they perturb."""

from __future__ import annotations

from deformreg import _checks
from deformreg.perturbations import Perturbation, flow


def family_or_flow(perturbation: Perturbation | None) -> Perturbation:
    """Returns a family that was given, or `flow` for None; raises for anything else."""
    if perturbation is None:
        return flow()
    return _checks.instance("perturbation", perturbation, Perturbation, "deformreg.flow()")


def check_layout(perturbation: Perturbation, shape: tuple[int, ...]) -> None:
    """Raises if a family would move the pixels of images that look like [n, c, h, w].

    Their height is then 1, 3 or 4 channels, and their last axis is far too long for channels.
    """
    _, height, width, channels = shape
    looks_wrong = min(width, channels) >= 8 and (height in (3, 4) or (height == 1 and width == channels))
    if looks_wrong and perturbation.field is not None:
        raise ValueError(
            f"images must have shape [n, h, w, c], got {shape}, which looks like [n, c, h, w]: transpose them to "
            "(0, 2, 3, 1), and let the model transpose back"
        )
