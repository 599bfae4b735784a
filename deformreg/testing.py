"""Checks that families, balls and attacks of your own obey the laws of the library's.

The penalties, attacks and evaluation rely on these laws. Each check compiles the functions it is given, so call it in a
test, with few and small images. A law that does not hold raises `AssertionError` with one line that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg.attacks.attack import Attack, AttackResult, LogitsFn
from deformreg.balls import Ball
from deformreg.criteria import Criterion
from deformreg.criteria.classification import criterion_or_classification
from deformreg.penalties import gradient_penalty, squared_norm
from deformreg.perturbations import Params, Perturbation, pull_back


def check_family(perturbation: Perturbation, images: Float[Array, "n *space c"], *, tolerance: float = 1e-4) -> None:
    """Checks a perturbation family on images.

    The laws: the identity is zero, belongs to one example per row and returns the images bit for bit, also through
    `constrain`; examples do not interact; a closed-form `pullback` is that of `apply`; the penalty is the squared
    gradient of the loss after `apply`; on a constant image its derivative is finite; the identity's `field`, if there
    is one, is a zero flow.

    Args:
        perturbation: the family.
        images: two or more that differ, float32 or wider.
        tolerance: of derivatives and of examples in a batch, relative to the largest value.

    Returns:
        Nothing.

    Raises:
        AssertionError: a law that does not hold.
        TypeError: something other than a family or images.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import Perturbation
        >>> images = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
        >>> brightness = Perturbation(
        ...     init=lambda images: jnp.zeros(images.shape[0]),
        ...     apply=lambda params, images: images + params[:, None, None, None],
        ... )
        >>> check_family(brightness, images)
        >>> check_family(brightness._replace(apply=lambda params, images: images * params[:, None, None, None]), images)
        Traceback (most recent call last):
        ...
        AssertionError: the identity must return the images bit for bit
    """
    perturbation = _checks.instance("perturbation", perturbation, Perturbation, "deformreg.flow()")
    images = _checks.images(images)
    identity = perturbation.init(images)
    rows = [np.shape(leaf)[:1] == (len(images),) for leaf in jax.tree.leaves(identity)]
    _require(bool(rows) and all(rows), "init must return arrays whose first axis is the example")
    _require(not any(np.any(leaf) for leaf in jax.tree.leaves(identity)), "init must return zeros")
    same = jax.jit(perturbation.apply)(identity, images)
    _require(
        same.dtype == images.dtype and np.array_equal(same, images), "the identity must return the images bit for bit"
    )
    _require(_equal(perturbation.constrain(identity, images), identity), "constrain must not move the identity")
    if perturbation.field is not None:
        field = perturbation.field(identity, images)
        expected = _checks.flow_shape(images.shape)
        _require(field.shape == expected, f"field must return flows of shape {expected}, got {field.shape}")
        _require(not np.any(field), "the identity's field must be zero")
    _check_rows(perturbation, images, identity, tolerance)
    _check_derivatives(perturbation, images, identity, tolerance)


def _check_rows(perturbation: Perturbation, images: Array, identity: Params, tolerance: float) -> None:
    """Examples must not interact, in `apply`."""
    params = perturbation.constrain(_normal(0, identity, 0.1), images)
    moved = jax.jit(perturbation.apply)(params, images)
    _require(moved.shape == images.shape, f"apply must return the images' shape {images.shape}, got {moved.shape}")
    alone = jax.jit(perturbation.apply)(jax.tree.map(lambda leaf: leaf[:1], params), images[:1])
    _require(_close(moved[:1], alone, tolerance), "apply must treat every example alone, whatever the batch")


def _check_derivatives(perturbation: Perturbation, images: Array, identity: Params, tolerance: float) -> None:
    weights = jax.random.normal(jax.random.key(1), images.shape[1:], images.dtype)

    def loss_fn(images: Array) -> Array:
        return jnp.sum(jnp.tanh(weights[None] * images).reshape(len(images), -1), axis=1)

    @jax.jit
    def derivatives(images: Array) -> tuple[Any, ...]:
        by_hand = jax.grad(lambda params: jnp.sum(loss_fn(perturbation.apply(params, images))))(identity)
        image_gradients = jax.grad(lambda images: jnp.sum(loss_fn(images)))(images)
        pulled = pull_back(perturbation, image_gradients, images)
        return by_hand, pulled, gradient_penalty(loss_fn, images, perturbation)[0]

    by_hand, pulled, penalties = derivatives(images)
    _require(_close(pulled, by_hand, tolerance), "pullback must be the derivative of apply at the identity, transposed")
    _require(
        _close(penalties, squared_norm(by_hand), tolerance),
        "the penalty must be the squared gradient of the loss after apply",
    )

    second_order = jax.jit(jax.grad(lambda images: jnp.sum(gradient_penalty(loss_fn, images, perturbation)[0])))
    _require(
        _finite(second_order(jnp.full_like(images, 0.5))), "the penalty's derivative must be finite on constant images"
    )


def check_ball(ball: Ball, params: Params, *, key: Array, tolerance: float = 1e-4) -> None:
    """Checks a ball on parameters of some shape.

    The laws: samples lie in the ball and follow their key; a projection lies in the ball, is the nearest point of it,
    and leaves points inside where they are; examples do not interact; no point of the ball has a larger inner product
    with a gradient than `support` says, and the derivative of `support` attains it; for one number as radius, so does
    the steepest direction times the radius; the steepest direction of no gradient is zero.

    Args:
        ball: the ball, of a radius above 0.
        params: arrays of the shapes that the ball will see, two examples or more, for example
            ``flow().init(images)``; their values do not matter.
        key: a JAX random key.
        tolerance: relative.

    Returns:
        Nothing.

    Raises:
        AssertionError: a law that does not hold.
        TypeError: something other than a ball.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import linf
        >>> check_ball(linf(0.5), jnp.zeros((2, 4, 4, 2)), key=jax.random.key(0))
        >>> check_ball(linf(0.5)._replace(project=lambda params: params), jnp.zeros((2, 3)), key=jax.random.key(0))
        Traceback (most recent call last):
        ...
        AssertionError: project must return a point of the ball
    """
    ball = _checks.instance("ball", ball, Ball, "deformreg.linf(0.5)")
    key = _checks.key(key)
    # The norm of a ball with an array of radii is the share of the radius.
    limit = 1.0 if jnp.ndim(ball.radius) else float(ball.radius)
    samples = [jax.jit(ball.sample)(jax.random.fold_in(key, number), params) for number in range(8)]
    far, gradient = _normal(2, params, 10.0 * float(np.max(ball.radius))), _normal(3, params, 1.0)

    def inside(points: Params) -> bool:
        return bool(np.all(np.asarray(jax.jit(ball.norm)(points)) <= limit * (1 + tolerance)))

    _require(all(map(inside, samples)), "samples must lie in the ball")
    _require(_equal(jax.jit(ball.sample)(jax.random.fold_in(key, 0), params), samples[0]), "samples follow their key")
    _require(not _equal(samples[0], samples[1]), "samples of different keys must differ")
    project = jax.jit(ball.project)
    nearest = project(far)
    _require(inside(nearest), "project must return a point of the ball")
    within = jax.tree.map(lambda leaf: 0.5 * leaf, samples[0])
    _require(_equal(project(within), within), "project must leave points inside the ball where they are")
    changed = jax.tree.map(lambda leaf: leaf.at[1:].multiply(3.0), far)
    _require(_first_rows_equal(project(changed), nearest), "project must treat every example alone")
    residual = _minus(far, nearest)
    slack = tolerance * (1 + _inner(far, far))
    closer = [bool(np.all(_inner(residual, _minus(sample, nearest)) <= slack)) for sample in samples]
    _require(all(closer), "project must return the nearest point of the ball")
    _check_ascent(ball, gradient, samples, inside, tolerance)


def _check_ascent(
    ball: Ball, gradient: Params, samples: list[Params], inside: Callable[[Params], bool], tolerance: float
) -> None:
    """The laws of `support` and `steepest`."""
    support = np.asarray(jax.jit(ball.support)(gradient), np.float64)
    slack = tolerance * (1 + support)
    below = [bool(np.all(_inner(gradient, sample) <= support + slack)) for sample in samples]
    _require(all(below), "support must be at least the inner product with every point of the ball")
    attained = jax.jit(jax.grad(lambda leaves: jnp.sum(ball.support(leaves))))(gradient)
    _require(
        inside(attained) and bool(np.all(np.abs(_inner(gradient, attained) - support) <= slack)),
        "the derivative of support must be a point of the ball that attains it",
    )
    if jnp.ndim(ball.radius) == 0:
        reached = np.asarray(ball.radius) * _inner(gradient, jax.jit(ball.steepest)(gradient))
        _require(
            bool(np.all(np.abs(reached - support) <= slack)), "steepest, times the radius, must attain the support"
        )
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    _require(_equal(ball.steepest(zeros), zeros), "the steepest direction of no gradient must be zero")


def check_attack(
    attack: Attack,
    logits_fn: LogitsFn,
    images: Float[Array, "n *space c"],
    labels: Array,
    *,
    key: Array,
    criterion: Criterion | None = None,
    tolerance: float = 1e-4,
) -> AttackResult:
    """Runs an attack and checks its result.

    The laws: the success mask is what the model says of the returned images; failures return the clean image bit for
    bit, successes the image of their parameters; losses are finite; the budget and the number of model calls are kept;
    examples do not interact.

    Args:
        attack: the attack.
        logits_fn: as in `Attack.run`.
        images: two or more, in the range the model expects.
        labels: as in `Attack.run`.
        key: a JAX random key.
        criterion: as in `Attack.run`.
        tolerance: of the images, and relative of the budget.

    Returns:
        The result, for further checks.

    Raises:
        AssertionError: a law that does not hold.
        TypeError: something other than an attack.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import linf
        >>> from deformreg.attacks import pgd
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramps = jnp.arange(8.0).reshape(2, 1, 4, 1) / 4
        >>> attack = pgd(ball=linf(0.9), num_steps=5)
        >>> check_attack(attack, edge, ramps, jnp.array([1, 0]), key=jax.random.key(0)).success.tolist()
        [True, False]
        >>> unbounded = attack._replace(size=lambda params, images: jnp.full(len(images), 1.5))
        >>> _ = check_attack(unbounded, edge, ramps, jnp.array([1, 0]), key=jax.random.key(0))
        Traceback (most recent call last):
        ...
        AssertionError: the parameters must keep the budget
    """
    attack = _checks.instance("attack", attack, Attack, "pgd(ball=linf(0.5), num_steps=50)")
    images, labels = _checks.images(images), jnp.asarray(labels)
    criterion = criterion_or_classification(criterion)

    @jax.jit
    def run(images: Array, labels: Array) -> tuple[AttackResult, Array, Array, Array]:
        result = attack.run(logits_fn, images, labels, key, criterion=criterion)
        broken = criterion.broken(logits_fn(result.images), result.labels)
        used = jnp.zeros(len(images)) if attack.size is None else attack.size(result.params, images)
        return result, broken, attack.perturbation.apply(result.params, images), used

    result: AttackResult
    result, broken, moved, used = run(images, labels)
    success = np.asarray(result.success)
    _require(np.array_equal(success, broken), "success must be what the model says of the returned images")
    _require(np.array_equal(result.images[~success], images[~success]), "failures must return the clean image")
    _require(
        np.allclose(result.images[success], moved[success], rtol=0, atol=tolerance),
        "successes must return the image of their parameters",
    )
    _require(_finite(result.losses), "losses must be finite")
    most = attack.max_steps * attack.calls_per_step + 1
    calls = np.asarray(result.model_calls)
    _require(bool(np.all((calls >= 1) & (calls <= most))), f"model_calls must be in [1, {most}], the announced most")
    _require(bool(np.all(np.asarray(used) <= 1 + tolerance)), "the parameters must keep the budget")
    kept = max(len(images) // 2, 1)
    others = images.min() + images.max() - images[kept:]
    beside_others = run(images.at[kept:].set(others), labels)[0]
    same = [
        np.array_equal(a[:kept], b[:kept], equal_nan=True)
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(beside_others), strict=True)
    ]
    _require(all(same), "an example's result must not depend on the other examples")
    return result


def _require(holds: bool, law: str) -> None:
    if not holds:
        raise AssertionError(law)


def _normal(seed: int, params: Params, stddev: float) -> Params:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [stddev * jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _equal(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _first_rows_equal(a: Any, b: Any) -> bool:
    first = jax.tree.map(lambda leaf: leaf[:1], (a, b))
    return _equal(*first)


def _close(a: Any, b: Any, tolerance: float) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        np.shape(x) == np.shape(y) and np.allclose(x, y, rtol=tolerance, atol=tolerance * (np.abs(y).max() + 1e-6))
        for x, y in pairs
    )


def _finite(tree: Any) -> bool:
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def _inner(a: Params, b: Params) -> np.ndarray[Any, Any]:
    """Inner products per example, in float64."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    products = [(np.float64(x) * np.float64(y)).reshape(len(x), -1).sum(axis=1) for x, y in pairs]
    total: np.ndarray[Any, Any] = np.sum(products, axis=0)
    return total


def _minus(a: Params, b: Params) -> Params:
    return jax.tree.map(lambda x, y: np.float64(x) - np.float64(y), a, b)
