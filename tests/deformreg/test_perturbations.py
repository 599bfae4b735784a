"""Properties of single families; laws/ has the laws of all of them."""

import jax
import numpy as np
import pytest

from deformreg import additive, affine, fields, flow, lowres_flow, warp

pytestmark = pytest.mark.usefixtures("strict_promotion")

IMAGES = np.random.default_rng(0).uniform(size=(2, 6, 9, 2)).astype(np.float32)


def test_an_additive_range_bounds_the_sum_not_the_parameters():
    family = additive(image_range=(0.25, 0.75))
    params = np.random.default_rng(1).normal(size=IMAGES.shape).astype(np.float32)
    constrained = family.constrain(params, IMAGES)
    np.testing.assert_allclose(family.apply(constrained, IMAGES), np.clip(IMAGES + params, 0.25, 0.75), atol=1e-6)
    np.testing.assert_array_equal(additive().constrain(params, IMAGES), params)


@pytest.mark.parametrize("family", [additive(), flow(), affine(), lowres_flow(2)])
def test_parameters_for_sixteen_bit_images_are_float32(family):
    assert {family.init(IMAGES.astype(dtype)).dtype for dtype in ("bfloat16", "float16")} == {np.dtype("float32")}


def test_flow_units_differ_by_the_converter_alone():
    normalized = np.random.default_rng(1).normal(scale=0.2, size=(2, 6, 9, 2)).astype(np.float32)
    moved = flow(units="normalized", boundary="zeros").apply(normalized, IMAGES)
    expected = warp(IMAGES, fields.pixels_from_normalized(normalized), boundary="zeros")
    np.testing.assert_array_equal(moved, expected)


def test_a_promise_of_short_flows_is_left_out_of_the_unbounded_family():
    params, family = np.full((2, 6, 9, 2), 3.0, np.float32), flow(boundary="zeros", within=0.5)
    moved = flow(boundary="zeros").apply(params, IMAGES)
    np.testing.assert_array_equal(family.unbounded.apply(params, IMAGES), moved)
    assert (family.apply(params, IMAGES) != moved).any()
    assert flow().unbounded is None


def test_affine_parameters_go_to_their_columns():
    params = np.array([[2.0, 0.3], [-1.0, -0.2]], np.float32)
    full = np.zeros((2, 6), np.float32)
    full[:, fields.AFFINE_PARAMETERS.index("dx")] = params[:, 0]
    full[:, fields.AFFINE_PARAMETERS.index("rotation")] = params[:, 1]
    field = affine(parameters=("dx", "rotation")).field(params, IMAGES)
    np.testing.assert_allclose(field, fields.affine_flow(full, 6, 9), rtol=1e-6)


def test_a_low_resolution_field_is_upsampled_then_smoothed():
    family = lowres_flow(4, sigma=0.75)
    params = np.random.default_rng(1).normal(size=family.init(IMAGES).shape).astype(np.float32)
    assert params.shape == (2, 2, 3, 2)
    field = jax.jit(family.field)(params, IMAGES)
    np.testing.assert_allclose(field, fields.smooth(fields.upsample(params, 6, 9), 0.75), atol=1e-6)
    assert np.abs(field).max() <= np.abs(params).max() * (1 + 1e-6)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: additive(image_range=(1.0, 0.0)), ValueError, ["image_range", "low < high", "(1.0, 0.0)"]),
        (lambda: flow(boundary="wrap"), ValueError, ["boundary", "'zeros', 'edge', 'reflect'", "'wrap'"]),
        (lambda: flow(units="metres"), ValueError, ["units", "'pixels', 'normalized'", "'metres'"]),
        (lambda: affine(boundary="wrap"), ValueError, ["boundary", "'wrap'"]),
        (lambda: affine(parameters=("spin",)), ValueError, ["parameters", "'rotation'", "'spin'"]),
        (lambda: affine(parameters=()), ValueError, ["parameters", "one or more", "()"]),
        (lambda: affine(parameters=("dx", "dx")), ValueError, ["parameters", "different", "dx"]),
        (lambda: lowres_flow(0), ValueError, ["stride", "at least 1", "0"]),
        (lambda: lowres_flow(2.0), TypeError, ["stride", "integer", "2.0"]),
        (lambda: lowres_flow(2, sigma=-1.0), ValueError, ["sigma", "at least 0", "-1.0"]),
        (lambda: lowres_flow(2, boundary="wrap"), ValueError, ["boundary", "'wrap'"]),
    ],
)
def test_what_does_not_fit_is_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
