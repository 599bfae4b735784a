"""ADef: the smallest deformation that crosses the linearized decision boundary, repeated.

References:
    Alaifari, Alberti and Gauksson, "ADef: an Iterative Algorithm to Construct Adversarial Deformations", ICLR 2019.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deformreg import _checks, fields
from deformreg._arrays import choose, finite_or_zero, pad_examples, scaled, wide
from deformreg._families import identity
from deformreg.attacks.attack import Attack, Budget, Examples, LogitsFn, Search
from deformreg.attacks.search import fresh, is_broken, plain, record, runners_up, used_share
from deformreg.balls import pixelwise_l2
from deformreg.losses import margin
from deformreg.perturbations import flow
from deformreg.warping import Boundary


class Memory(NamedTuple):
    """A row's candidate classes, and whether its next try is the last, lengthened one."""

    candidates: Array
    last_try: Array


def adef(
    *,
    max_norm: float = math.inf,
    num_steps: int = 50,
    candidates: int = 1,
    sigma: float = 0.0,
    overshoot: float = 1.2,
    boundary: Boundary = "edge",
    name: str | None = None,
) -> Attack:
    """Adds the smallest flow that, to first order, makes a candidate class win; repeats on the deformed image.

    The flow's size is ``max_p |flow[p]|`` in pixels (`deformreg.fields.max_displacement`). It is nearly minimal, so
    ADef also measures how far an example is from being broken. A step that would exceed `max_norm` ends the search; if
    the search failed, its flow is lengthened and tried once more.

    Args:
        max_norm: in pixels, at least 0; infinite for no bound.
        num_steps: the maximum number of flow updates, at least 1.
        candidates: the number of runner-up classes of the clean image to aim at; each step takes the shortest. With
            targets, ADef aims at the target alone.
        sigma: standard deviation of the Gaussian smoothing of the steps, in pixels; 0 for none.
        overshoot: the factor of the last try, at least 1; limited by `max_norm`.
        boundary: see `deformreg.warp`.
        name: for reports; None makes one.

    Returns:
        The attack. A step counts one model call per class aimed at: they share one forward pass and have one backward
        pass each.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: a number out of range. On `run`: more candidates than other classes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1) / 2
        >>> result = adef().run(edge, ramp, jnp.array([0]), jax.random.key(0))
        >>> result.success.tolist(), round(float(result.norms.max_displacement[0]), 3)  # 0.25 pixels cross, 1.2 times
        ([True], 0.3)

    References:
        Alaifari, Alberti and Gauksson, ICLR 2019, see the module.
    """
    num_steps, candidates = _checks.count("num_steps", num_steps), _checks.count("candidates", candidates)
    if not (isinstance(max_norm, float) and max_norm == math.inf):
        _checks.non_negative("max_norm", max_norm)
    _checks.non_negative("sigma", sigma)
    if not overshoot >= 1:
        raise ValueError(f"overshoot must be at least 1, got {overshoot}")
    family = flow(boundary=boundary)

    def begin(examples: Examples) -> Search:
        search = fresh(examples, identity(family, examples.images))
        count = len(examples.images)
        number = 1 if examples.targets is not None else candidates
        memory = Memory(jnp.zeros((count, number), jnp.int32), jnp.zeros(count, bool))
        return search._replace(memory=memory)

    def step(logits_fn: LogitsFn, examples: Examples, search: Search) -> Search:
        params, memory = search.params, search.memory
        images = family.apply(params, examples.images)
        logits, vjp = jax.vjp(logits_fn, images)
        aimed = jnp.where((search.calls == 0)[:, None], _rank(logits, examples, candidates), memory.candidates)
        number = aimed.shape[1]
        search = record(search, _closeness(logits, examples), is_broken(logits, examples), keep="any", calls=number)
        steps = [_crossing(logits, vjp, images, examples.labels, aimed[:, k], sigma) for k in range(number)]
        moved, size = _shortest([params + each for each in steps])
        still = jnp.abs(size - fields.max_displacement(params)) <= 1e-10
        stuck = ~(size < max_norm) | still | (search.calls > num_steps * number)
        moved = choose(stuck, _lengthened(params, overshoot, max_norm), moved)
        return search._replace(
            params=moved, done=search.done | memory.last_try, memory=Memory(aimed, memory.last_try | stuck)
        )

    bound = plain(max_norm) != math.inf
    return Attack(
        name or "adef",
        family,
        Budget(plain(max_norm) if bound else None, "pixelwise_l2", "pixels"),
        used_share(pixelwise_l2(max_norm)) if bound else None,
        begin,
        step,
        calls_per_step=candidates,
        max_steps=num_steps + 2,
        uses_gradients=True,
        settings={"num_steps": num_steps, "candidates": candidates, "sigma": sigma, "overshoot": overshoot},
        one_class=True,
    )


