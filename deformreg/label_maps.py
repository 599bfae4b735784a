"""The backward warp of label maps: nearest neighbour, because classes have no values in between."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from deformreg import _checks


def warp_label_maps(
    label_maps: Int[Array, " n *space"], flow: Float[Array, "n *space axes"], *, outside: int | None = None
) -> Int[Array, " n *space"]:
    """Moves label maps along a flow: ``out[p]`` is the label of the pixel nearest to ``p + flow[p]``.

    With the flow that warped an image (`deformreg.warp` with ``boundary="edge"``), it is the label map of the warped
    image. Of two pixels at the same distance it takes the one below or to the right.

    Args:
        label_maps: one label per pixel, int[n, h, w].
        flow: displacements in pixels, last axis (dy, dx).
        outside: the label of what lies outside the map; None is the label of the nearest pixel at the edge.

    Returns:
        The label maps, of the shape and type given.

    Raises:
        TypeError: labels that are not integers, or a flow that is not floating point.
        ValueError: a flow of another shape, or an `outside` that the maps' type does not hold.

    Example:
        >>> import jax.numpy as jnp
        >>> labels = jnp.array([[[1, 2, 3]]])
        >>> warp_label_maps(labels, jnp.full((1, 1, 3, 2), jnp.array([0.0, 0.6])), outside=-1).tolist()
        [[[2, 3, -1]]]
    """
    label_maps = _checks.array("label_maps", label_maps)
    if not jnp.issubdtype(label_maps.dtype, jnp.integer):
        raise TypeError(f"label_maps must be integers, one class per pixel, got {label_maps.dtype}")
    flow = _checks.floating("flow", flow)
    space = label_maps.shape[1:]
    if flow.shape != (*label_maps.shape, len(space)):
        expected = (*label_maps.shape, len(space))
        raise ValueError(f"flow must have shape {expected} for label maps of {label_maps.shape}, got {flow.shape}")
    flow = flow.astype(jnp.promote_types(flow.dtype, jnp.float32))
    bounds = np.iinfo(label_maps.dtype)
    if outside is not None and not bounds.min <= outside <= bounds.max:
        raise ValueError(f"outside must be a label of type {label_maps.dtype}, got {outside}: give label maps of int32")

    def warp_one(label_map: Array, flow: Array) -> Array:
        positions = []
        inside = jnp.ones(space, bool)
        for axis, size in enumerate(space):
            here = jnp.arange(size, dtype=flow.dtype).reshape(
                [-1 if other == axis else 1 for other in range(len(space))]
            )
            # Clipped before it becomes an integer: far displacements would overflow.
            nearest = jnp.clip(jnp.floor(here + flow[..., axis] + 0.5), -1, size)
            inside &= (nearest >= 0) & (nearest < size)
            positions.append(jnp.clip(nearest, 0, size - 1).astype(jnp.int32))
        moved = label_map[tuple(positions)]
        return moved if outside is None else jnp.where(inside, moved, jnp.asarray(outside, moved.dtype))

    return jax.vmap(warp_one)(label_maps, flow)
