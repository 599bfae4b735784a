"""The warp against independent implementations, and its derivatives at and between the grid points."""

import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from deformreg import _cells, warp
from deformreg.warping import central_differences, forward_differences

pytestmark = pytest.mark.usefixtures("strict_promotion")

BOUNDARIES = ("zeros", "edge", "reflect")
SHAPES = ((2, 5, 7, 3), (1, 6, 1, 2), (3, 1, 4, 1), (2, 1, 1, 1))
SIGNALS, VOLUMES = (2, 6, 3), (2, 3, 4, 5, 2)


def of_all_ranks(images, signals, volumes):
    slow = [pytest.param(shape, marks=pytest.mark.slow) for shape in (signals, volumes)]
    return pytest.mark.parametrize("shape", [images, *slow], ids=["images", "signals", "volumes"])


compiled_warp = jax.jit(warp, static_argnames=("boundary", "within", "order"))


def random_images(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def flow_shape(shape):
    return (*shape[:-1], len(shape) - 2)


def random_flow(shape, scale=3.0, seed=1, dtype=np.float32):
    return np.random.default_rng(seed).normal(scale=scale, size=flow_shape(shape)).astype(dtype)


def away_from_kinks(shape, seed=2):
    """Displacements whose fractional part lies in [0.25, 0.75]."""
    rng = np.random.default_rng(seed)
    return rng.integers(-2, 3, flow_shape(shape)) + rng.uniform(0.25, 0.75, flow_shape(shape))


def read(image, *position, boundary):
    """The pixel at an integer position, from the definition of the boundary."""
    sizes = image.shape[:-1]
    if boundary == "zeros" and not all(0 <= index < size for index, size in zip(position, sizes, strict=True)):
        return np.zeros(image.shape[-1])

    def bounce(index, size):
        while boundary == "reflect" and size > 1 and not 0 <= index < size:
            index = -index if index < 0 else 2 * (size - 1) - index
        return min(max(index, 0), size - 1)

    return image[tuple(bounce(index, size) for index, size in zip(position, sizes, strict=True))]


def loop_warp(images, flow, boundary):
    images, flow = images.astype(np.float64), flow.astype(np.float64)
    out = np.zeros_like(images)
    for n, *pixel in itertools.product(*map(range, images.shape[:-1])):
        position = pixel + flow[(n, *pixel)]
        corner = np.floor(position).astype(int)
        for offset in itertools.product((0, 1), repeat=len(pixel)):
            shares = np.where(offset, position - corner, 1 - (position - corner))
            out[(n, *pixel)] += np.prod(shares) * read(images[n], *(corner + offset), boundary=boundary)
    return out


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_the_zero_flow_returns_the_images_bit_for_bit(boundary, dtype, float64):
    for shape, flow_dtype in ((SHAPES[0], dtype), (SHAPES[1], "float32"), (SHAPES[3], "bfloat16")):
        images = (random_images(shape) * 100).astype(dtype)
        warped = compiled_warp(images, np.zeros((*shape[:3], 2), flow_dtype), boundary=boundary)
        assert warped.dtype == images.dtype
        np.testing.assert_array_equal(warped, images)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", [*SHAPES, SIGNALS, VOLUMES])
def test_the_warp_matches_a_loop_in_float64(boundary, shape):
    images, flow = random_images(shape), random_flow(shape)
    warped = compiled_warp(images, flow, boundary=boundary)
    np.testing.assert_allclose(warped, loop_warp(images, flow, boundary), atol=3e-6)


@of_all_ranks((2, 9, 6, 2), (2, 9, 2), (2, 5, 3, 4, 2))
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_warp_matches_scipy(boundary, shape, float64):
    # SciPy's "constant" does not interpolate towards the zeros outside; its "grid-constant" does.
    mode = {"zeros": "grid-constant", "edge": "nearest", "reflect": "mirror"}[boundary]
    images, flow = random_images(shape, dtype=np.float64), random_flow(shape, scale=6.0, dtype=np.float64)
    warped = np.asarray(compiled_warp(images, flow, boundary=boundary))
    grid = np.stack(np.meshgrid(*map(np.arange, shape[1:-1]), indexing="ij"), axis=-1).astype(float)
    for n, c in itertools.product(range(2), range(2)):
        positions = np.moveaxis(grid + flow[n], -1, 0)
        expected = ndimage.map_coordinates(images[n, ..., c], positions, order=1, mode=mode)
        np.testing.assert_allclose(warped[n, ..., c], expected, atol=1e-12)


def keys(distance):
    """Keys's kernel with a = -1/2, from its two pieces."""
    distance = np.abs(distance)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def loop_cubic_warp(images, flow, boundary):
    images, flow = images.astype(np.float64), flow.astype(np.float64)
    out = np.zeros_like(images)
    for n, *pixel in itertools.product(*map(range, images.shape[:-1])):
        position = pixel + flow[(n, *pixel)]
        first = np.floor(position).astype(int) - 1
        for offset in itertools.product(range(4), repeat=len(pixel)):
            share = np.prod(keys(position - (first + offset)))
            out[(n, *pixel)] += share * read(images[n], *(first + offset), boundary=boundary)
    return out


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], SIGNALS, pytest.param(VOLUMES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_cubic_warp_matches_a_loop_in_float64(boundary, shape):
    images, flow = random_images(shape), random_flow(shape)
    warped = compiled_warp(images, flow, boundary=boundary, order=3)
    np.testing.assert_allclose(warped, loop_cubic_warp(images, flow, boundary), atol=1e-5)
    zero = compiled_warp(images * 100, 0 * flow, boundary=boundary, order=3)
    np.testing.assert_array_equal(zero, images * 100)


@pytest.mark.parametrize(("rank", "overshoot"), [(1, 0.125), (2, 0.28125), (3, 0.4765625)])
def test_the_cubic_warp_leaves_the_range_by_a_known_share(rank, overshoot):
    signs = functools.reduce(np.multiply.outer, [np.array([-1, 1, 1, -1])] * rank)
    image = np.pad((signs > 0).astype(np.float32), 2, mode="edge")[None, ..., None]
    warped = compiled_warp(image, np.full((*image.shape[:-1], rank), 0.5, np.float32), order=3)
    np.testing.assert_allclose(warped.max() - 1, overshoot, rtol=1e-5)


def test_the_cubic_warp_is_exact_on_quadratic_images(float64):
    y, x = np.mgrid[:8, :9].astype(float)
    flow = np.random.default_rng(0).uniform(-1, 1, (1, 8, 9, 2))

    def image(y, x):
        return (0.3 * y**2 - 0.7 * x * y + 0.2 * x**2 + y - 2)[None, ..., None]

    warped = compiled_warp(image(y, x), flow, order=3)
    expected = image(y + flow[0, ..., 0], x + flow[0, ..., 1])
    inside = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(warped[inside], expected[inside], atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 6, 1), pytest.param((1, 4, 5, 1), marks=pytest.mark.slow)])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_cubic_warp_has_no_kink_at_grid_points(boundary, shape, float64):
    images, step = random_images(shape, dtype=np.float64), 2.0**-20

    @jax.jit
    def derivative(direction):
        def function(flow):
            return warp(images, flow, boundary=boundary, order=3)

        return jax.jvp(function, (jnp.zeros_like(direction),), (direction,))[1]

    for axis, differences in enumerate(central_differences(images, boundary=boundary)):
        direction = np.zeros(flow_shape(shape))
        direction[..., axis] = 1
        np.testing.assert_allclose(derivative(direction), differences, atol=1e-12)
        for sign in (1, -1):
            moved = np.asarray(compiled_warp(images, sign * step * direction, boundary=boundary, order=3))
            np.testing.assert_allclose(sign * (moved - images) / step, differences, atol=1e-4)