def _shortest(candidates: list[Array]) -> tuple[Array, Array]:
    """For each example, the field of least displacement, and its displacement."""
    sizes = jnp.stack([fields.max_displacement(field) for field in candidates], axis=1)
    best = jnp.argmin(sizes, axis=1)
    shortest = candidates[0]
    for k, field in enumerate(candidates[1:], start=1):
        shortest = choose(best == k, field, shortest)
    return shortest, jnp.min(sizes, axis=1)


def _lengthened(field: Array, factor: float, max_norm: float) -> Array:
    """The field times `factor`, limited by the bound less a margin for rounding."""
    size = fields.max_displacement(field)
    limit = jnp.where(size > 0, max_norm * (1 - 1e-6) / jnp.where(size > 0, size, 1), 1)
    return scaled(field, jnp.minimum(factor, jnp.maximum(limit, 1e-6)))


def _rank(logits: Array, examples: Examples, candidates: int) -> Array:
    if examples.targets is not None:
        return examples.targets[:, None].astype(jnp.int32)
    if candidates > logits.shape[1] - 1:
        raise ValueError(f"candidates must be at most {logits.shape[1] - 1}, the other classes, got {candidates}")
    return runners_up(logits, examples.labels, candidates)


def _closeness(logits: Array, examples: Examples) -> Array:
    return margin(logits, examples.labels) if examples.targets is None else -margin(logits, examples.targets)


def _crossing(logits: Array, vjp: Any, images: Array, labels: Array, towards: Array, sigma: float) -> Array:
    """The smoothed flow of least length that makes class `towards` tie with the label, to first order."""
    classes = jnp.arange(logits.shape[1])[None, :]
    sign = (classes == towards[:, None]).astype(logits.dtype) - (classes == labels[:, None]).astype(logits.dtype)
    gap = jnp.sum(jnp.where(sign != 0, sign * logits, 0), axis=1)
    gradient = wide(finite_or_zero(vjp(sign)[0]))
    slopes = _central_differences(wide(images))
    along = jnp.stack([jnp.sum(gradient * slope, axis=-1) for slope in slopes], axis=-1)
    smooth = _smooth(along, sigma)
    squared = jnp.sum(smooth**2, axis=tuple(range(1, smooth.ndim)))
    factor = jnp.where(squared > 0, -gap / jnp.where(squared > 0, squared, 1), 0)
    return scaled(_smooth(smooth, sigma), factor)


def _central_differences(images: Array) -> list[Array]:
    """Slopes along each spatial axis; one-sided at the ends."""

    def along(axis: int) -> Array:
        if images.shape[axis] < 2:
            return jnp.zeros_like(images)
        return jnp.asarray(jnp.gradient(images, axis=axis))

    return [along(axis) for axis in range(1, images.ndim - 1)]


def _smooth(field: Array, sigma: float) -> Array:
    """Gaussian smoothing with zeros outside."""
    # The step needs a symmetric smoothing matrix; with repeated edges, as in `fields.smooth`, it is not.
    if sigma == 0:
        return field
    reach = math.ceil(4 * sigma) + 1
    axes = field.shape[-1]
    padded = pad_examples(field, [*[(reach, reach)] * axes, (0, 0)], "constant")
    return fields.smooth(padded, sigma)[:, *[slice(reach, -reach)] * axes]
