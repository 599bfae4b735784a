"""One-step and multi-step gradient attacks in any perturbation family.

``multi_step(loss_fn, images, ball=linf(0.5), num_steps=50)`` deforms; with ``perturbation=additive(...)`` it is the
classic pixel attack (FGSM and PGD). Both functions work inside `jit`, `vmap` and `pmap`.

References:
    Xia and Li, "Improving Resistance to Adversarial Deformations by Regularizing Gradients", Neurocomputing 455, 2021
    (zero start, step radius / num_steps, last iterate).
    Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015 (one step).
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018 (many steps, random start).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import aligned
from deformreg._families import check_layout, family_or_flow, identity
from deformreg.attacks.ascent import Iterate, projected_ascent
from deformreg.attacks.search import Start
from deformreg.balls import Ball, Radius
from deformreg.perturbations import Perturbation


class Perturbed(NamedTuple):
    """Attacked images.

    Attributes:
        images: float[n, h, w, c], the perturbed images.
        params: their parameters in the family, inside the ball.
        losses: float[n], the losses of the perturbed images.
    """

    images: Float[Array, "n *space c"]
    params: Any
    losses: Float[Array, " n"]


def multi_step(
    loss_fn: Callable[[Array], Array],
    images: Float[Array, "n *space c"],
    *,
    ball: Ball,
    num_steps: int,
    perturbation: Perturbation | None = None,
    step_size: Radius | None = None,
    start: Start = "zero",
    key: Array | None = None,
    keep: Iterate = "last",
) -> Perturbed:
    """Ascends every example's loss inside a ball of perturbations.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; ascended. For a targeted attack, return the negative loss at the
            target.
        images: any range.
        ball: `deformreg.linf` (sign steps), `deformreg.l2` or `deformreg.pixelwise_l2` (normalized steps), its radius
            in the family's unit: pixels for flows.
        num_steps: gradient steps, at least 0.
        perturbation: the family; None is ``flow()``.
        step_size: in the ball's norm; None is ``radius / num_steps``, the paper's choice. A random start needs a
            larger one to cross the ball.
        start: ``"zero"``, ``"random"`` (uniform in the ball) or a law of `deformreg.noise` (then projected).
        key: a JAX random key; required unless the start is zero.
        keep: ``"last"`` iterate, as in the paper's code, or the ``"best"`` one.

    Returns:
        The perturbed images, their parameters and losses; gradients are stopped.

    Raises:
        TypeError: integer images or a non-integer `num_steps`.
        ValueError: images of another shape, a `loss_fn` that does not return one loss per example, an unknown `keep` or
            `start`, or a random start without a key.

    Example:
        >>> import jax.numpy as jnp
        >>> from deformreg import linf
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1)
        >>> attacked = multi_step(lambda x: x.sum((1, 2, 3)), ramp, ball=linf(0.5), num_steps=4)
        >>> attacked.images.ravel().tolist()  # brighter is to the right: read from half a pixel there
        [0.5, 1.5, 2.5, 3.0]
    """
    images = jax.lax.stop_gradient(_checks.images(images))
    ball = _checks.instance("ball", ball, Ball, "deformreg.linf(0.5)")
    perturbation = family_or_flow(perturbation)
    num_steps = _checks.count("num_steps", num_steps, minimum=0)
    check_layout(perturbation, images.shape)
    _checks.function("loss_fn", loss_fn)
    if step_size is None:
        step_size = jnp.asarray(ball.radius) / max(num_steps, 1)

    def constrain(params: Any) -> Any:
        return perturbation.constrain(params, images)

    def objective(params: Any) -> Array:
        losses = _checks.called("loss_fn", loss_fn, perturbation.apply(params, images))
        return _checks.per_example(losses, images.shape[0])

    params = constrain(_begin(start, key, ball, identity(perturbation, images)))
    found = projected_ascent(
        objective, params, ball=ball, step_size=step_size, num_steps=num_steps, keep=keep, constrain=constrain
    )
    params, losses = jax.lax.stop_gradient((found.params, found.values))
    return Perturbed(perturbation.apply(params, images), params, losses)


def _begin(start: Start, key: Array | None, ball: Ball, zeros: Any) -> Any:
    if callable(start):
        law = start
    else:
        _checks.choice("start", start, ("zero", "random"))
        if start == "zero":
            return zeros
        law = ball.sample
    if key is None:
        raise ValueError("key must be a JAX random key for a random start, got None")
    return ball.project(aligned(law(_checks.key(key), zeros), jax.tree.leaves(zeros)[0]))


def one_step(
    loss_fn: Callable[[Array], Array],
    images: Float[Array, "n *space c"],
    *,
    ball: Ball,
    perturbation: Perturbation | None = None,
    step_size: Radius | None = None,
    start: Start = "zero",
    key: Array | None = None,
) -> Perturbed:
    """`multi_step` with a single step, by default to the ball's boundary.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; ascended.
        images: any range.
        ball: norm and radius, see `multi_step`.
        perturbation: the family; None is ``flow()``.
        step_size: in the ball's norm; None is the radius.
        start: see `multi_step`.
        key: see `multi_step`.

    Returns:
        As `multi_step`.

    Raises:
        TypeError: as `multi_step`.
        ValueError: as `multi_step`.

    Example:
        >>> import jax.numpy as jnp
        >>> from deformreg import additive, linf
        >>> darker = lambda images: -images.sum((1, 2, 3))
        >>> fgsm = one_step(darker, jnp.ones((1, 1, 1, 1)), ball=linf(0.25), perturbation=additive())
        >>> fgsm.images.item()
        0.75
    """
    return multi_step(
        loss_fn,
        images,
        ball=ball,
        num_steps=1,
        perturbation=perturbation,
        step_size=step_size,
        start=start,
        key=key,
    )
