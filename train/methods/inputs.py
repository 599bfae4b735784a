"""Which images a step trains on: parts of methods."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax import Array

import deformreg
from deformreg import Attack, Ball, Perturbation
from deformreg.balls import scaled
from deformreg.noise import Noise
from train.methods.method import Forward, Inputs
from train.ranges import Statistics


def noisy(noise: float | Noise, family: Perturbation | None = None) -> Inputs:
    """Images under random parameters of a family.

    Args:
        noise: a law, or the standard deviation of Gaussian noise in the unit of the parameters.
        family: the family; None is the flow with black borders, whose unit is the pixel.
    """

    def make(forward: Forward, images: Array, keys: Array) -> Array:
        def one(key: Array, image: Array) -> Array:
            return deformreg.random_start(key, image[None], perturbation=family, noise=noise)[0]

        return jax.vmap(one)(keys, images)

    return Inputs(make)


def attacked(
    family: Perturbation,
    ball: Ball,
    *,
    num_steps: int,
    step_size: float | None,
    statistics: Statistics,
    start: Ball | None = None,
    share: optax.Schedule | None = None,
) -> Inputs:
    """Images attacked by projected gradient ascent of the loss, from a random start in the ball.

    Args:
        family: what the attack may do.
        ball: how much of it.
        num_steps: gradient steps; each costs a forward and a backward pass.
        step_size: in the ball's unit; None is ``2.5 * radius / num_steps``.
        statistics: of batch normalization, as the attack sees them.
        start: where the attack starts at random; None is `ball`.
        share: of all these lengths, as a function of the step; None is 1.
    """

    def make(forward: Forward, images: Array, keys: Array) -> Array:
        fixed = forward.fixed()
        return deformreg.multi_step(
            lambda attacked: fixed.losses(attacked, statistics),
            images,
            **within(
                ball, keys, num_steps, step_size, start=start, share=None if share is None else share(forward.step)
            ),
            perturbation=family,
        ).images

    return Inputs(make, passes=2.0 * num_steps)


def within(
    ball: Ball,
    keys: Array,
    num_steps: int,
    step_size: float | None,
    *,
    start: Ball | None = None,
    share: Any = None,
) -> dict[str, Any]:
    """The options of `deformreg.multi_step` for an attack from a random start; see `attacked`."""
    length = 2.5 * ball.radius / max(num_steps, 1) if step_size is None else step_size
    start = ball if start is None else start
    if share is not None:
        ball, start, length = scaled(ball, share), scaled(start, share), length * share
    return {
        "ball": ball,
        "num_steps": num_steps,
        "step_size": length,
        "start": per_example(start, keys),
        "key": keys[0],  # unused: every example draws its start from its own key
    }


def per_example(ball: Ball, keys: Array) -> Noise:
    """A random start in a ball that every example draws from its own key."""

    def draw(key: Array, params: Array) -> Array:
        def one(key: Array, leaf: Array) -> Array:
            sample: Array = ball.sample(key, leaf[None])[0]
            return sample

        return jax.vmap(one)(keys, params)

    return draw


def worst_of(attack: Attack, statistics: Statistics) -> Inputs:
    """The answer of an attack that tries random candidates, success or not.

    Args:
        attack: from `deformreg.attacks`, with ``keep="best"``.
        statistics: of batch normalization, as the attack sees them.
    """

    def make(forward: Forward, images: Array, keys: Array) -> Array:
        fixed = forward.fixed()
        result = attack.run(lambda tried: fixed.logits(tried, statistics), images, fixed.classes, keys)
        worst: Array = jax.lax.stop_gradient(attack.perturbation.apply(result.params, images))
        return worst

    return Inputs(make, passes=float(attack.max_steps * attack.calls_per_step * (2 if attack.uses_gradients else 1)))


def in_turn(first: Inputs, second: Inputs) -> Inputs:
    """The images of `second`, made from those of `first`, with other random numbers."""

    def make(forward: Forward, images: Array, keys: Array) -> Array:
        others = jax.vmap(jax.random.fold_in, (0, None))(keys, 4)  # network, ELLE and mixing draw from 1 to 3
        return second.make(forward, first.make(forward, images, keys), others)

    return Inputs(make, first.passes + second.passes)
