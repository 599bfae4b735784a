"""The weights and the evaluation protocol of the released code of Xia and Li (2021)."""

from __future__ import annotations

from deformreg import _checks
from deformreg.attacks.pgd import pgd
from deformreg.balls import linf
from deformreg.evaluation.suites import Suite
from deformreg.perturbations import Units, flow


def paper_weight(
    weight: float, *, batch_size: int, image_size: int | tuple[int, int], units: Units = "pixels"
) -> float:
    """Converts the released code's weight to the weight of the mean of `deformreg.gradient_penalty`.

    The released code squares the gradient of the batch's *mean* loss in normalized units. Its weight therefore contains
    a factor ``1 / batch_size^2``, and its units a factor ``((size - 1) / 2)^2``.

    Args:
        weight: lambda of the authors' code (100 to 300 there).
        batch_size: batch size of the authors' code (128 there).
        image_size: side of the images in pixels (32 there), or (height, width).
        units: the unit of the flow in this penalty; ``"normalized"`` means ``flow(units="normalized")``.

    Returns:
        The weight, in `units` squared per unit of the loss.

    Raises:
        ValueError: a negative weight, a count below 1, unknown units, or ``"pixels"`` with unequal sides, where no
            single weight exists; use ``flow(units="normalized")``.

    Example:
        >>> round(paper_weight(300, batch_size=128, image_size=32), 2)
        4.4
    """
    _checks.non_negative("weight", weight)
    batch_size = _checks.count("batch_size", batch_size)
    _checks.choice("units", units, ("pixels", "normalized"))
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    height, width = _checks.count("image_size", height, minimum=2), _checks.count("image_size", width, minimum=2)
    per_normalized = weight / batch_size**2
    if units == "normalized":
        return per_normalized
    if height != width:
        raise ValueError(
            f"image_size must be square for units='pixels', got {height}x{width}: use units='normalized' "
            "with flow(units='normalized')"
        )
    return per_normalized * ((width - 1) / 2) ** 2


def suite(num_steps: int = 50) -> Suite:
    """Returns the evaluation protocol of the released code: a weak attack, only to compare with its published numbers.

    Zero start, `num_steps` sign steps of ``radius / num_steps``, zero padding, last iterate. The suite's radius bounds
    every component of the flow in pixels.

    Args:
        num_steps: gradient steps.

    Returns:
        A suite of one attack.

    Example:
        >>> suite(num_steps=20).names
        ('multi-step',)

    References:
        Xia and Li, "Improving Resistance to Adversarial Deformations by Regularizing Gradients", Neurocomputing 455,
        2021.
    """
    family = flow(boundary="zeros")
    return Suite({"multi-step": lambda radius: pgd(ball=linf(radius), num_steps=num_steps, perturbation=family)})