@pytest.mark.parametrize(("dy", "dx"), [(0, 1), (1, 0), (-2, 3), (2, -1)])
def test_integer_flows_are_exact_shifts(dy, dx):
    images = random_images((1, 6, 8, 2))
    flow = np.broadcast_to(np.array([dy, dx], np.float32), (1, 6, 8, 2))
    warped = compiled_warp(images, flow, boundary="zeros")
    padded = np.pad(images, [(0, 0), (3, 3), (3, 3), (0, 0)])
    np.testing.assert_array_equal(warped, padded[:, 3 + dy : 9 + dy, 3 + dx : 11 + dx])


def test_sixteen_bit_flows_reach_every_pixel_of_a_wide_image():
    # bfloat16 cannot hold the position 399, only the displacement.
    images = np.arange(400, dtype=np.float32).reshape(1, 1, 400, 1)
    flow = np.broadcast_to(np.array([0, 3], jnp.bfloat16), (1, 1, 400, 2))
    warped = compiled_warp(images, flow)
    np.testing.assert_array_equal(np.ravel(warped), np.minimum(np.arange(400) + 3, 399))


@of_all_ranks((1, 4, 5, 1), (1, 6, 1), (1, 3, 4, 3, 1))
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_derivative_at_grid_points_is_the_one_from_above(boundary, shape, float64):
    images = random_images(shape, dtype=np.float64)
    step = 2.0**-20

    @jax.jit
    def derivative(direction):
        def function(flow):
            return warp(images, flow, boundary=boundary)

        return jax.jvp(function, (jnp.zeros_like(direction),), (direction,))[1]

    def quotient(displacement, step):
        return (np.asarray(compiled_warp(images, displacement * step, boundary=boundary)) - images) / step

    for axis, differences in enumerate(forward_differences(images, boundary=boundary)):
        direction = np.zeros(flow_shape(shape))
        direction[..., axis] = 1
        slopes = np.asarray(derivative(direction))
        np.testing.assert_allclose(slopes, differences, atol=1e-12)
        np.testing.assert_allclose(slopes, quotient(direction, step), atol=1e-8)
        inside = (slice(None), *[slice(1, -1)] * (len(shape) - 2))
        assert np.all(np.abs(slopes - quotient(direction, -step))[inside] > 1e-3)


