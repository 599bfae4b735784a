"""The other attacks against closed forms, exhaustive search and NumPy or SciPy twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import linear_model, perceptron, ramp_model, ramps
from running import python
from scipy import ndimage, optimize

from deformreg import balls, fields
from deformreg.attacks import (
    adef,
    elastic,
    measure,
    nes,
    pgd,
    random_fields,
    rotation_translation,
    spsa,
    square,
    stadv,
    transfer,
)
from deformreg.attacks.square import window_sides
from deformreg.perturbations import Perturbation, additive, affine, flow, lowres_flow, perspective, thin_plate_spline

KEY = jax.random.key(0)


@pytest.mark.slow
def test_random_fields_lie_on_the_boundary_and_keep_the_worst():
    logits_fn = perceptron(64)
    images = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 1)).astype(np.float32))
    labels = jnp.argmax(logits_fn(images), axis=1)
    runs = [
        random_fields(ball=balls.pixelwise_l2(0.01), num_fields=count, keep="best").run(logits_fn, images, labels, KEY)
        for count in (1, 6)
    ]
    for result in runs:
        np.testing.assert_allclose(result.norms.max_displacement, 0.01, rtol=1e-5)
    assert (runs[1].losses >= runs[0].losses).all()
    # The losses belong to the returned fields.
    images = flow().apply(runs[1].params, images)
    logits = np.array(logits_fn(images))
    right = np.take_along_axis(logits, np.asarray(labels)[:, None], 1)[:, 0]
    np.put_along_axis(logits, np.asarray(labels)[:, None], -np.inf, 1)
    np.testing.assert_allclose(runs[1].losses, logits.max(1) - right, rtol=1e-5, atol=1e-6)


def test_square_windows_shrink_as_published():
    sides = window_sides(10_000, (32, 32), 0.8)
    shares = {
        0: 0.8,
        11: 0.4,
        51: 0.2,
        201: 0.1,
        501: 0.05,
        1001: 0.025,
        2001: 0.0125,
        4001: 0.8 / 128,
        8001: 0.8 / 512,
    }
    expected = {at: [max(round((p * 1024) ** 0.5), 1)] * 2 for at, p in shares.items()}
    assert {at: sides[at].tolist() for at in shares} == expected


def test_windows_extend_along_the_longer_axes():
    sides = window_sides(1000, (8, 512), 0.8)
    assert sides[[0, 100, 999]].tolist() == [[8, 410], [8, 26], [3, 3]]
    assert window_sides(1, (3, 64, 64), 1.0).tolist() == [[3, 64, 64]]
    assert window_sides(1, (1, 10), 0.5).tolist() == [[1, 5]]


def test_only_fields_of_the_size_of_the_images_are_smoothed():
    logits_fn, images, labels = perceptron(64), np.random.default_rng(0).random((2, 8, 8, 1)), np.zeros(2, int)
    one, other = (
        random_fields(ball=balls.linf(0.5), num_fields=1, sigma=sigma, perturbation=lowres_flow(2), keep="best").run(
            logits_fn, images.astype(np.float32), labels, KEY
        )
        for sigma in (0.0, 2.0)
    )
    np.testing.assert_array_equal(one.params, other.params)


@pytest.mark.slow
def test_square_finds_the_corner_of_a_linear_model():
    logits_fn, weights = linear_model((2, 2, 1))
    images = jnp.zeros((3, 2, 2, 1))
    attack = square(ball=balls.linf(0.5), num_queries=300, perturbation=additive(), keep="best")
    result = attack.run(lambda x: logits_fn(x) - jnp.array([0.0, 100.0]), images, np.zeros(3, int), KEY)
    np.testing.assert_allclose(result.params, np.broadcast_to(0.5 * np.sign(weights), (3, 2, 2, 1)))
    assert result.model_calls.tolist() == [300] * 3
    # Each example has its own draws: the first tries, vertical stripes, differ.
    first = square(ball=balls.linf(0.5), num_queries=1, keep="best").run(
        lambda x: jnp.zeros((8, 2)) + jnp.array([1.0, 0.0]), jnp.ones((8, 6, 6, 1)), np.zeros(8, int), KEY
    )
    assert len(np.unique(np.asarray(first.params).reshape(8, -1), axis=0)) > 1
    np.testing.assert_array_equal(first.params, np.broadcast_to(first.params[:, :1], first.params.shape))


def test_the_grid_is_exhaustive_and_keeps_the_worst():
    logits_fn = perceptron(49, classes=3)
    images = np.random.default_rng(0).random((3, 7, 7, 1))
    labels = np.asarray(jnp.argmax(logits_fn(jnp.asarray(images, jnp.float32)), axis=1))
    attack = rotation_translation(max_degrees=20, max_pixels=1.5, grid=(3, 3, 4), keep="best")
    result = attack.run(logits_fn, jnp.asarray(images, jnp.float32), labels, KEY)
    y, x = np.meshgrid(np.arange(7) - 3.0, np.arange(7) - 3.0, indexing="ij")
    for row in range(3):
        tried = []
        for degrees in (-20, 0, 20):
            sin, cos = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
            for dy in (-1.5, 0, 1.5):
                for dx in np.linspace(-1.5, 1.5, 4):
                    at = np.stack([cos * y + sin * x + dy + 3, cos * x - sin * y + dx + 3])
                    moved = ndimage.map_coordinates(np.pad(images[row, ..., 0], 8), at + 8, order=1)
                    logits = np.asarray(logits_fn(jnp.asarray(moved[None, ..., None], jnp.float32)), np.float64)[0]
                    loss = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[labels[row]]
                    tried.append((logits.argmax() != labels[row], loss))
        worst = max(tried)
        assert bool(result.success[row]) == worst[0]
        np.testing.assert_allclose(result.losses[row], worst[1], rtol=1e-4)
    assert result.model_calls.tolist() == [36] * 3


@pytest.mark.slow
def test_random_transformations_are_drawn_for_each_example_and_may_be_kept_small():
    def constant(images):
        return jnp.zeros((len(images), 2)) + jnp.array([1.0, 0.0])

    images, labels = jnp.ones((5, 9, 9, 1)), np.zeros(5, int)
    result = rotation_translation(grid=None, num_draws=3, keep="best").run(constant, images, labels, KEY)
    assert len(np.unique(np.asarray(result.params), axis=0)) == 5
    assert (np.abs(result.params) <= np.array([np.pi / 6, 3, 3])).all()
    small = rotation_translation(grid=(3, 3, 3), max_component=0.25, keep="best").run(constant, images, labels, KEY)
    np.testing.assert_allclose(small.norms.max_component, 0.25, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["raw", "final"])
def test_the_elastic_budget_is_on_the_field_it_names(bound):
    logits_fn = perceptron(100)
    images = jnp.asarray(np.random.default_rng(0).random((3, 10, 10, 1)).astype(np.float32))
    attack = elastic(0.5, bound=bound, num_steps=6, keep="best", start="zero", sigma=2.0, step_size=0.5)
    result = attack.run(logits_fn, images, jnp.argmax(logits_fn(images), axis=1), KEY)
    raw = np.abs(result.params).max((1, 2, 3))
    if bound == "raw":
        np.testing.assert_allclose(raw, 0.5)
        assert (result.norms.max_component < 0.5).all()
    else:
        np.testing.assert_allclose(result.norms.max_component, 0.5, rtol=1e-4)
        assert (raw > 0.5).all()


def test_adef_crosses_a_ramp_at_the_least_displacement():
    images, slopes, weights = ramps(5)
    gap = 0.8
    clean = gap - (images[..., 0] * weights).sum((1, 2))
    result = adef(overshoot=1.01).run(ramp_model(weights, gap), images, np.zeros(5, int), KEY)
    # The least l2 flow that closes a linear gap: clean / |s w|^2 * s w; ADef's norm is its longest vector.
    minimal = clean * np.abs(weights).max() / (slopes * (weights**2).sum())
    assert result.success.all()
    # A step lands on the boundary up to rounding: some rows cross it there, the others by the last, lengthened try.
    ratio = result.norms.max_displacement / minimal
    assert (np.isclose(ratio, 1, rtol=1e-4) | np.isclose(ratio, 1.01, rtol=1e-4)).all()
    bounded = adef(max_norm=float(np.median(minimal)), overshoot=1.01)
    stopped = bounded.run(ramp_model(weights, gap), images, np.zeros(5, int), KEY)
    np.testing.assert_array_equal(stopped.success, minimal < np.median(minimal))


@pytest.mark.slow
def test_an_adef_step_is_its_twin(float64):
    rng = np.random.default_rng(0)
    images, weights = rng.random((2, 12, 11, 2)), rng.normal(size=(12, 11, 2))
    clean = (images * weights).sum((1, 2, 3))

    def logits_fn(x):
        return jnp.stack([jnp.full(2, 0.05), (x * weights).sum((1, 2, 3)) - clean], axis=1)

    result = adef(num_steps=1, sigma=1.0, overshoot=1.0).run(logits_fn, jnp.asarray(images), np.zeros(2, int), KEY)

    def blur(field):
        return ndimage.gaussian_filter(field, 1.0, axes=(0, 1), mode="constant", truncate=4.0)

    for row in range(2):
        gap = -0.05
        slopes = np.gradient(images[row], axis=(0, 1))
        along = np.stack([(weights * slope).sum(-1) for slope in slopes], -1)
        smooth = blur(along)
        step = -gap / (smooth**2).sum() * blur(smooth)
        np.testing.assert_allclose(result.params[row], step, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_adef_with_targets_aims_at_them_alone():
    logits_fn = perceptron(64)
    images = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 1)).astype(np.float32))
    ranked = jnp.argsort(logits_fn(images), axis=1)
    one, three = (
        adef(candidates=count, num_steps=4).run(logits_fn, images, ranked[:, -1], KEY, targets=ranked[:, -2])
        for count in (1, 3)
    )
    jax.tree.map(np.testing.assert_array_equal, one, three)
    assert (one.model_calls <= 6).all()


@pytest.mark.slow
def test_stadv_minimizes_as_scipy_does(float64):
    images, _, weights = ramps(2)
    images, gap = images.astype(np.float64), 0.8
    logits_fn = ramp_model(weights, gap)
    attack = stadv(num_evaluations=300, flow_weight=0.05)
    result = attack.run(logits_fn, jnp.asarray(images), np.zeros(2, int), KEY)
    assert result.success.all()

    def cost(flat, row):
        field = flat.reshape(1, *images.shape[1:3], 2)
        logits = logits_fn(flow().apply(field, images[row : row + 1]))[0]
        return jnp.maximum(logits[0] - logits[1], -1e-3) + 0.05 * fields.total_variation(field)[0]

    both = jax.jit(jax.value_and_grad(cost), static_argnums=1)
    for row in range(2):

        def fun(flat, row=row):
            return tuple(np.asarray(part) for part in both(flat, row))

        found = optimize.minimize(fun, np.zeros(images[0, ..., 0].size * 2), jac=True, method="L-BFGS-B")
        assert -result.losses[row] <= found.fun * 1.1 + 1e-3


@pytest.mark.slow
def test_stadv_respects_a_hard_bound_and_names_what_it_needs():
    images, _, weights = ramps(2)
    result = stadv(num_evaluations=30, ball=balls.linf(0.05)).run(
        ramp_model(weights, 5.0), images, np.zeros(2, int), KEY
    )
    np.testing.assert_allclose(result.norms.max_component, 0.05, rtol=1e-5)
    np.testing.assert_array_equal(result.norms.max_component, np.abs(result.params).max((1, 2, 3)))
    assert not result.success.any()
    script = (
        "import sys; sys.modules['optax'] = None\n"
        "import deformreg\n"
        "try: deformreg.attacks.stadv()\n"
        "except ImportError as error: print(error)"
    )
    assert python(script) == "stadv needs Optax's L-BFGS: pip install optax\n"


@pytest.mark.parametrize("make", [spsa, nes])
def test_estimated_gradients_break_what_a_linear_gap_allows(make):
    images, slopes, weights = ramps(4)
    gap = 0.8
    minimal = (gap - (images[..., 0] * weights).sum((1, 2))) / (slopes * np.abs(weights).sum())
    logits_fn = ramp_model(weights, gap)
    below, above = (
        make(ball=balls.linf(factor * float(limit)), num_steps=30, num_samples=40).run(
            logits_fn, images, np.zeros(4, int), KEY
        )
        for factor, limit in ((0.99, minimal.min()), (1.5, minimal.max()))
    )
    assert not below.success.any()
    assert below.model_calls.tolist() == [31 * 81] * 4
    assert above.success.all()


def test_transfer_searches_on_one_model_and_succeeds_on_another():
    source, target = perceptron(36, seed=0), perceptron(36, seed=5, hidden=24)
    images = jnp.asarray(np.random.default_rng(0).random((6, 6, 6, 1)).astype(np.float32))
    labels = jnp.argmax(source(images), axis=1)
    inner = pgd(ball=balls.linf(0.5), num_steps=4, keep="best")
    direct = inner.run(source, images, labels, KEY)
    shown = transfer(inner, source).run(target, images, labels, KEY)
    np.testing.assert_array_equal(shown.params, direct.params)  # the target is not asked before the end
    np.testing.assert_array_equal(shown.success, jnp.argmax(target(direct.images), axis=1) != labels)
    assert shown.success.any()
    assert (shown.model_calls == direct.model_calls + 1).all()

    def blind(x):
        return 0 * target(x) + jnp.arange(5.0)

    assert not transfer(inner, source).run(blind, images, jnp.full(6, 4), KEY).success.any()


@pytest.mark.slow
def test_norms_are_those_of_the_final_field_or_difference():
    images = jnp.ones((2, 5, 5, 1))
    quarter = measure(affine(parameters=("rotation",)), jnp.full((2, 1), jnp.pi / 2), images)
    np.testing.assert_allclose(quarter.max_component, 4.0, atol=1e-5)
    np.testing.assert_allclose(quarter.max_displacement, 4.0, atol=1e-5)
    difference = measure(additive(), jnp.full((2, 5, 5, 1), 0.1), images)
    np.testing.assert_allclose(difference.linf, 0.1, rtol=1e-6)
    np.testing.assert_allclose(difference.l2, 0.5, rtol=1e-6)
    contrast = Perturbation(init=jnp.zeros_like, apply=lambda params, images: images * (1 + params))
    np.testing.assert_allclose(measure(contrast, jnp.full((2, 5, 5, 1), 0.5), 0.1 * images).linf, 0.05, rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "unit"),
    [
        (additive(), "image"),
        (flow(), "pixels"),
        (flow(units="normalized"), "normalized"),
        (lowres_flow(2), "pixels"),
        (perspective(), "pixels of the corners"),
        (thin_plate_spline(), "pixels of the control points"),
        (affine(parameters=("dy", "dx")), "pixels"),
        (affine(), "parameters"),
        (Perturbation(init=jnp.zeros_like, apply=lambda params, images: images * (1 + params)), "parameters"),
    ],
)
def test_budgets_are_in_the_unit_of_the_parameters(family, unit):
    assert pgd(ball=balls.linf(0.1), num_steps=2, perturbation=family).budget == (0.1, "linf", unit)
