"""Perspective maps of whole images, by their corners."""

from __future__ import annotations

from typing import get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg.perturbations.perturbation import Perturbation, zero_params
from deformreg.warping import Boundary, Order, interpolation_of, warp


def perspective(*, boundary: Boundary = "edge", order: Order = 1) -> Perturbation:
    """Moves all pixels of an image by one perspective map, given by where the image's corners read.

    It does not take signals or volumes. The map exists while the four positions form a convex quadrilateral, which they
    do if no corner moves by a quarter of the shorter side or more along either axis. Pixels between the corners can
    move further than these: on a square image up to about twice as far for corners that move by less than a tenth of
    the side, without a limit towards a quarter. So a ball does not bound displacements.

    Args:
        boundary: what lies outside the image, see `deformreg.warp`.
        order: of the interpolation, see `deformreg.warp`.

    Returns:
        The family; parameters float[n, 4, 2], the displacements (dy, dx) of the upper left, upper right, lower right
        and lower left corner in pixels. `deformreg.pixelwise_l2` bounds their lengths.

    Raises:
        ValueError: an unknown `boundary` or `order`. On use: images of another rank, or less than two pixels high or
            wide.

    Example:
        >>> import jax.numpy as jnp
        >>> family, image = perspective(), jnp.arange(9.0).reshape(1, 3, 3, 1)
        >>> one_to_the_right = jnp.zeros((1, 4, 2)).at[..., 1].set(1.0)  # all corners alike: a translation
        >>> family.apply(one_to_the_right, image)[0, :, :, 0].tolist()
        [[1.0, 2.0, 2.0], [4.0, 5.0, 5.0], [7.0, 8.0, 8.0]]

    References:
        Heckbert, "Fundamentals of Texture Mapping and Image Warping", 1989, section 2.2.3 (square to quadrilateral).
    """
    _checks.choice("boundary", boundary, get_args(Boundary))
    interpolation_of(order)

    def init(images: Array) -> Array:
        if images.ndim != 4 or min(images.shape[1:3]) < 2:
            raise ValueError(f"perspective() moves images [n, h, w, c] of 2x2 pixels or more, got shape {images.shape}")
        return zero_params((images.shape[0], 4, 2), images)

    def field(params: Array, images: Array) -> Array:
        return _field(params.astype(jnp.promote_types(params.dtype, jnp.float32)), *images.shape[1:3])

    return Perturbation(
        init=init,
        apply=lambda params, images: warp(images, field(params, images), boundary=boundary, order=order),
        field=field,
        unit="pixels of the corners",
    )


def _field(corners: Float[Array, "n 4 2"], height: int, width: int) -> Float[Array, "n h w 2"]:
    # Heckbert's map of the unit square (u, v) to (x, y), minus the position. Every term vanishes with the parameters,
    # so that zero parameters give exactly the zero flow.
    upper_left, upper_right, lower_right, lower_left = (corners[:, k, :, None, None] for k in range(4))
    y, x = 0, 1
    twist = upper_left - upper_right + lower_right - lower_left
    right = upper_right - lower_right  # of the two sides at the lower right corner, as vectors (y, x)
    right_y, right_x = right[:, y] - (height - 1), right[:, x]
    lower = lower_left - lower_right
    lower_y, lower_x = lower[:, y], lower[:, x] - (width - 1)
    area = right_x * lower_y - lower_x * right_y
    g = (twist[:, x] * lower_y - lower_x * twist[:, y]) / area
    h = (right_x * twist[:, y] - twist[:, x] * right_y) / area
    u = jnp.linspace(0, 1, width, dtype=corners.dtype)[None, None, :]
    v = jnp.linspace(0, 1, height, dtype=corners.dtype)[None, :, None]
    tilt = g * u + h * v

    def moved(axis: int, across: float, down: float) -> Array:
        """The displacement along an axis, on which the image's sides are `across` and `down` pixels long."""
        start, end, below = upper_left[:, axis], upper_right[:, axis], lower_left[:, axis]
        linear = u * (end - start + g * (end + across)) + v * (below - start + h * (below + down)) + start
        return (linear - (across * u + down * v) * tilt) / (1 + tilt)

    return jnp.stack([moved(y, 0.0, height - 1.0), moved(x, width - 1.0, 0.0)], axis=-1)
