"""Counts on the device what a model answers under noise in a family's parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deformreg.attacks.attack import LogitsFn
from deformreg.noise import Noise
from deformreg.perturbations import Params, Perturbation


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
