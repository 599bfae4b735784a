"""Random smooth fields on the ball's boundary: the baseline that every other attack must beat."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deformreg import _checks, fields
from deformreg._arrays import draw_leaves, scaled
from deformreg._families import family_or_flow, identity
from deformreg.attacks.attack import Attack, Examples, LogitsFn, Search
from deformreg.attacks.search import (
    Keep,
    Loss,
    budget_of,
    check_ball,
    check_choices,
    fresh,
    record,
    sample_rows,
    step_keys,
    try_out,
    used_share,
)
from deformreg.balls import Ball
from deformreg.perturbations import Perturbation


def random_fields(
    *,
    ball: Ball,
    num_fields: int = 100,
    sigma: float = 2.0,
    perturbation: Perturbation | None = None,
    loss: Loss = "margin",
    keep: Keep = "any",
    name: str | None = None,
) -> Attack:
    """Tries independent Gaussian fields, smoothed and scaled to the ball's boundary; keeps the worst.

    Args:
        ball: see `deformreg.attacks.pgd`; its radius is a single number.
        num_fields: draws per example; each costs one forward pass.
        sigma: standard deviation of the smoothing in pixels; 0 for white noise. Parameters of another shape than a
            flow's are not smoothed.
        perturbation: the family; None is ``flow()``.
        loss: the measure of "worst", see `deformreg.attacks.pgd`.
        keep: ``"any"`` stops at the first draw that breaks the model, ``"best"`` tries them all.
        name: for reports; None makes one.

    Returns:
        The attack; it uses no gradients.

    Raises:
        TypeError: `num_fields` is not an integer.
        ValueError: a number out of range, an unknown `loss`, or another `keep`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import linf
        >>> attack = random_fields(ball=linf(0.5), num_fields=10, keep="best")
        >>> total = lambda images: jnp.stack([images.sum((1, 2, 3)), jnp.zeros(len(images))], axis=1)
        >>> result = attack.run(total, jnp.ones((2, 8, 8, 1)), jnp.array([0, 0]), jax.random.key(0))
        >>> result.success.tolist(), result.model_calls.tolist()  # a constant image cannot be deformed
        ([False, False], [10, 10])
    """
    ball = check_ball(ball, arrays=False)
    family = family_or_flow(perturbation)
    num_fields = _checks.count("num_fields", num_fields)
    _checks.non_negative("sigma", sigma)
    check_choices(loss, keep, ("any", "best"))

    def white(key: Array, params: Any) -> Any:
        # Flat: XLA compiles the random bits of a flat array in a third of the time, and they are the same bits.
        return draw_leaves(
            lambda key, leaf: jax.random.normal(key, (leaf.size,), leaf.dtype).reshape(leaf.shape), key, params
        )

    def smooth(leaf: Array, images: Array) -> Array:
        is_field = family.field is not None and leaf.shape == (*images.shape[:-1], images.ndim - 2)
        return fields.smooth(leaf, sigma) if is_field else leaf

    def to_boundary(params: Any) -> Any:
        norms = ball.norm(params)
        scale = jnp.where(norms > 0, ball.radius / jnp.where(norms > 0, norms, 1), 0)
        return ball.project(scaled(params, scale))

    def begin(examples: Examples) -> Search:
        return fresh(examples, identity(family, examples.images))

    def step(logits_fn: LogitsFn, examples: Examples, search: Search) -> Search:
        drawn = sample_rows(white, step_keys(examples, search.calls), search.params)
        drawn = jax.tree.map(lambda leaf: smooth(leaf, examples.images), drawn)
        search = search._replace(params=family.constrain(to_boundary(drawn), examples.images))
        losses, broken = try_out(logits_fn, family, loss, examples, search.params)
        search = record(search, losses, broken, keep=keep)
        return search._replace(done=search.done | (search.calls >= num_fields))

    return Attack(
        name or f"random-{num_fields}",
        family,
        budget_of(ball, family),
        used_share(ball),
        begin,
        step,
        max_steps=num_fields,
        uses_gradients=False,
        settings={"num_fields": num_fields, "sigma": sigma, "keep": keep},
        one_class=loss == "dlr",
    )
