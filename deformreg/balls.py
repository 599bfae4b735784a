"""Norm balls around the identity: where a perturbation's parameters may lie, and which direction is steepest.

A ball is a value of pure functions over parameters whose first axis is the example. Its radius is in the unit of the
parameters: pixels for a flow, the images' unit for an additive perturbation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import absolute, divided, draw_leaves, lengths_along, wide
from deformreg.perturbations import Params

Radius = float | Float[Array, "..."]


class Ball(NamedTuple):
    """A norm ball around zero.

    Attributes:
        name: of the norm, for reports.
        radius: in the unit of the parameters; a number, or an array, see `per_example`.
        norm: ``params -> float[n]``; for an array of radii, the largest share of its radius that a component uses: 1 on
            the boundary.
        project: ``params -> params``: the nearest point of the ball, per example.
        steepest: ``gradient -> params``: the point of the *unit* ball that ascends fastest; zero where the gradient
            is zero. A step of size s moves the parameters by s in the ball's norm.
        support: ``gradient -> float[n]``: the largest inner product of the gradient with a point of the ball, the most
            that a loss with this gradient increases in the ball, to first order. For one number as radius it is the
            radius times the dual norm of the gradient. Its derivative is a point of the ball that attains it, zero
            where the gradient is zero.
        sample: ``(key, params) -> params``: a random point of the ball, shaped like `params`.
        per_example: whether an array of radii or step sizes holds one number per example (the first axis of the
            parameters) instead of broadcasting against the parameters.
    """

    name: str
    radius: Radius
    norm: Callable[[Params], Array]
    project: Callable[[Params], Params]
    steepest: Callable[[Params], Params]
    support: Callable[[Params], Array]
    sample: Callable[[Array, Params], Params]
    per_example: bool = False


def against(values: Radius, leaf: Array, *, per_example: bool = False) -> Array:
    """Broadcasts radii, lengths or step sizes to a leaf of the parameters.

    Args:
        values: a number or an array.
        leaf: an array of the parameters, first axis the example.
        per_example: whether the first axis of `values` is the example; otherwise NumPy's broadcasting applies.

    Returns:
        The values in the leaf's shape and type.

    Example:
        >>> import jax.numpy as jnp
        >>> against(jnp.array([1.0, 2.0]), jnp.zeros((2, 3)), per_example=True).tolist()
        [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    """
    array = jnp.asarray(values, leaf.dtype)
    if per_example and array.ndim:
        array = array.reshape(array.shape + (1,) * (leaf.ndim - array.ndim))
    return jnp.broadcast_to(array, leaf.shape)


def _summed(values: Callable[[Array], Array], params: Params) -> Array:
    """The sum over each example of a function of the leaves."""
    sums = [jnp.sum(values(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(params)]
    return sum(sums[1:], sums[0])


def _scale(params: Array, lengths: Array, limit: Any) -> Array:
    """Shortens vectors of the given lengths to the limit."""
    return (params * jnp.where(lengths > limit, limit / jnp.where(lengths > limit, lengths, 1), 1)).astype(params.dtype)


def _shares(sizes: Array, radius: Radius, limits: Array) -> Array:
    """Sizes; for an array of radii, sizes as shares of their limits."""
    return sizes / jnp.where(sizes > 0, limits, 1) if jnp.ndim(radius) else sizes


def scaled(ball: Ball, share: Any) -> Ball:
    """The ball with a share of its radius, which may be traced: for a radius that grows during training.

    Args:
        ball: any ball.
        share: of its radius, a number of at least 0.

    Returns:
        The ball with ``share * radius`` as its radius.

    Raises:
        ValueError: the share is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> scaled(l2(5.0), 0.5).project(jnp.array([[3.0, 4.0]])).tolist()
        [[1.5, 2.0]]
    """
    ball = _checks.instance("ball", ball, Ball, "deformreg.linf(0.5)")
    _checks.non_negative("share", share)
    divisor = jnp.where(jnp.asarray(share) > 0, share, 1)

    def times(params: Params, factor: Any) -> Params:
        return jax.tree.map(lambda leaf: leaf * jnp.asarray(factor, leaf.dtype), params)

    return ball._replace(
        radius=ball.radius * share,
        # The norm is a share of the radius where that is an array.
        norm=(lambda params: ball.norm(params) / divisor) if jnp.ndim(ball.radius) else ball.norm,
        project=lambda params: times(ball.project(times(params, 1 / divisor)), share),
        support=lambda gradient: ball.support(gradient) * share,
        sample=lambda key, params: times(ball.sample(key, params), share),
    )


def linf(radius: Radius) -> Ball:
    """The cube: the size of every component is at most `radius`.

    Args:
        radius: in the unit of the parameters; an array gives each component its own, for example
            ``jnp.array([0.5, 3.0, 3.0])`` (radians, pixels, pixels) for `deformreg.affine()`.

    Returns:
        The ball. Its norm is the size of the largest component; for an array of radii, the largest share of a
        component in its own radius (1 on the boundary).

    Raises:
        ValueError: the radius is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> linf(0.5).project(jnp.array([[2.0, -0.25]])).tolist()
        [[0.5, -0.25]]
    """
    _checks.non_negative("radius", radius)

    def norm(params: Params) -> Array:
        def largest(leaf: Array) -> Array:
            sizes = _shares(jnp.abs(leaf), radius, against(radius, leaf))
            return jnp.max(sizes, axis=tuple(range(1, leaf.ndim)), initial=0)

        return jnp.max(jnp.stack([largest(leaf) for leaf in jax.tree.leaves(params)]), axis=0)

    def clip(leaf: Array) -> Array:
        limit = against(radius, leaf)
        return jnp.clip(leaf, -limit, limit)

    def sample(key: Array, params: Params) -> Params:
        def draw(key: Array, leaf: Array) -> Array:
            return jax.random.uniform(key, leaf.shape, leaf.dtype, -1, 1) * against(radius, leaf)

        return draw_leaves(draw, key, params)

    def steepest(gradient: Params) -> Params:
        return jax.tree.map(jnp.sign, gradient)

    def support(gradient: Params) -> Array:
        return _summed(lambda leaf: absolute(wide(leaf)) * against(radius, wide(leaf)), gradient)

    return Ball("linf", radius, norm, lambda params: jax.tree.map(clip, params), steepest, support, sample)


def l2(radius: Radius) -> Ball:
    """The Euclidean ball over all of an example's parameters.

    Args:
        radius: in the unit of the parameters; a number, or float[n], one per example. `deformreg.multi_step` and the
            `run` of `pgd` and `stadv` keep each example to its own radius; the other attacks and `deformreg.evaluate`
            refuse an array.

    Returns:
        The ball.

    Raises:
        ValueError: the radius is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> l2(2.5).project(jnp.array([[3.0, 4.0], [0.25, 0.5]])).tolist()
        [[1.5, 2.0], [0.25, 0.5]]
    """
    _checks.non_negative("radius", radius)

    spread = partial(against, per_example=True)

    def length(params: Params) -> Array:
        leaves = jax.tree.leaves(params)
        lengths = [lengths_along(leaf, tuple(range(1, leaf.ndim))).reshape(leaf.shape[0]) for leaf in leaves]
        return lengths_along(jnp.stack(lengths), (0,))[0]

    def norm(params: Params) -> Array:
        lengths = length(params)
        return _shares(lengths, radius, spread(radius, lengths))

    def project(params: Params) -> Params:
        lengths = length(params)
        return jax.tree.map(lambda leaf: _scale(leaf, spread(lengths, leaf), spread(radius, leaf)), params)

    def steepest(gradient: Params) -> Params:
        lengths = length(gradient)
        return jax.tree.map(lambda leaf: divided(leaf, spread(lengths, leaf)), gradient)

    def sample(key: Array, params: Params) -> Params:
        # The direction of a Gaussian is uniform; the length u^(1/d) makes the point uniform in the ball.
        direction_key, radius_key = jax.random.split(key)
        direction = draw_leaves(lambda key, leaf: jax.random.normal(key, leaf.shape, leaf.dtype), direction_key, params)
        lengths = length(direction)
        dimension = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(params))
        shares = jax.random.uniform(radius_key, lengths.shape, lengths.dtype) ** (1 / dimension)
        return jax.tree.map(
            lambda leaf: divided(leaf, spread(lengths, leaf)) * spread(shares, leaf) * spread(radius, leaf), direction
        )

    def support(gradient: Params) -> Array:
        lengths = length(gradient)
        return lengths * spread(radius, lengths)

    return Ball("l2", radius, norm, project, steepest, support, sample, per_example=True)


def pixelwise_l2(radius: Radius) -> Ball:
    """The length of every pixel's displacement is at most `radius`: ADef's norm ``max_p |flow[p]|`` as a ball.

    Unlike the cube, it does not allow longer displacements along the diagonals.

    Args:
        radius: in the unit of the parameters, pixels for a flow.

    Returns:
        The ball; it bounds the lengths of the vectors along the parameters' last axis.

    Raises:
        ValueError: the radius is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> pixelwise_l2(1.0).norm(jnp.array([[[[3.0, 4.0]]]])).tolist()
        [5.0]
    """
    _checks.non_negative("radius", radius)

    def lengths(leaf: Array) -> Array:
        if leaf.ndim < 2:
            raise ValueError(
                f"pixelwise_l2 bounds the vectors along the last axis, but the parameters have shape {leaf.shape}: use "
                "linf for one number per example"
            )
        return lengths_along(leaf, (-1,))

    def limits(leaf: Array) -> Array:
        return against(radius, leaf[..., :1])

    def norm(params: Params) -> Array:
        shares = [_shares(lengths(leaf), radius, limits(leaf)) for leaf in jax.tree.leaves(params)]
        return jnp.max(jnp.stack([jnp.max(leaf, axis=tuple(range(1, leaf.ndim))) for leaf in shares]), axis=0)

    def project(params: Params) -> Params:
        return jax.tree.map(lambda leaf: _scale(leaf, lengths(leaf), limits(leaf)), params)

    def steepest(gradient: Params) -> Params:
        return jax.tree.map(lambda leaf: divided(leaf, lengths(leaf)), gradient)

    def sample(key: Array, params: Params) -> Params:
        def draw(key: Array, leaf: Array) -> Array:
            direction_key, radius_key = jax.random.split(key)
            direction = jax.random.normal(direction_key, leaf.shape, leaf.dtype)
            shares = jax.random.uniform(radius_key, (*leaf.shape[:-1], 1), leaf.dtype) ** (1 / leaf.shape[-1])
            return divided(direction, lengths(direction)) * shares * limits(leaf)

        return draw_leaves(draw, key, params)

    def support(gradient: Params) -> Array:
        return _summed(lambda leaf: lengths(leaf) * limits(wide(leaf)), gradient)

    return Ball("pixelwise_l2", radius, norm, project, steepest, support, sample)
