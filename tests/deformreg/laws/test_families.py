"""Laws of every perturbation family, on images, signals and volumes: those of the library, and two of a user."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg import (
    Perturbation,
    additive,
    affine,
    diffeomorphic,
    finite_difference_penalty,
    flow,
    forward_over_reverse_penalty,
    gradient_penalty,
    lowres_flow,
    perspective,
    thin_plate_spline,
    warp,
)
from deformreg.fields import AFFINE_PARAMETERS
from deformreg.penalties import squared_norm
from deformreg.testing import check_family

pytestmark = pytest.mark.usefixtures("strict_promotion")


def column(values):
    return values[:, None, None, None]


brightness = Perturbation(
    init=lambda images: jnp.zeros(images.shape[0], images.dtype),
    apply=lambda params, images: images + column(params),
)

shift_and_contrast = Perturbation(
    init=lambda images: {
        "contrast": jnp.zeros(images.shape[0], images.dtype),
        "shift": jnp.zeros((images.shape[0], 2), images.dtype),
    },
    apply=lambda params, images: warp(
        images * (1 + column(params["contrast"])),
        jnp.broadcast_to(params["shift"][:, None, None], (*images.shape[:3], 2)),
    ),
)

FAMILIES = {
    "additive": additive(),
    "additive in a range": additive(image_range=(0.0, 1.0)),
    "flow": flow(),
    "flow zeros": flow(boundary="zeros"),
    "flow reflect normalized": flow(boundary="reflect", units="normalized"),
    "cubic flow": flow(boundary="reflect", order=3),
    "affine": affine(),
    "affine full zeros": affine(parameters=AFFINE_PARAMETERS, boundary="zeros"),
    "low resolution": lowres_flow(2, boundary="reflect"),
    "elastic": lowres_flow(1, sigma=0.5),
    "perspective": perspective(),
    "thin-plate spline": thin_plate_spline(2),
    "diffeomorphic": diffeomorphic(2, num_squarings=3, boundary="zeros"),
    "brightness": brightness,
    "shift and contrast": shift_and_contrast,
}
SLOW = ("additive in a range", "cubic flow", "affine full zeros", "elastic", "perspective", "thin-plate spline",
        "diffeomorphic")  # fmt: skip
OF_ANY_RANK = ("additive", "flow", "flow reflect normalized", "cubic flow", "low resolution", "elastic",
               "thin-plate spline", "diffeomorphic")  # fmt: skip


def random_images(*shape):
    return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


# 24 numbers per example.
IMAGES, SIGNALS, VOLUMES = random_images(8, 4, 3, 2), random_images(8, 6, 4), random_images(8, 2, 4, 3, 1)
SHAPE = IMAGES.shape
families = pytest.mark.parametrize(
    ("family", "images"),
    [
        *(
            pytest.param(family, IMAGES, id=name, marks=[pytest.mark.slow] * (name in SLOW))
            for name, family in FAMILIES.items()
        ),
        pytest.param(flow(), SIGNALS, id="flow of signals"),
        *(
            pytest.param(FAMILIES[name], images, marks=pytest.mark.slow, id=f"{name} of {kind}")
            for kind, images in (("signals", SIGNALS), ("volumes", VOLUMES))
            for name in OF_ANY_RANK
            if (name, kind) not in (("flow", "signals"), ("flow reflect normalized", "volumes"))
        ),
    ],
)

KERNEL = (np.random.default_rng(1).normal(size=(24, 3)) / 2).astype(np.float32)


def loss_fn(images, kernel=KERNEL):
    """A curved loss; the loss of an example depends on its own image alone."""
    logits = jnp.tanh(images.reshape(images.shape[0], -1) @ kernel.astype(images.dtype))
    return jnp.sum(logits**2, axis=1) - logits[:, 0]


@cache
def compiled_penalty(family, shape):
    """Penalties and losses of float32 images, traced once for all tests."""
    chex.clear_trace_counter()
    return jax.jit(chex.assert_max_traces(lambda images: gradient_penalty(loss_fn, images, family), n=1))


@families
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])  # in float32: `check_family` below
def test_the_identity_returns_the_images_bit_for_bit(family, images, dtype):
    images = images.astype(dtype)
    params = family.init(images)
    same = jax.jit(family.apply)(params, images)
    assert same.dtype == images.dtype
    np.testing.assert_array_equal(same, images)


@families
def test_the_laws_that_users_check_hold(family, images):
    check_family(family, images)


@families
def test_the_penalty_is_the_squared_gradient_of_loss_after_apply(family, images, cpus):
    """Example by example, in any batch, compiled or not, on one device or eight."""

    def alone(image):
        def loss(params):
            return loss_fn(family.apply(params, image[None]))[0]

        return squared_norm(jax.grad(loss)(family.init(image[None])))[0]

    expected = np.array([jax.jit(alone)(image) for image in images])
    assert np.all(expected > 1e-4)
    penalty = compiled_penalty(family, images.shape)
    penalty(np.zeros_like(images))
    penalties, losses = penalty(images)
    np.testing.assert_allclose(penalties, expected, rtol=2e-5)
    np.testing.assert_allclose(losses, loss_fn(images), rtol=1e-5)
    if images is IMAGES:
        np.testing.assert_allclose(gradient_penalty(loss_fn, images, family)[0], expected, rtol=2e-5)
        if family in (FAMILIES["flow"], FAMILIES["affine"]):
            apart = jax.pmap(lambda image: gradient_penalty(loss_fn, image, family)[0], devices=cpus)(images[:, None])
            np.testing.assert_allclose(apart[:, 0], expected, rtol=2e-5)


@families
def test_second_order_gradients_are_finite_on_constant_images(family, images):
    @jax.jit
    def gradients(images, kernel):
        def total(images, kernel, penalty):
            return jnp.sum(penalty(lambda images: loss_fn(images, kernel), images, family)[0])

        return [
            jax.grad(total, (0, 1))(images, kernel, penalty)
            for penalty in (gradient_penalty, finite_difference_penalty, forward_over_reverse_penalty)
        ]

    for constant in (0.0, 0.5):
        found = gradients(np.full(images.shape, constant, np.float32), KERNEL)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    exact, _, other = gradients(images, KERNEL)
    assert all(np.any(leaf) for leaf in exact)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), other, exact)


@families
def test_sixteen_bit_images_give_float32_penalties(family, images):
    half = jax.jit(lambda images: gradient_penalty(loss_fn, images, family)[0])(images.astype(jnp.bfloat16))
    assert half.dtype == np.float32
    full = np.asarray(compiled_penalty(family, images.shape)(images)[0])
    np.testing.assert_allclose(half, full, rtol=0.3, atol=0.05 * full.max())


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES.values() if f.field], ids=[n for n, f in FAMILIES.items() if f.field]
)
def test_fields_say_where_apply_reads(family):
    params = jax.tree.map(lambda leaf: leaf + 0.25, family.init(IMAGES))
    field = family.field(params, IMAGES)
    assert field.shape == (*SHAPE[:3], 2)
    moved = family.apply(params, IMAGES)
    assert any(
        np.allclose(warp(IMAGES, field, boundary=boundary, order=order), moved, atol=1e-6)
        for boundary in ("zeros", "edge", "reflect")
        for order in (1, 3)
    )
