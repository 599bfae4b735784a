"""Properties of single families; laws/ has the laws of all of them."""

import itertools

import jax
import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator

from deformreg import (
    additive,
    affine,
    diffeomorphic,
    fields,
    flow,
    lowres_flow,
    perspective,
    thin_plate_spline,
    warp,
)

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


def test_a_perspective_map_is_the_homography_of_its_corners():
    params = np.random.default_rng(1).uniform(-1, 1, (2, 4, 2)).astype(np.float32)
    field = perspective().field(params, IMAGES)
    grid = np.stack(np.mgrid[:6, :9], axis=-1).astype(float)
    for displacements, found in zip(params, field, strict=True):
        corners = np.array([[0, 0], [0, 8], [5, 8], [5, 0]], float)
        rows, right = [], []
        for (y, x), (to_y, to_x) in zip(corners, corners + displacements, strict=True):
            rows += [[y, x, 1, 0, 0, 0, -y * to_y, -x * to_y], [0, 0, 0, y, x, 1, -y * to_x, -x * to_x]]
            right += [to_y, to_x]
        matrix = np.append(np.linalg.solve(rows, right), 1).reshape(3, 3)
        mapped = np.concatenate([grid, np.ones((6, 9, 1))], axis=-1) @ matrix.T
        np.testing.assert_allclose(found, mapped[..., :2] / mapped[..., 2:] - grid, atol=2e-5)


@pytest.mark.parametrize(("shape", "kernel"), [((9,), "cubic"), ((6, 9), "thin_plate_spline"), ((3, 4, 5), "linear")])
def test_a_thin_plate_spline_is_that_of_scipy(shape, kernel):
    images = np.zeros((1, *shape, 1), np.float32)
    family = thin_plate_spline(3)
    params = np.random.default_rng(1).normal(size=family.init(images).shape).astype(np.float32)
    controls = np.array(list(itertools.product(*(np.linspace(0, size - 1, 3) for size in shape))))
    spline = RBFInterpolator(controls, params.reshape(len(controls), -1), kernel=kernel, degree=1)
    pixels = np.array(list(itertools.product(*map(range, shape))), float)
    expected = spline(pixels).reshape(1, *shape, len(shape))
    np.testing.assert_allclose(family.field(params, images), expected, atol=1e-4)


@pytest.mark.parametrize(("points", "least", "most"), [(2, 1.0, 1.1), (3, 1.3, 1.5), (4, 1.5, 2.0), (5, 1.5, 2.0)])
def test_a_thin_plate_spline_exceeds_its_control_points_by_a_known_factor(points, least, most):
    images = np.zeros((points**2, 28, 28, 1), np.float32)
    alone = np.eye(points**2, dtype=np.float32).reshape(-1, points, points, 1) * np.ones(2, np.float32)
    responses = np.abs(thin_plate_spline(points).field(alone, images)[..., 0])
    assert least - 1e-3 <= responses.sum(axis=0).max() <= most


def test_a_diffeomorphic_flow_is_undone_by_the_opposite_velocity():
    images = np.zeros((1, 24, 20, 1), np.float32)
    y, x = np.mgrid[:24, :20]
    velocity = 2 * np.stack([np.sin(x / 3) * np.sin(y / 4), np.cos(y / 4)], axis=-1)[None].astype(np.float32)
    family = diffeomorphic(sigma=0.0, num_squarings=7)
    there, back = (jax.jit(family.field)(sign * velocity, images) for sign in (1, -1))
    returned = there + warp(back, there)  # from the place that the first flow reads, along the second
    assert np.abs(there).max() > 1.5
    assert np.abs(returned[:, 4:-4, 4:-4]).max() < 0.1
    assert fields.folds(there).tolist() == [0]
    assert fields.folds(4 * velocity).item() > 0  # as a flow it folds


def test_the_exponential_of_a_linear_velocity_is_known():
    """The velocity a (x - c) moves a point by (e^a - 1)(x - c)."""
    signal = np.zeros((1, 41, 1), np.float32)
    offset = np.arange(41, dtype=np.float32).reshape(1, 41, 1) - 20
    field = diffeomorphic(sigma=0.0, num_squarings=8).field(0.3 * offset, signal)
    inside = slice(8, -8)
    np.testing.assert_allclose(field[:, inside], np.expm1(0.3) * offset[:, inside], rtol=0.01, atol=1e-3)


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
        (lambda: thin_plate_spline(1), ValueError, ["points", "at least 2", "1"]),
        (lambda: thin_plate_spline().init(IMAGES[:, :1]), ValueError, ["2 pixels", "(2, 1, 9, 2)"]),
        (lambda: perspective().init(IMAGES[:, 0]), ValueError, ["perspective()", "[n, h, w, c]", "(2, 9, 2)"]),
        (lambda: perspective(order=2), ValueError, ["order", "1 (linear)", "2"]),
        (lambda: diffeomorphic(num_squarings=-1), ValueError, ["num_squarings", "at least 0", "-1"]),
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
