"""Perturbation families ``T(params, images)`` as values, like an Optax transformation: pairs of pure functions.

A family says how images are perturbed; losses, balls and noise are separate. Zero parameters are always the identity.
To write one takes two functions::

    brightness = Perturbation(
        init=lambda images: jnp.zeros(images.shape[0]),
        apply=lambda params, images: images + params[:, None, None, None],
    )

References:
    Xia and Li, "Improving Resistance to Adversarial Deformations by Regularizing Gradients", Neurocomputing 455,
    2021: additive and location perturbations in one form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks, fields
from deformreg._arrays import aligned
from deformreg.warping import Boundary, Order, central_differences, forward_differences, interpolation_of, warp

Params = Any
"""A pytree of arrays whose first axis is the example; one array for every family of this module."""

Units = Literal["pixels", "normalized"]


def _unconstrained(params: Params, images: Array) -> Params:
    del images
    return params


def _zeros(shape: tuple[int, ...], images: Array) -> Array:
    """The identity's parameters, float32 or wider: in 16 bits small steps vanish and rounding exceeds a ball."""
    return jnp.zeros(shape, jnp.promote_types(images.dtype, jnp.float32))


class Perturbation(NamedTuple):
    """A family of image perturbations.

    Attributes:
        init: ``images -> params``: the identity's parameters, zeros, first axis the example; preferably float32 or
            wider for images of any type, as in the families of this module.
        apply: ``(params, images) -> images`` of the same shape; ``apply(init(images), images)`` equals `images`.
        pullback: ``(image_gradients, images) -> gradients`` with respect to the parameters at the identity, in
            closed form; None derives it from `apply`.
        constrain: ``(params, images) -> params``: the nearest parameters with valid images.
        field: ``(params, images) -> flow`` in pixels, for families that move pixels; None for the others.
        unit: the unit of the parameters, for reports: ``"pixels"`` for displacements, ``"image"`` for differences of
            pixel values, otherwise in words.
        unbounded: for a family that bounds its own perturbations, the same family without the bound; else None.
    """

    init: Callable[[Array], Params]
    apply: Callable[[Params, Array], Array]
    pullback: Callable[[Array, Array], Params] | None = None
    constrain: Callable[[Params, Array], Params] = _unconstrained
    field: Callable[[Params, Array], Array] | None = None
    unit: str = "parameters"
    unbounded: Perturbation | None = None


def pull_back(
    perturbation: Perturbation,
    image_gradients: Float[Array, "n *space c"],
    images: Float[Array, "n *space c"],
) -> Params:
    """Turns gradients with respect to images into gradients with respect to a family's parameters at the identity.

    With it, several families share one pass through the model.

    Args:
        perturbation: the family.
        image_gradients: gradients of one loss per example with respect to `images`.
        images: where the gradients were taken, any range.

    Returns:
        The gradients, a pytree like ``perturbation.init(images)``.

    Raises:
        ValueError: the two arrays differ in shape.

    Example:
        >>> import jax.numpy as jnp
        >>> image = jnp.array([0.0, 1.0, 4.0]).reshape(1, 1, 3, 1)
        >>> pull_back(flow(), jnp.ones_like(image), image)[0, 0, :, 1].tolist()
        [1.0, 3.0, 0.0]
    """
    images = _checks.images(images)
    perturbation = _checks.instance("perturbation", perturbation, Perturbation, "deformreg.flow()")
    image_gradients = _checks.images(image_gradients, "image_gradients")
    if image_gradients.shape != images.shape:
        raise ValueError(f"image_gradients must have the images' shape {images.shape}, got {image_gradients.shape}")
    if perturbation.pullback is not None:
        return perturbation.pullback(image_gradients, images)
    perturbed, vjp = jax.vjp(
        lambda params: perturbation.apply(params, images), aligned(perturbation.init(images), images)
    )
    return vjp(image_gradients.astype(perturbed.dtype))[0]


def additive(*, image_range: tuple[float, float] | None = None) -> Perturbation:
    """Adds a value to every pixel and channel: the classic adversarial perturbation.

    Args:
        image_range: the range of ``images + params`` after `constrain`, which attacks call after every step; None for
            no range.

    Returns:
        The family; parameters in the images' shape and unit.

    Raises:
        ValueError: the range is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> family = additive(image_range=(0.0, 1.0))
        >>> image = jnp.full((1, 1, 1, 1), 0.75)
        >>> family.constrain(jnp.full((1, 1, 1, 1), 0.5), image).item()
        0.25
    """
    if image_range is not None:
        image_range = _checks.image_range(image_range)

    def constrain(params: Array, images: Array) -> Array:
        if image_range is None:
            return params
        # Clips the parameters: a clipped sum minus the images could leave a ball by rounding.
        return jnp.clip(params, image_range[0] - images, image_range[1] - images)

    return Perturbation(
        init=lambda images: _zeros(images.shape, images),
        apply=lambda params, images: images + params.astype(images.dtype),
        pullback=lambda image_gradients, images: image_gradients,
        constrain=constrain,
        unit="image",
    )