@pytest.mark.parametrize(("boundary", "beyond"), [("edge", 7.0), ("zeros", 0.0), ("reflect", 2.0)])
def test_the_last_row_and_column_differ_from_what_lies_outside(boundary, beyond):
    column = jnp.array([1.0, 2.0, 7.0])
    dy, _ = forward_differences(column.reshape(1, 3, 1, 1), boundary=boundary)
    _, dx = forward_differences(column.reshape(1, 1, 3, 1), boundary=boundary)
    for slopes in (dy, dx):
        assert slopes.ravel().tolist() == [1.0, 5.0, beyond - 7.0]


def test_a_side_of_one_pixel_has_no_slope_but_towards_zeros():
    image = jnp.full((1, 1, 1, 1), 3.0)
    slopes = {boundary: forward_differences(image, boundary=boundary)[0].item() for boundary in BOUNDARIES}
    assert slopes == {"zeros": -3.0, "edge": 0.0, "reflect": 0.0}


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_flow_gradient_needs_no_scatter(boundary):
    images, flow = random_images((2, 5, 6, 3)), random_flow((2, 5, 6, 3))

    def loss(images, flow):
        return jnp.sum(warp(images, flow, boundary=boundary) ** 3)

    def program(argument):
        return jax.jit(jax.grad(loss, argument)).lower(images, flow).as_text()

    assert "scatter" not in program(1)
    assert "scatter" in program(0)  # the search itself finds the word


