"""Smoothing laws: noise over a family's parameters, and the radius that it certifies.

The smoothed classifier ``g`` answers an image with the class that the model ``f`` answers most often when noise is
added to the parameters of a perturbation family ``T``: ``g(params, image) = argmax_c P(f(T(params + noise, image)) =
c)``. On a clean image `params` is zero. For every family and model, small parameters do not change the answer of `g`;
the law says how small.

A new law is a function that returns a `SmoothingLaw`, and one line in `LAWS`.

References:
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019.
    Alfarra, Bibi, Khan, Torr and Ghanem, "DeformRS: Certifying Input Deformations with Randomized Smoothing", AAAI
    2022: noise over the parameters of deformations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from deformreg import noise as noises
from deformreg.noise import Noise

Scale = float | Sequence[float] | Real[np.ndarray, "..."] | Array
"""A positive number, or an array that broadcasts against one example's parameters: one number per parameter."""


class SmoothingLaw(NamedTuple):
    """A noise law over parameters, and what it certifies.

    Attributes:
        noise: ``(key, params) -> noise``, shaped like the parameters; their first axis is the example.
        radius: the certified radius as a function of a lower bound, above 1/2, of the probability of the top class.
            Parameters of a smaller norm do not change the smoothed classifier's answer.
        norm: the norm that the radius bounds, with its unit, in words.
    """

    noise: Noise
    radius: Callable[[float], float]
    norm: str


def gaussian(sigma: Scale) -> SmoothingLaw:
    """Adds independent normal noise, which certifies the l2 norm: ``radius = sigma * Phi^-1(probability)``.

    Args:
        sigma: standard deviation in the unit of the parameters (pixels for a flow), above 0. An array gives each
            parameter its own; the radius then bounds the l2 norm of ``params / sigma``, which has no unit.

    Returns:
        The law.

    Raises:
        TypeError: `sigma` is not a number or an array of numbers.
        ValueError: `sigma` is not finite or not above 0. When drawing: it does not broadcast to the parameters.

    Example:
        >>> law = gaussian(0.5)
        >>> law.norm, round(law.radius(0.8413), 2)
        ('l2 norm of the parameters', 0.5)
        >>> gaussian((0.1, 1.0, 1.0)).norm  # rotation in radians, dy and dx in pixels
        'l2 norm of the parameters, each divided by its sigma'

    References:
        Cohen, Rosenfeld and Kolter 2019, theorem 1; one minus the top class's probability bounds the runner-up's.
    """
    scale = _scale("sigma", sigma)
    unit = 1.0 if scale.ndim else float(scale)
    return SmoothingLaw(
        noise=_scaled("sigma", noises.gaussian(1.0), scale),
        radius=lambda probability: unit * NormalDist().inv_cdf(probability),
        norm="l2 norm of the parameters" + (", each divided by its sigma" if scale.ndim else ""),
    )


def uniform(half_width: Scale) -> SmoothingLaw:
    """Adds independent noise, uniform in [-half_width, half_width], which certifies the l1 norm.

    ``radius = 2 * half_width * (probability - 1/2)``: shifting the box of the noise by `params` moves at most the share
    ``sum |params / (2 * half_width)|`` of it out of the original box.

    Args:
        half_width: in the unit of the parameters (pixels for a flow), above 0. An array gives each parameter its own;
            the radius then bounds the l1 norm of ``params / half_width``, which has no unit.

    Returns:
        The law.

    Raises:
        TypeError: `half_width` is not a number or an array of numbers.
        ValueError: `half_width` is not finite or not above 0. When drawing: it does not broadcast to the parameters.

    Example:
        >>> uniform(0.5).radius(0.75)
        0.25

    References:
        Alfarra et al. 2022, corollary for uniform smoothing.
        Yang et al., "Randomized Smoothing of All Shapes and Sizes", ICML 2020: uniform noise and the l1 norm.
    """
    scale = _scale("half_width", half_width)
    unit = 1.0 if scale.ndim else float(scale)
    return SmoothingLaw(
        noise=_scaled("half_width", noises.uniform(1.0), scale),
        radius=lambda probability: 2 * unit * (probability - 0.5),
        norm="l1 norm of the parameters" + (", each divided by its half_width" if scale.ndim else ""),
    )


LAWS: dict[str, Callable[[Scale], SmoothingLaw]] = {"gaussian": gaussian, "uniform": uniform}
"""Laws by name, each a function of the scale of its noise."""


def _scale(name: str, value: Scale) -> Float[np.ndarray, "*sizes"]:
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"{name} must be a number or an array of numbers, got {value!r}")
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be a number or an array of numbers, got {value!r}")
    if array.size == 0 or not np.all(np.isfinite(array) & (array > 0)):
        raise ValueError(f"{name} must be finite and above 0, got {value}")
    return array.astype(np.float64)


def _scaled(name: str, law: Noise, scale: Float[np.ndarray, "*sizes"]) -> Noise:
    def fitted(leaf: Array) -> Array:
        shape = leaf.shape[1:]
        trailing = shape[len(shape) - scale.ndim :]
        if scale.ndim > len(shape) or any(size not in (1, of) for size, of in zip(scale.shape, trailing, strict=True)):
            raise ValueError(
                f"{name} must be a number, or broadcast to one example's parameters {shape}, got shape {scale.shape}"
            )
        return jnp.broadcast_to(jnp.asarray(scale, leaf.dtype), leaf.shape)

    return lambda key, params: jax.tree.map(lambda leaf: leaf * fitted(leaf), law(key, params))