def flow(
    *, boundary: Boundary = "edge", units: Units = "pixels", within: float | None = None, order: Order = 1
) -> Perturbation:
    """Moves every pixel independently: the paper's adversarial deformation.

    The gradient at the zero flow has a closed form: the image gradient times the images' forward differences (with
    ``order=3`` their central differences), summed over the channels. It needs no warp, no gather and no scatter.

    Args:
        boundary: what lies outside the image, see `deformreg.warp`.
        units: ``"pixels"``, last axis (dy, dx), for volumes (dz, dy, dx); or ``"normalized"``, PyTorch's [-1, 1] units,
            last axis (x, y) or (x, y, z).
        within: an upper bound on every component, in pixels for either `units`, such as the radius of an attack's
            ball. Below two pixels the warp is faster, see `deformreg.warp`.
        order: of the interpolation: 1 for linear, 3 for cubic, which is smooth, see `deformreg.warp`.

    Returns:
        The family; parameters float[n, h, w, 2] in `units`, for signals float[n, t, 1], for volumes
        float[n, d, h, w, 3].

    Raises:
        TypeError: `within` is not a number.
        ValueError: unknown `boundary`, `units` or `order`, or `within` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> image = jnp.array([0.0, 1.0, 4.0]).reshape(1, 1, 3, 1)
        >>> family = flow()
        >>> family.apply(family.init(image) + 1.0, image).ravel().tolist()
        [1.0, 4.0, 4.0]
    """
    _checks.choice("boundary", boundary, get_args(Boundary))
    _checks.choice("units", units, get_args(Units))
    interpolation_of(order)

    def in_pixels(params: Array) -> Array:
        return params if units == "pixels" else fields.pixels_from_normalized(params)

    def pullback(image_gradients: Array, images: Array) -> Array:
        slopes = (forward_differences if order == 1 else central_differences)(images, boundary=boundary)
        gradient = jnp.stack([jnp.sum(image_gradients * slope, axis=-1) for slope in slopes], axis=-1)
        if units == "pixels":
            return gradient
        # In (x, y) order. The scales of a signal's or volume's gradient likewise.
        scales = jnp.array(fields.pixels_per_unit(images.shape[1:-1])[::-1], gradient.dtype)
        return gradient[..., ::-1] * scales.reshape((1,) * (gradient.ndim - 1) + scales.shape)

    return Perturbation(
        init=lambda images: _zeros(_checks.flow_shape(images.shape), images),
        apply=lambda params, images: warp(images, in_pixels(params), boundary=boundary, within=within, order=order),
        pullback=pullback,
        field=lambda params, images: in_pixels(params),
        unit=units,
        unbounded=None if within is None else flow(boundary=boundary, units=units, order=order),
    )


def affine(
    *,
    parameters: tuple[str, ...] = ("rotation", "dy", "dx"),
    boundary: Boundary = "edge",
) -> Perturbation:
    """Moves all pixels of an image by one affine map about its centre. It does not take signals or volumes.

    Args:
        parameters: the free ones of `deformreg.fields.AFFINE_PARAMETERS`, in this order; the others stay zero.
        boundary: what lies outside the image, see `deformreg.warp`.

    Returns:
        The family; parameters float[n, len(parameters)]: radians, pixels, log scales, pixels per pixel.

    Raises:
        ValueError: an unknown, repeated or missing parameter name, or an unknown `boundary`.

    Example:
        >>> import jax.numpy as jnp
        >>> image = jnp.arange(9.0).reshape(1, 3, 3, 1)
        >>> quarter_turn = jnp.array([[jnp.pi / 2]])
        >>> jnp.round(affine(parameters=("rotation",)).apply(quarter_turn, image)[0, 0, :, 0]).tolist()
        [2.0, 5.0, 8.0]
    """
    _checks.choice("boundary", boundary, get_args(Boundary))
    for name in parameters:
        _checks.choice("parameters", name, fields.AFFINE_PARAMETERS)
    if not parameters or len(set(parameters)) != len(parameters):
        raise ValueError(f"parameters must be one or more different names, got {parameters}")

    def init(images: Array) -> Array:
        if images.ndim != 4:
            raise ValueError(f"affine() moves images [n, h, w, c] only, got shape {images.shape}")
        return _zeros((images.shape[0], len(parameters)), images)

    def field(params: Array, images: Array) -> Array:
        # Positions are computed in float32 at least: a 16-bit type cannot hold them.
        params = params.astype(jnp.promote_types(params.dtype, jnp.float32))
        given = {name: params[:, column] for column, name in enumerate(parameters)}
        zeros = jnp.zeros_like(params[:, 0])
        full = jnp.stack([given.get(name, zeros) for name in fields.AFFINE_PARAMETERS], axis=1)
        return fields.affine_flow(full, images.shape[1], images.shape[2])

    return Perturbation(
        init=init,
        apply=lambda params, images: warp(images, field(params, images), boundary=boundary),
        field=field,
        unit="pixels" if set(parameters) <= {"dy", "dx"} else "parameters",
    )


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
        return _zeros((images.shape[0], *coarse, len(coarse)), images)

    def field(params: Array, images: Array) -> Array:
        return fields.smooth(fields.upsample(params, *images.shape[1:-1]), sigma)

    return Perturbation(
        init=init,
        apply=lambda params, images: warp(images, field(params, images), boundary=boundary),
        field=field,
        unit="pixels",
    )
