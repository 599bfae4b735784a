"""Counts the answers of a model under noise in a family's parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from deformreg import _checks
from deformreg._arrays import aligned, num_shards
from deformreg._families import check_layout, family_or_flow, identity
from deformreg.attacks.attack import LogitsFn
from deformreg.certification.laws import SmoothingLaw
from deformreg.criteria.classification import predicted_classes
from deformreg.noise import Noise
from deformreg.perturbations import Params, Perturbation


def smoothed_votes(
    logits_fn: LogitsFn,
    images: Float[Array, "n *space c"],
    *,
    law: SmoothingLaw,
    perturbation: Perturbation | None = None,
    params: Params = None,
    num_samples: int = 1000,
    batch_size: int = 512,
    key: Array,
) -> Int[Array, "n classes"]:
    """Counts how often a model answers each class under noise: an estimate of the smoothed classifier.

    The class with the most votes estimates the smoothed classifier's answer. How probably it is another one, these
    counts alone do not bound: `deformreg.certification.smoothed_predictions` does, and abstains where it must.

    Works inside `jit`.

    Args:
        logits_fn: ``images -> logits[n, classes]`` in inference mode; every row depends on its own image alone.
        images: float[n, h, w, c] in the range the model expects.
        law: of the noise.
        perturbation: the family; None is ``deformreg.flow()``.
        params: an attacker's parameters, to which the noise is added, shaped like ``perturbation.init(images)``; None
            is the identity.
        num_samples: draws per image.
        batch_size: perturbed copies of one image per model call; the result does not depend on it.
        key: a JAX random key; draw j of image i comes from ``fold_in(fold_in(key, i), j)``.

    Returns:
        int32[n, classes]. A draw votes for no class if one of its logits is NaN or +inf, or none is finite; a logit of
        -inf says "never this class".

    Raises:
        TypeError: integer images, counts that are not integers, or a `law` that is no `SmoothingLaw`.
        ValueError: counts below 1, or wrong shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import additive
        >>> from deformreg.certification import gaussian
        >>> sign = lambda images: jnp.concatenate([-images[:, 0, 0], images[:, 0, 0]], axis=1)
        >>> image = jnp.full((1, 1, 1, 1), 0.5)
        >>> votes = smoothed_votes(sign, image, law=gaussian(0.5), perturbation=additive(), key=jax.random.key(0))
        >>> bool(abs(votes[0, 1] / 1000 - 0.8413) < 0.05), int(votes.sum())
        (True, 1000)
    """
    images = _checks.images(images)
    _checks.function("logits_fn", logits_fn)
    _checks.instance("law", law, SmoothingLaw, "deformreg.certification.gaussian(0.3)")
    key = _checks.key(key)
    num_samples, batch_size = _checks.count("num_samples", num_samples), _checks.count("batch_size", batch_size)
    perturbation = family_or_flow(perturbation)
    check_layout(perturbation, images.shape)
    zeros = identity(perturbation, images)
    params = zeros if params is None else params
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, zeros):
        shapes = (jax.tree.map(jnp.shape, tree) for tree in (zeros, params))
        raise ValueError("params must be shaped like perturbation.init(images), {}, got {}".format(*shapes))

    def of_one(example: tuple[Array, Params, Array]) -> Array:
        index, params, image = example
        return tally(
            logits_fn, image[None], jax.random.fold_in(key, index), (num_samples,), noise=law.noise,
            perturbation=perturbation, params=jax.tree.map(lambda leaf: leaf[None], params),
            batch_size=min(batch_size, num_samples),
        )[0]  # fmt: skip

    def one_after_another(examples: tuple[Array, Params, Array]) -> Array:
        votes: Array = jax.lax.map(of_one, examples)
        return votes

    examples = (aligned(jnp.arange(images.shape[0]), images), aligned(params, images), images)
    shards = num_shards(images)
    if shards == 1:
        return one_after_another(examples)
    # A loop over images that are sharded over explicit mesh axes: every device takes one of its own at a time.
    apart = jax.tree.map(lambda leaf: leaf.reshape(shards, -1, *leaf.shape[1:]), examples)
    with jax.sharding.use_abstract_mesh(jax.typeof(images).sharding.mesh):
        votes = jax.vmap(one_after_another)(apart)
        return votes.reshape(images.shape[0], -1)


def tally(
    logits_fn: LogitsFn,
    image: Float[Array, "1 *space c"],
    key: Array,
    sizes: tuple[int, ...],
    *,
    noise: Noise,
    perturbation: Perturbation,
    params: Params,
    batch_size: int,
) -> Int[Array, "sets classes"]:
    """Counts the answers in consecutive sets of draws, of the given sizes.

    Draw j comes from ``fold_in(key, j)`` for every batch size.
    """
    # Noise of a 16-bit type would have no tails.
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    if any(shape[:1] != (1,) for shape in shapes):
        raise ValueError(f"perturbation.init must return parameters whose first axis is the example (1), got {shapes}")
    copies = jnp.broadcast_to(image, (batch_size, *image.shape[1:]))
    ends = np.cumsum(sizes)

    def draw(index: Array) -> Params:
        return jax.tree.map(lambda leaf: leaf[0], noise(jax.random.fold_in(key, index), params))

    def votes_of(batch: Array) -> Array:
        indices = batch * batch_size + jnp.arange(batch_size)
        moved = jax.tree.map(jnp.add, jax.vmap(draw)(indices), params)
        outputs = _checks.called("logits_fn", logits_fn, perturbation.apply(moved, copies))
        logits = _checks.logits(outputs, batch_size)
        in_set = [(indices >= end - size) & (indices < end) for size, end in zip(sizes, ends, strict=True)]
        # Logits without a prediction (-1) vote for no class, which can only lower a certificate.
        answers = jax.nn.one_hot(predicted_classes(logits), logits.shape[1], dtype=jnp.int32)
        return jnp.sum(jnp.where(jnp.stack(in_set)[:, :, None], answers[None], 0), axis=1, dtype=jnp.int32)

    kind = jax.eval_shape(votes_of, 0)
    zeros = aligned(jnp.zeros(kind.shape, kind.dtype), kind)
    counts: Array = jax.lax.fori_loop(
        0, -(-int(ends[-1]) // batch_size), lambda batch, counts: counts + votes_of(batch), zeros
    )
    return counts
