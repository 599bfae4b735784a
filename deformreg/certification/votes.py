"""The votes of a smoothed classifier: counts of what a model answers under noise in a family's parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deformreg import _checks
from deformreg.attacks.attack import LogitsFn
from deformreg.certification.laws import SmoothingLaw
from deformreg.noise import Noise
from deformreg.perturbations import Params, Perturbation, flow


def tally(
    noise: Noise,
    perturbation: Perturbation,
    batch_size: int,
    logits_fn: LogitsFn,
    image: Float[Array, "1 h w c"],
    params: Params,
    key: Array,
    num_first: int | Array,
    num_second: int | Array,
) -> Int[Array, "2 classes"]:
    """The votes of two sets of draws on one image: the first `num_first` draws, and `num_second` others.

    Draw j comes from ``fold_in(key, j)`` whatever the batch; one program serves all numbers of draws.
    """
    # Noise of a 16-bit type would have no tails.
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    if any(shape[:1] != (1,) for shape in shapes):
        raise ValueError(f"perturbation.init must return parameters whose first axis is the example (1), got {shapes}")
    copies = jnp.broadcast_to(image, (batch_size, *image.shape[1:]))
    shape = jax.eval_shape(logits_fn, copies).shape
    if len(shape) != 2 or shape[0] != batch_size or shape[1] < 1:
        raise ValueError(f"logits_fn must return logits of shape ({batch_size}, classes), got {shape}")

    def draw(index: Array) -> Params:
        return jax.tree.map(lambda leaf: leaf[0], noise(jax.random.fold_in(key, index), params))

    def add_batch(batch: Array, counts: Array) -> Array:
        indices = batch * batch_size + jnp.arange(batch_size)
        moved = jax.tree.map(jnp.add, jax.vmap(draw)(indices), params)
        logits = logits_fn(perturbation.apply(moved, copies))
        # Logits that are not finite answer nothing, which can only lower a certificate.
        valid = jnp.all(jnp.isfinite(logits), axis=1) & (indices < num_first + num_second)
        sets = jnp.stack([valid & (indices < num_first), valid & (indices >= num_first)])
        answers = jax.nn.one_hot(jnp.argmax(logits, axis=1), shape[1], dtype=jnp.int32)
        return counts + jnp.sum(sets[:, :, None] * answers[None], axis=1, dtype=jnp.int32)

    batches = (num_first + num_second + batch_size - 1) // batch_size
    counts: Array = jax.lax.fori_loop(0, batches, add_batch, jnp.zeros((2, shape[1]), jnp.int32))
    return counts


def smoothed_votes(
    logits_fn: LogitsFn,
    images: Float[Array, "n h w c"],
    *,
    law: SmoothingLaw,
    perturbation: Perturbation | None = None,
    params: Params = None,
    num_samples: int = 1000,
    batch_size: int = 512,
    key: Array,
) -> Int[Array, "n classes"]:
    """How often a model answers each class under noise: the smoothed classifier's answer is the argmax. Jit-able.

    Args:
        logits_fn: ``images -> logits[n, classes]`` in inference mode, every row dependent on its own image alone.
        images: float[n, h, w, c] in the range the model expects.
        law: of the noise.
        perturbation: the family; None is ``deformreg.flow()``.
        params: what an attacker adds to the noise, shaped like ``perturbation.init(images)``; None is nothing.
        num_samples: draws per image.
        batch_size: perturbed copies of one image that the model sees at a time; the result does not depend on it.
        key: a JAX random key; draw j of image i comes from ``fold_in(fold_in(key, i), j)``.

    Returns:
        int32[n, classes]; a draw whose logits are not finite votes for no class.

    Raises:
        TypeError: integer images, or counts that are not integers.
        ValueError: counts below 1, or shapes that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import additive, certification
        >>> sign = lambda images: jnp.concatenate([-images[:, 0, 0], images[:, 0, 0]], axis=1)
        >>> image = jnp.full((1, 1, 1, 1), 0.5)
        >>> law = certification.gaussian(0.5)
        >>> votes = smoothed_votes(sign, image, law=law, perturbation=additive(), key=jax.random.key(0))
        >>> bool(abs(votes[0, 1] / 1000 - 0.8413) < 0.05), int(votes.sum())
        (True, 1000)
    """
    images = _checks.images(images)
    num_samples, batch_size = _checks.count("num_samples", num_samples), _checks.count("batch_size", batch_size)
    perturbation = flow() if perturbation is None else perturbation
    identity = perturbation.init(images)
    params = identity if params is None else params
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, identity):
        shapes = (jax.tree.map(jnp.shape, tree) for tree in (identity, params))
        raise ValueError("params must be shaped like perturbation.init(images), {}, got {}".format(*shapes))
    batch_size = min(batch_size, num_samples)

    def of_one(example: tuple[Array, Params, Array]) -> Array:
        index, moved, image = example
        one = jax.tree.map(lambda leaf: leaf[None], moved)
        example_key = jax.random.fold_in(key, index)
        return tally(law.noise, perturbation, batch_size, logits_fn, image[None], one, example_key, 0, num_samples)[1]

    votes: Array = jax.lax.map(of_one, (jnp.arange(images.shape[0]), params, images))
    return votes
