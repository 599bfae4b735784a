"""The greedy attack: exact best displacements of pixels for the loss's gradient in the image, the best pixels first.

A flow's gradient is one-sided at whole pixels and sees only the cell of the grid where a pixel now is: an ascent must
pass through the identity to learn that the other side would be better. Here one backward pass gives the gradient with
respect to the warped *image*, and for each pixel the displacement that raises the loss most, to first order in the
network but exact in the warp, is known: the first step on a loss that is linear in the pixels attains the bound
`FlowBounds.displacement`. How many pixels follow is as simple as in Square: fewer after each failure. A failure also
says that the gradient changes on the way, so the best point's gradient becomes the mean of the two, as in the
trapezoidal rule for what a pixel gains along the way.

References:
    This project. The gains are those of `deformreg.bounds`; moving the best coordinates first follows Moon et al.,
    "Parsimonious Black-Box Adversarial Attacks via Efficient Combinatorial Optimization", ICML 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import aligned, choose, finite_or_zero
from deformreg._displacements import best_displacements, check_box
from deformreg._families import check_layout, identity
from deformreg.attacks.attack import Attack, Examples, LogitsFn, Search
from deformreg.attacks.gradient import Perturbed
from deformreg.attacks.search import (
    Keep,
    Loss,
    Tried,
    budget_of,
    check_choices,
    differentiate_pixels,
    fresh,
    random_signs,
    record,
    started_anew,
    step_keys,
    used_share,
)
from deformreg.balls import Ball
from deformreg.perturbations import Perturbation, flow
from deformreg.warping import Boundary

GROWTH, DECAY = 1.2, 0.75  # of the share of pixels that follow, after a rise and after a failure
SHAKEN = 0.1  # of the pixels, displaced at random at every second new start; at the others all are


def greedy(
    *,
    ball: Ball,
    num_steps: int = 100,
    boundary: Boundary = "edge",
    loss: Loss = "cross_entropy",
    keep: Keep = "any",
    name: str | None = None,
) -> Attack:
    """Gives pixels the displacements that raise the loss most, the pixels with the largest gains first.

    A step moves a share of the pixels, all at first. If the loss does not rise, the search returns to its best point,
    replaces the gradient there by its mean with that of the failure, and moves fewer pixels. Where no pixel is left to
    move, it starts again: with even chances from random displacements of full size, or from the best point of all
    starts with a tenth of its pixels displaced so.

    Args:
        ball: `deformreg.linf` or `deformreg.pixelwise_l2`, its radius one number of pixels. In the latter, the extreme
            displacements of the cube around it are shortened to the radius before they are compared.
        num_steps: forward and backward passes per example, at least 1; the first one sees the image itself.
        boundary: what lies outside the image, see `deformreg.warp`.
        loss: see `deformreg.attacks.pgd`.
        keep: see `deformreg.attacks.pgd`; ``"last"`` is refused.
        name: for reports; None makes one.

    Returns:
        The attack. It spends at most ``num_steps`` model calls on an example, and on each displaces the whole image as
        often as there are extreme displacements: 9 times for a radius of at most one pixel.

    Raises:
        TypeError: `num_steps` is not an integer.
        ValueError: a number out of range, another ball, an array of radii, or an unknown `boundary`, `loss` or `keep`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import linf
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1) / 2
        >>> greedy(ball=linf(0.5)).run(edge, ramp, jnp.array([0]), jax.random.key(0)).model_calls.tolist()
        [2]
    """
    ball = check_box(ball)
    num_steps = _checks.count("num_steps", num_steps)
    check_choices(loss, keep, ("any", "best"))
    plan = _Plan(flow(boundary=boundary), ball, num_steps, boundary, loss, keep)
    return Attack(
        name or f"greedy-{num_steps}",
        plan.family,
        budget_of(ball, plan.family),
        used_share(ball),
        _begin,
        partial(_step, plan),
        max_steps=num_steps,
        uses_gradients=True,
        settings={"num_steps": num_steps, "loss": loss if isinstance(loss, str) else "function", "keep": keep},
        one_class=loss == "dlr",
    )


def greedy_step(
    loss_fn: Callable[[Array], Array],
    images: Float[Array, "n *space c"],
    *,
    ball: Ball,
    boundary: Boundary = "edge",
) -> Perturbed:
    """Gives every pixel the displacement that raises its example's loss most: the first step of `greedy`, for training.

    "Most" is to first order in the loss and exact in the warp; where nothing can be gained, a pixel stays.
    It takes one forward and one backward pass, and a forward pass for the losses that it returns; `jit` leaves that out
    if you do not use them.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; ascended.
        images: any range.
        ball: `deformreg.linf` or `deformreg.pixelwise_l2`, its radius one number of pixels.
        boundary: what lies outside the image, see `deformreg.warp`.

    Returns:
        The perturbed images, their flow, and their losses; gradients are stopped.

    Raises:
        TypeError: integer images.
        ValueError: another ball, an array of radii, an unknown `boundary`, or a `loss_fn` that does not return one loss
            per example.

    Example:
        >>> import jax.numpy as jnp
        >>> from deformreg import linf
        >>> valley = jnp.array([1.0, 0.5, 0.6]).reshape(1, 1, 3, 1)
        >>> brighter = greedy_step(lambda x: x[:, 0, 1, 0], valley, ball=linf(0.5))
        >>> brighter.params[0, 0, 1].tolist(), brighter.images[0, 0, 1, 0].item()  # half a pixel to the left
        ([0.0, -0.5], 0.75)
    """
    images = jax.lax.stop_gradient(_checks.images(images))
    ball = check_box(ball)
    family = flow(boundary=boundary)
    check_layout(family, images.shape)
    _checks.function("loss_fn", loss_fn)

    def losses(images: Array) -> Array:
        return _checks.per_example(_checks.called("loss_fn", loss_fn, images), images.shape[0])

    gradients = finite_or_zero(jax.lax.stop_gradient(jax.grad(lambda images: jnp.sum(losses(images)))(images)))
    _, params = best_displacements(images, images, gradients, ball, boundary)
    moved = family.apply(params, images)
    return Perturbed(moved, params, jax.lax.stop_gradient(losses(moved)))


class _Plan(NamedTuple):
    """The arguments of `greedy` that its search keeps to."""

    family: Perturbation
    ball: Ball
    num_steps: int
    boundary: Boundary
    loss: Loss
    keep: Keep


class Memory(NamedTuple):
    """The best point of a row since its last start: its flow, images, gradient and loss; the share that moves next.

    `gradient` is a mean with those of the failures since.
    """

    best: Array
    values: Array
    gradient: Array
    loss: Array
    share: Array


def _begin(examples: Examples) -> Search:
    """Starts at the image itself, with all pixels to move."""
    zeros = identity(flow(), examples.images)
    search = fresh(examples, zeros)
    ones = jnp.ones_like(search.losses)
    return search._replace(memory=Memory(zeros, examples.images, jnp.zeros_like(examples.images), search.losses, ones))


def _step(plan: _Plan, logits_fn: LogitsFn, examples: Examples, search: Search) -> Search:
    images, params = examples.images, search.params
    values = plan.family.apply(params, images)
    tried = differentiate_pixels(logits_fn, plan.family, plan.loss, examples, params, values)
    search = record(search, tried.losses, tried.broken, keep=plan.keep)
    memory = look_back(search.memory, params, values, tried)
    gains, offsets = best_displacements(images, memory.values, memory.gradient, plan.ball, plan.boundary)
    chosen = best_pixels(jnp.where(jnp.any(offsets != memory.best, axis=-1), gains, 0), memory.share)
    over = ~jnp.any(chosen, axis=tuple(range(1, chosen.ndim)))
    moved = jnp.where(chosen[..., None], offsets, memory.best)
    return search._replace(
        params=started_anew(over, lambda: _start(plan.ball, step_keys(examples, search.calls), search.kept), moved),
        memory=memory._replace(loss=jnp.where(over, -jnp.inf, memory.loss), share=jnp.where(over, 1.0, memory.share)),
        done=search.done | (search.calls >= plan.num_steps),
    )


def _start(ball: Ball, keys: Array, best: Array) -> Array:
    """Flows from which to start again, each by its own key: the best ones with some or all pixels displaced anew, along
    the diagonals and by the full size."""

    def draw(key: Array, row: Array) -> tuple[Array, Array]:
        kind, which, where = jax.random.split(key, 3)
        share = jnp.where(jax.random.bernoulli(kind, jnp.float32(0.5)), 1, jnp.float32(SHAKEN))
        return jax.random.bernoulli(which, share, row.shape[:-1]), random_signs(where, row.shape, row.dtype)

    chosen, signs = jax.vmap(draw)(keys, best)
    return jnp.where(chosen[..., None], ball.project(signs * jnp.asarray(ball.radius, best.dtype)), best)


def look_back(memory: Memory, params: Array, values: Array, tried: Tried) -> Memory:
    """The better of the old and the new point, and the share of pixels to move from there."""
    losses = tried.losses.astype(memory.loss.dtype)
    better = losses > memory.loss
    share = jnp.where(better, jnp.minimum(memory.share * GROWTH, 1), memory.share * DECAY)
    new = Memory(params, values, tried.gradient, losses, share)
    old = memory._replace(gradient=(memory.gradient + tried.gradient) / 2, share=share)
    kept: Memory = choose(better, new, old)
    return kept


def best_pixels(gains: Array, share: Array) -> Array:
    """bool[n, *space]: the pixels that move: this share of all, rounded down, those with the largest positive gains.

    Of pixels with the same gain, the first ones move. Floats of at least 0 have the order of their bits.
    """
    flat = jnp.where(gains > 0, gains, 0).reshape(len(gains), -1)
    count = jnp.clip((share * flat.shape[1]).astype(jnp.int32), 0, flat.shape[1])[:, None]
    ranks = jax.lax.bitcast_convert_type(flat, jnp.dtype(f"int{8 * flat.dtype.itemsize}"))
    least = nth_largest(ranks, count)
    above, level = ranks > least, ranks == least
    room = count - jnp.sum(above, axis=1, keepdims=True, dtype=jnp.int32)
    chosen = above | (level & (jnp.cumsum(level, axis=1, dtype=jnp.int32) <= room))
    return jnp.reshape(chosen & (flat > 0), gains.shape)


def nth_largest(values: Array, number: Array) -> Array:
    """int[n, 1]: in every row the value that `number`, int[n, 1], of its values reach; all are at least 0.

    The largest integer if the number is 0. It takes a pass for each bit, from the highest, which is a seventh to a
    thirteenth of a sort's time on CPUs.
    """
    bits = 8 * values.dtype.itemsize - 1  # without the sign

    def add_bit(place: Array, found: Array) -> Array:
        tried = found | jnp.left_shift(jnp.ones_like(found), bits - 1 - place)
        reached = jnp.sum(values >= tried, axis=1, keepdims=True, dtype=jnp.int32)
        return jnp.where(reached >= number, tried, found)

    found: Array = jax.lax.fori_loop(0, bits, add_bit, aligned(jnp.zeros_like(values[:, :1]), values))
    return found