@pytest.mark.parametrize(
    ("order", "shape", "boundary"),
    [
        pytest.param(order, shape, boundary, marks=[pytest.mark.slow] * ((order, len(shape)) != (1, 4)))
        for order in (1, 3)
        for shape in ((2, 3, 4, 2), (2, 5, 2), (1, 2, 3, 2, 2))
        # The large programs, which compile for long, at one boundary.
        for boundary in (BOUNDARIES if order == 1 and len(shape) < 5 else ("reflect",))
    ],
)
def test_first_and_second_derivatives_between_the_grid_points(boundary, shape, order, float64):
    """Along random lines through (images, flow), in every mix of forward and reverse mode."""
    images, flow = random_images(shape, dtype=np.float64), away_from_kinks(shape)
    images_line, flow_line = random_images(shape, 3, np.float64), 0.1 * random_flow(shape, dtype=np.float64)
    weights = random_images(shape, 4, np.float64)

    def total(images, flow):
        return jnp.sum(weights * jnp.sin(warp(images, flow, boundary=boundary, order=order)))

    def forward(function):
        lines = images_line, flow_line
        return lambda *arguments: jax.jvp(function, arguments, lines)[1]

    def reverse(function):
        def slope(*arguments):
            gradients = jax.grad(function, (0, 1))(*arguments)
            return jnp.vdot(gradients[0], images_line) + jnp.vdot(gradients[1], flow_line)

        return slope

    def derivatives(images, flow):
        first = [mode(total) for mode in (forward, reverse)]
        second = [outer(inner) for outer in (forward, reverse) for inner in first]
        return [[f(images, flow) for f in order] for order in ([total], first, second)]

    def along(images, flow):
        return [[total(images, flow)], [forward(total)(images, flow)]]

    if (order, len(shape)) != (3, 5):  # whose programs compile for minutes
        derivatives, along = jax.jit(derivatives), jax.jit(along)

    step = 1e-5
    _, first, second = derivatives(images, flow)
    ahead, behind = (along(images + s * images_line, flow + s * flow_line) for s in (step, -step))
    assert abs(second[0]) > 0.1
    np.testing.assert_allclose(first, (ahead[0][0] - behind[0][0]) / (2 * step), rtol=1e-7)
    np.testing.assert_allclose(second, (ahead[1][0] - behind[1][0]) / (2 * step), rtol=1e-7)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_penalty_of_a_warp_has_the_right_gradient_at_the_zero_flow(boundary, float64):
    """Reverse over reverse at the kink: the mixed derivative, against finite differences of the closed form."""
    shape = (1, 4, 3, 2)
    images = random_images(shape, dtype=np.float64)
    weights = random_images(shape, seed=5, dtype=np.float64)

    def penalty_by_warp(images):
        def loss(flow):
            return jnp.sum(weights * warp(images, flow, boundary=boundary) ** 2)

        return jnp.sum(jax.grad(loss)(jnp.zeros((1, 4, 3, 2))) ** 2)

    def penalty_by_hand(images):
        total = 0.0
        for i, j in itertools.product(range(4), range(3)):
            here = images[0, i, j]
            for there in (read(images[0], *at, boundary=boundary) for at in ((i + 1, j), (i, j + 1))):
                total += np.sum(2 * weights[0, i, j] * here * (there - here)) ** 2
        return total

    np.testing.assert_allclose(penalty_by_warp(images), penalty_by_hand(images), rtol=1e-12)
    gradient = jax.jit(jax.grad(penalty_by_warp))(images)
    for index in np.ndindex(shape):
        bump = np.zeros(shape)
        bump[index] = 1e-5
        slope = (penalty_by_hand(images + bump) - penalty_by_hand(images - bump)) / 2e-5
        np.testing.assert_allclose(gradient[index], slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("boundary", ["zeros", "edge"])
@pytest.mark.parametrize(
    "shape",
    [
        SHAPES[0],
        SHAPES[3],
        (2, 4, 5, 5),
        *(pytest.param(shape, marks=pytest.mark.slow) for shape in (SIGNALS, VOLUMES)),
    ],
)
def test_reading_a_cell_at_once_changes_nothing(boundary, shape, monkeypatch):
    images, flow = random_images(shape), random_flow(shape)
    flow[:, 0] = 1e9
    flow[:, 0, ..., -1] = -1e9
    tangents, cotangent = (random_images(shape, 5), random_flow(shape, seed=6)), random_images(shape, 7)

    def derivatives(images, flow):
        def function(images, flow):
            return warp(images, flow, boundary=boundary)

        def squared(images):
            outputs, pullback = jax.vjp(lambda flow: function(images, flow), flow)
            (gradient,) = pullback(cotangent)
            return jnp.sum(gradient**2), (outputs, gradient)  # double backpropagation

        return jax.jvp(function, (images, flow), tangents), jax.grad(squared, has_aux=True)(images)

    def program(at_once):
        monkeypatch.setattr(_cells, "_packable", lambda *_: at_once)
        return jax.jit(lambda *arguments: derivatives(*arguments)).lower(images, flow)

    programs = program(True), program(False)
    gathers = [lowered.as_text().count('"stablehlo.gather"') for lowered in programs]
    assert 0 < gathers[0] < gathers[1]
    at_once, one_by_one = (lowered.compile()(images, flow) for lowered in programs)
    for left, right in zip(jax.tree.leaves(at_once), jax.tree.leaves(one_by_one), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_forward_and_reverse_mode_are_adjoint(boundary, float64):
    shape = (2, 4, 5, 2)
    images, flow = random_images(shape, dtype=np.float64), random_flow(shape, dtype=np.float64)
    tangents = random_images(shape, 7, np.float64), random_flow(shape, seed=8, dtype=np.float64)
    cotangent = random_images(shape, 9, np.float64)

    @jax.jit
    def both(images, flow):
        def function(images, flow):
            return warp(images, flow, boundary=boundary)

        return jax.jvp(function, (images, flow), tangents)[1], jax.vjp(function, images, flow)[1](cotangent)

    forward, back = both(images, flow)
    np.testing.assert_allclose(np.vdot(forward, cotangent), sum(map(np.vdot, tangents, back)), rtol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_constant_images_have_finite_second_derivatives(boundary):
    images, zero = jnp.full((1, 3, 3, 1), 0.5), jnp.zeros((1, 3, 3, 2))
    hessian = jax.jit(jax.hessian(lambda *arguments: jnp.sum(warp(*arguments, boundary=boundary) ** 2), (0, 1)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(hessian(images, zero)))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_flows_that_lead_far_away_read_what_the_boundary_says(boundary):
    far = np.array([1e6, 1e30, np.inf, -1e6, -1e30, -np.inf], np.float32)
    images = np.abs(random_images((6, 4, 5, 2))) + 1
    flow = np.broadcast_to(far[:, None, None, None], (6, 4, 5, 2))
    warped = compiled_warp(images, flow, boundary=boundary)
    if boundary == "zeros":
        np.testing.assert_array_equal(warped, np.zeros_like(images))
    elif boundary == "edge":
        corners = np.concatenate([images[:3, -1, -1], images[3:, 0, 0]])
        np.testing.assert_array_equal(warped, np.broadcast_to(corners[:, None, None], images.shape))
    else:
        assert images.min() <= warped.min() <= warped.max() <= images.max()

    @jax.jit
    def gradients(images, flow):
        return jax.grad(lambda *arguments: jnp.sum(warp(*arguments, boundary=boundary) ** 2), (0, 1))(images, flow)

    assert all(np.isfinite(leaf).all() for leaf in gradients(images, flow))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_nan_in_the_flow_stays_in_its_pixel(boundary):
    images, flow = random_images((2, 4, 5, 2)), random_flow((2, 4, 5, 2))
    broken = flow.copy()
    broken[1, 2, 3, 0] = np.nan
    expected = np.array(compiled_warp(images, flow, boundary=boundary))
    warped = np.array(compiled_warp(images, broken, boundary=boundary))
    assert np.isnan(warped[1, 2, 3]).all()
    warped[1, 2, 3] = expected[1, 2, 3]
    np.testing.assert_array_equal(warped, expected)


@partial(jax.jit, static_argnames=("promised", "boundary", "order"))
def to_second_order(images, flow, weights, *, promised, boundary, order):
    """A warp, the gradients of a loss of it, and the gradients of a function of these."""

    def total(images, flow):
        return jnp.sum(weights * warp(images, flow, boundary=boundary, within=promised, order=order) ** 3)

    def slopes(*arguments):
        return sum(jnp.sum(jnp.sin(gradient)) for gradient in jax.grad(total, (0, 1))(*arguments))

    warped = warp(images, flow, boundary=boundary, within=promised, order=order)
    return warped, jax.grad(total, (0, 1))(images, flow), jax.grad(slopes, (0, 1))(images, flow)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("boundary", "within", "order"),
    [*((boundary, within, 1) for boundary in BOUNDARIES for within in (0.9, 1.9)), ("reflect", 0.9, 3)],
)
def test_a_promise_about_the_flow_changes_no_value_and_no_derivative(boundary, within, order, float64):
    """At the grid points too, on both sides of them, and where the image has one row or column."""
    others = {0.9: [], 1.9: [(2, 6, 3)] + [(1, 2, 4, 3, 1)] * (boundary == "edge")}[within]  # volumes compile for long
    for shape in ((2, 5, 7, 3), (1, 1, 4, 1), *others):
        images, weights = (random_images(shape, seed, np.float64) for seed in (0, 1))
        flow = np.random.default_rng(2).uniform(-within, within, flow_shape(shape))
        flow[:, :, ::2] = np.trunc(flow[:, :, ::2])
        near, far = (
            to_second_order(images, flow, weights, promised=promised, boundary=boundary, order=order)
            for promised in (within, None)
        )
        for ours, theirs in zip(*map(jax.tree.leaves, (near, far)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_promise_about_the_flow_saves_the_gather(boundary):
    images, flow = random_images((2, 5, 6, 3)), random_flow((2, 5, 6, 3), scale=0.1)

    def program(within):
        def loss(images, flow):
            return jnp.sum(warp(images, flow, boundary=boundary, within=within) ** 3)

        return jax.jit(jax.grad(loss, (0, 1))).lower(images, flow).as_text()

    assert "gather" not in program(1.99)
    assert "scatter" not in program(1.99)
    assert "gather" in program(2)


def test_a_broken_promise_reads_from_nearer():
    images = np.arange(6, dtype=np.float32).reshape(1, 1, 6, 1)
    flow = np.full((1, 1, 6, 2), 3, np.float32)
    np.testing.assert_array_equal(np.ravel(compiled_warp(images, flow, within=0.5)), [1, 2, 3, 4, 5, 5])
    flow[0, 0, 2, 1] = np.nan
    warped = np.ravel(compiled_warp(images, flow, within=0.5))
    np.testing.assert_array_equal(np.isnan(warped), np.arange(6) == 2)


@pytest.mark.parametrize(("within", "error"), [(-1.0, ValueError), (np.nan, ValueError), ("1", TypeError)])
def test_a_promise_is_a_length(within, error):
    with pytest.raises(error, match="within"):
        warp(IMAGES, FLOW, within=within)
    with pytest.raises(TypeError, match="within must be a number known when the warp is traced"):
        jax.jit(lambda within: warp(IMAGES, FLOW, within=within))(1.0)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_an_empty_batch_stays_empty(boundary):
    assert warp(jnp.zeros((0, 4, 5, 3)), jnp.zeros((0, 4, 5, 2)), boundary=boundary).shape == (0, 4, 5, 3)


IMAGES, FLOW = np.zeros((2, 4, 5, 3), np.float32), np.zeros((2, 4, 5, 2), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((IMAGES.astype(np.uint8), FLOW), TypeError, ["images", "uint8", "floating"]),
        ((IMAGES, FLOW.astype(np.int32)), TypeError, ["flow", "int32", "floating"]),
        (("cat.png", FLOW), TypeError, ["images", "cat.png"]),
        ((None, FLOW), TypeError, ["images", "None"]),
        ((IMAGES[0, 0], FLOW), ValueError, ["images", "[n, h, w, c]", "[n, t, c]", "(5, 3)"]),
        ((IMAGES[0], FLOW[0]), ValueError, ["flow", "(4, 5, 1)", "for one image give images[None]"]),
        ((IMAGES[:, :0], FLOW), ValueError, ["images", "at least one pixel", "(2, 0, 5, 3)"]),
        ((IMAGES, FLOW[..., :1]), ValueError, ["flow", "(2, 4, 5, 2)", "(2, 4, 5, 1)"]),
        ((IMAGES, FLOW[:1]), ValueError, ["flow", "(2, 4, 5, 2)", "(1, 4, 5, 2)"]),
        ((IMAGES, FLOW[0]), ValueError, ["flow", "(2, 4, 5, 2)", "(4, 5, 2)"]),
    ],
)
def test_what_does_not_fit_is_named(arguments, error, words):
    with pytest.raises(error) as caught:
        warp(*arguments)
    assert all(word in str(caught.value) for word in words)


def test_an_unknown_order_is_named():
    with pytest.raises(ValueError, match=r"order must be 1 \(linear\) or 3 \(cubic\), got 2"):
        warp(IMAGES, FLOW, order=2)


def test_an_unknown_boundary_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"boundary must be one of 'zeros', 'edge', 'reflect', got 'wrap'"):
        warp(IMAGES, FLOW, boundary="wrap")
    with pytest.raises(ValueError, match=r"boundary must be one of 'zeros', 'edge', 'reflect', got 'wrap'"):
        forward_differences(IMAGES, boundary="wrap")


def test_errors_come_at_trace_time_under_jit():
    with pytest.raises(ValueError, match=r"flow must have shape \(2, 4, 5, 2\)"):
        jax.jit(warp).lower(IMAGES, FLOW[:1])
