"""Smooth flows from coarse ones."""

from __future__ import annotations

from typing import get_args

from jaxtyping import Array

from deformreg import _checks, fields
from deformreg.perturbations.perturbation import Perturbation, zero_params
from deformreg.warping import Boundary, warp


def lowres_flow(stride: int, *, sigma: float = 0.0, boundary: Boundary = "edge") -> Perturbation:
    """Moves pixels along a smooth field: a coarse flow, interpolated to full resolution and optionally blurred.

    Args:
        stride: pixels between the coarse field's nodes; 1 is a full-resolution field.
        sigma: standard deviation in pixels of a Gaussian blur of the full field; 0 for none. A blur with ``stride=1``
            is the elastic perturbation of Kang et al.
        boundary: what lies outside the image, see `deformreg.warp`.

    Returns:
        The family; parameters float[n, ceil(h / stride), ceil(w / stride), 2] in pixels, for signals and volumes
        likewise. No component of the full field exceeds the coarse field's maximum.

    Raises:
        TypeError: `stride` is not an integer.
        ValueError: `stride` is below 1, `sigma` negative, or `boundary` unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> lowres_flow(4).init(jnp.zeros((2, 28, 30, 1))).shape
        (2, 7, 8, 2)

    References:
        Kang et al., "Testing Robustness Against Unforeseen Adversaries", arXiv 1908.08016 (elastic attack).
    """
    stride = _checks.count("stride", stride)
    _checks.non_negative("sigma", sigma)
    _checks.choice("boundary", boundary, get_args(Boundary))

    def init(images: Array) -> Array:
        coarse = [-(-size // stride) for size in images.shape[1:-1]]
        return zero_params((images.shape[0], *coarse, len(coarse)), images)

    def field(params: Array, images: Array) -> Array:
        return fields.smooth(fields.upsample(params, *images.shape[1:-1]), sigma)

    return Perturbation(
        init=init,
        apply=lambda params, images: warp(images, field(params, images), boundary=boundary),
        field=field,
        unit="pixels",
    )
