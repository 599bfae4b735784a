"""Units, generators, smoothing and norms of flow fields."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from deformreg import fields, warp

pytestmark = pytest.mark.usefixtures("strict_promotion")


def random_flow(shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, 2)).astype(np.float32)


def affine(height, width, **values):
    params = np.zeros((1, 6), np.float32)
    for name, value in values.items():
        params[0, fields.AFFINE_PARAMETERS.index(name)] = value
    return np.asarray(fields.affine_flow(params, height, width))


def matrix_flow(height, width, linear, shift=(0.0, 0.0)):
    """The flow of ``p -> linear p + shift`` about the centre, in float64."""
    grid = np.stack(np.mgrid[:height, :width], axis=-1) - np.array([height - 1, width - 1]) / 2
    return (grid @ np.array(linear).T + shift - grid)[None]


def test_units_round_trip_on_images_that_are_not_square():
    flow = random_flow((2, 5, 9))
    np.testing.assert_allclose(fields.normalized_from_pixels(fields.pixels_from_normalized(flow)), flow, rtol=1e-6)
    np.testing.assert_allclose(fields.pixels_from_normalized(fields.normalized_from_pixels(flow)), flow, rtol=1e-6)


def test_a_normalized_unit_is_half_the_distance_of_the_outer_pixel_centres():
    corner_to_corner = np.broadcast_to(np.array([2.0, -2.0], np.float32), (1, 28, 20, 2))  # (x, y)
    pixels = fields.pixels_from_normalized(corner_to_corner)
    assert pixels[0, 3, 4].tolist() == [-27.0, 19.0]  # (dy, dx)


def test_an_image_one_pixel_wide_has_no_normalized_unit():
    assert fields.pixels_from_normalized(np.ones((1, 3, 1, 2), np.float32))[0, 0, 0].tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"flow must be at least 2 pixels long along every axis, got \(1, 3, 1, 2\)"):
        fields.normalized_from_pixels(np.ones((1, 3, 1, 2), np.float32))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_zero_parameters_give_exactly_the_zero_flow(dtype):
    flow = fields.affine_flow(jnp.zeros((2, 6), dtype), 6, 9)
    assert flow.dtype == dtype
    assert not np.asarray(flow).any()


@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_quarter_turns_equal_rot90(turns):
    image = np.random.default_rng(0).uniform(size=(1, 6, 6, 2)).astype(np.float32)
    flow = affine(6, 6, rotation=turns * np.pi / 2)
    np.testing.assert_allclose(warp(image, flow), np.rot90(image, turns, axes=(1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    ("values", "linear", "shift"),
    [
        ({"dy": 1.5, "dx": -2.0}, [[1, 0], [0, 1]], (1.5, -2.0)),
        ({"log_scale_y": np.log(2.0)}, [[2, 0], [0, 1]], (0, 0)),
        ({"log_scale_x": np.log(0.5)}, [[1, 0], [0, 0.5]], (0, 0)),
        ({"shear": 0.3}, [[1, 0], [0.3, 1]], (0, 0)),
        # R takes x towards y: in (y, x) order, y gains sin * x.
        ({"rotation": 0.4}, [[np.cos(0.4), np.sin(0.4)], [-np.sin(0.4), np.cos(0.4)]], (0, 0)),
    ],
)
def test_every_affine_parameter_has_its_matrix(values, linear, shift):
    np.testing.assert_allclose(affine(5, 8, **values), matrix_flow(5, 8, linear, shift), atol=1e-5)


def test_affine_parameters_compose_as_rotation_scale_shear_then_shift():
    angle, log_y, log_x, shear = 0.7, 0.2, -0.3, 0.4
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    linear = rotation @ np.diag(np.exp([log_y, log_x])) @ np.array([[1, 0], [shear, 1]])
    flow = affine(7, 4, rotation=angle, dy=1, dx=2, log_scale_y=log_y, log_scale_x=log_x, shear=shear)
    np.testing.assert_allclose(flow, matrix_flow(7, 4, linear, (1, 2)), atol=1e-5)


def test_upsampling_keeps_constants_range_and_length():
    constant = np.broadcast_to(np.array([2.0, -3.0], np.float32), (1, 3, 4, 2))
    np.testing.assert_allclose(
        fields.upsample(constant, 11, 13), np.broadcast_to([2.0, -3.0], (1, 11, 13, 2)), rtol=1e-6
    )
    coarse = random_flow((2, 3, 4))
    full = np.asarray(fields.upsample(coarse, 11, 13))
    assert full.min() >= coarse.min() - 1e-6
    assert full.max() <= coarse.max() + 1e-6
    assert full.std() > 0.3
    np.testing.assert_allclose(fields.upsample(coarse, 3, 4), coarse, atol=1e-6)


def test_upsampling_is_linear_between_the_nodes():
    # The two nodes lie at pixels 0.5 and 2.5 of four: the centres of the halves.
    coarse = np.zeros((1, 1, 2, 2), np.float32)
    coarse[0, 0, 1] = 4.0
    full = fields.upsample(coarse, 1, 4)
    assert full[0, 0, :, 0].tolist() == [0.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize("sigma", [0.75, 1.0, 2.0])
def test_smoothing_matches_scipy(sigma):
    flow = random_flow((2, 7, 10))
    expected = ndimage.gaussian_filter(flow.astype(float), sigma, mode="nearest", truncate=4, axes=(1, 2))
    np.testing.assert_allclose(fields.smooth(flow, sigma), expected, atol=2e-6)


def test_smoothing_keeps_constants_shrinks_peaks_and_does_nothing_at_zero():
    flow = random_flow((1, 6, 6))
    np.testing.assert_array_equal(fields.smooth(flow, 0.0), flow)
    np.testing.assert_allclose(fields.smooth(np.full((1, 6, 6, 2), 3, np.float32), 1.5), 3.0, rtol=1e-6)
    assert np.abs(fields.smooth(flow, 1.0)).max() < np.abs(flow).max()


def test_smoothing_works_inside_jit():
    flow = random_flow((1, 6, 6))
    np.testing.assert_allclose(jax.jit(lambda f: fields.smooth(f, 1.0))(flow), fields.smooth(flow, 1.0), atol=1e-6)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 1e-4])
def test_total_variation_matches_a_loop(diagonal, epsilon):
    flow = random_flow((2, 4, 5))
    steps = [(1, 1), (1, -1), (-1, 1), (-1, -1)] if diagonal else [(1, 0), (-1, 0), (0, 1), (0, -1)]
    expected = np.zeros(2)
    for n, i, j, (down, right) in itertools.product(range(2), range(4), range(5), steps):
        neighbour = flow[n, min(max(i + down, 0), 3), min(max(j + right, 0), 4)]
        expected[n] += np.sqrt(np.sum((flow[n, i, j].astype(float) - neighbour) ** 2) + epsilon)
    np.testing.assert_allclose(fields.total_variation(flow, diagonal=diagonal, epsilon=epsilon), expected, rtol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
def test_total_variation_of_the_zero_flow_has_a_zero_gradient(epsilon):
    gradient = jax.grad(lambda flow: fields.total_variation(flow, epsilon=epsilon).sum())(np.zeros((1, 3, 3, 2), "f4"))
    np.testing.assert_array_equal(gradient, np.zeros((1, 3, 3, 2)))


def test_norms_match_numpy():
    flow = random_flow((3, 4, 5))
    lengths = np.sqrt((flow.astype(float) ** 2).sum(-1))
    np.testing.assert_array_equal(fields.max_component(flow), np.abs(flow).max((1, 2, 3)))
    np.testing.assert_allclose(fields.max_displacement(flow), lengths.max((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(fields.mean_displacement(flow), lengths.mean((1, 2)), rtol=1e-6)


def test_norms_of_half_precision_neither_overflow_nor_vanish():
    for size in (300.0, 1e-4):
        far = jnp.full((1, 2, 3, 2), size, jnp.float16)
        for norm in (fields.max_displacement, fields.mean_displacement):
            np.testing.assert_allclose(norm(far), size * 2**0.5, rtol=1e-2)
    step = jnp.zeros((1, 1, 2, 2), jnp.float16).at[0, 0, 1, 0].set(300.0)
    np.testing.assert_allclose(fields.total_variation(step), 600.0, rtol=1e-3)


def test_the_displacement_norms_have_finite_gradients_at_zero():
    for norm in (fields.max_displacement, fields.mean_displacement):
        assert np.isfinite(jax.grad(lambda f, norm=norm: norm(f).sum())(np.zeros((1, 2, 2, 2), np.float32))).all()


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 3)])
def test_folds_are_cells_with_a_corner_that_is_turned_over(shape):
    axes = len(shape)
    flow = np.random.default_rng(0).normal(scale=2.0 / 2**axes, size=(2, *shape, axes)).astype(np.float32)
    expected = []
    for each in flow.astype(np.float64):
        count = 0
        for cell in itertools.product(*(range(size - 1) for size in shape)):
            corners = itertools.product((0, 1), repeat=axes)
            determinants = []
            for corner in corners:
                ends = [[np.array(corner), np.array(corner)] for _ in range(axes)]
                for axis in range(axes):
                    ends[axis][0][axis], ends[axis][1][axis] = 0, 1
                rows = [each[tuple(cell + high)] - each[tuple(cell + low)] for low, high in ends]
                determinants.append(np.linalg.det(np.array(rows) + np.eye(axes)))
            count += min(determinants) <= 0
        expected.append(count)
    assert 0 < max(expected) < np.prod(np.subtract(shape, 1))
    assert fields.folds(flow).tolist() == expected


FLOW = np.zeros((1, 4, 5, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: fields.pixels_from_normalized(FLOW[0]), ValueError, ["flow", "[n, h, w, 2]", "(4, 5, 2)"]),
        (lambda: fields.normalized_from_pixels(FLOW[..., :1]), ValueError, ["flow", "[n, h, w, 2]", "(1, 4, 5, 1)"]),
        (lambda: fields.affine_flow(FLOW[0, :, :, 0], 4, 4), ValueError, ["params", "[n, 6]", "rotation", "(4, 5)"]),
        (lambda: fields.affine_flow(np.zeros((1, 6), "f4"), 0, 4), ValueError, ["height", "at least 1", "0"]),
        (lambda: fields.affine_flow(np.zeros((1, 6), "f4"), 4, 2.5), TypeError, ["width", "integer", "2.5"]),
        (lambda: fields.affine_flow(np.zeros((1, 6), int), 4, 4), TypeError, ["params", "floating", "int"]),
        (lambda: fields.upsample(FLOW, 8, 0), ValueError, ["sizes", "at least 1", "0"]),
        (lambda: fields.upsample(FLOW, True, 8), TypeError, ["sizes", "integer", "True"]),
        (lambda: fields.upsample(FLOW, 8), ValueError, ["sizes", "one per axis", "(8,)"]),
        (lambda: fields.smooth(FLOW, -1.0), ValueError, ["sigma", "at least 0", "-1.0"]),
        (lambda: fields.smooth(FLOW, float("nan")), ValueError, ["sigma", "nan"]),
        (lambda: fields.total_variation(FLOW, epsilon=-1.0), ValueError, ["epsilon", "at least 0", "-1.0"]),
        (lambda: fields.max_component(FLOW[0]), ValueError, ["flow", "(4, 5, 2)"]),
        (lambda: fields.max_displacement(FLOW.astype(int)), TypeError, ["flow", "int", "floating"]),
        (lambda: fields.mean_displacement(FLOW[..., 0]), ValueError, ["flow", "(1, 4, 5)"]),
    ],
)
def test_what_does_not_fit_is_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
