"""The elastic attack: gradient ascent on smooth fields.

References:
    Kang et al., "Testing Robustness Against Unforeseen Adversaries", arXiv 1908.08016.
"""

from __future__ import annotations

from typing import Literal, get_args

from deformreg import _checks
from deformreg.attacks.attack import Attack, Budget
from deformreg.attacks.pgd import pgd
from deformreg.attacks.search import Keep, Loss, Start, displacement_share, limit_displacement, plain
from deformreg.balls import linf
from deformreg.perturbations import lowres_flow
from deformreg.warping import Boundary

Bound = Literal["final", "raw"]


def elastic(
    radius: float,
    *,
    bound: Bound = "final",
    stride: int = 1,
    sigma: float = 1.0,
    boundary: Boundary = "edge",
    num_steps: int = 50,
    step_size: float | None = None,
    start: Start = "random",
    restarts: int = 1,
    loss: Loss = "cross_entropy",
    keep: Keep = "any",
    name: str | None = None,
) -> Attack:
    """Sign steps on a raw field that is interpolated and smoothed before it moves pixels.

    Smoothing shrinks a field, strongly so one of random signs. The published budget bounds the *raw* field, so its
    radius says little about how far pixels move; ``bound="final"`` bounds the displacement of the pixels.

    Args:
        radius: bound on every component, in pixels.
        bound: whether `radius` bounds the ``"final"`` field, or the ``"raw"`` one as published.
        stride: pixels between the raw field's nodes; 1 as published.
        sigma: standard deviation of the smoothing in pixels. Published: 3 for 224 pixels; 0.43 for 32.
        boundary: see `deformreg.warp`.
        num_steps: per restart; published: 200, 50 for a quick evaluation.
        step_size: in pixels of the raw field; None is ``radius / sqrt(num_steps)``, as published.
        start: see `deformreg.attacks.pgd`.
        restarts: see `deformreg.attacks.pgd`.
        loss: see `deformreg.attacks.pgd`.
        keep: see `deformreg.attacks.pgd`.
        name: for reports; None makes one.

    Returns:
        The attack. `deformreg.statistics.unforeseen_robustness` combines the accuracies at several radii.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: a number out of range or an unknown choice.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> constant = lambda images: jnp.stack([images.sum((1, 2, 3)), jnp.zeros(len(images))], axis=1)
        >>> attack = elastic(0.5, num_steps=3)
        >>> result = attack.run(constant, jnp.ones((1, 8, 8, 1)), jnp.array([0]), jax.random.key(0))
        >>> bool(result.norms.max_component[0] <= 0.5)
        True

    References:
        Kang et al., arXiv 1908.08016, see the module.
    """
    _checks.non_negative("radius", radius)
    _checks.choice("bound", bound, get_args(Bound))
    num_steps = _checks.count("num_steps", num_steps, minimum=0)
    family = lowres_flow(stride, sigma=sigma, boundary=boundary)
    ball = linf(radius)
    if bound == "final":
        family = limit_displacement(family, radius, rounds=1)
        # The family's constraint bounds the smoothed field, so the ball must not bound the raw one.
        ball = ball._replace(project=lambda params: params)
    attack = pgd(
        ball=ball,
        num_steps=num_steps,
        step_size=radius / max(num_steps, 1) ** 0.5 if step_size is None else step_size,
        perturbation=family,
        start=start,
        restarts=restarts,
        loss=loss,
        keep=keep,
        name=name or f"elastic-{num_steps}",
    )
    settings = {**attack.settings, "bound": bound, "stride": stride, "sigma": sigma}
    if bound == "raw":
        return attack._replace(budget=Budget(plain(radius), "linf of the raw field", "pixels"), settings=settings)
    return attack._replace(
        budget=Budget(plain(radius), "linf", "pixels"), size=displacement_share(family, radius), settings=settings
    )
