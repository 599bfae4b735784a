"""Gradient penalties: closed forms, the three rules, auxiliary outputs and errors; the random start and the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg import (
    Perturbation,
    additive,
    affine,
    finite_difference_penalty,
    flow,
    forward_over_reverse_penalty,
    gradient_penalty,
    image_gradients,
    l2,
    linf,
    lowres_flow,
    one_step,
    pixelwise_l2,
    random_start,
)
from deformreg.losses import cross_entropy
from deformreg.penalties import squared_norm
from deformreg.perturbations import pull_back
from deformreg.released import paper_weight

pytestmark = pytest.mark.usefixtures("strict_promotion")

SHAPE = (3, 5, 4, 2)


def random_images(seed=0, shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(seed).uniform(size=shape).astype(dtype)


def tiny_model(params, images):
    """Two smooth layers, so that finite differences converge."""
    hidden = jnp.tanh(images.reshape(images.shape[0], -1) @ params["in"])
    return hidden @ params["out"]


def tiny_params(seed=1, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {"in": rng.normal(size=(40, 6)).astype(dtype) / 3, "out": rng.normal(size=(6, 4)).astype(dtype)}


LABELS = np.array([0, 3, 1])
RULES = (gradient_penalty, finite_difference_penalty, forward_over_reverse_penalty)


def tiny_loss(params):
    return lambda images: cross_entropy(tiny_model(params, images), LABELS)


def test_linear_models_have_closed_forms():
    images, weights = random_images(), random_images(1).astype(np.float64)

    def loss_fn(images):
        return jnp.sum(images * weights.astype(np.float32), axis=(1, 2, 3))

    @jax.jit
    def penalties(images):
        families = flow(), flow(units="normalized"), affine(parameters=("dy", "dx"))
        named = gradient_penalty(loss_fn, images, additive()), gradient_penalty(loss_fn, images)
        return *named, *(gradient_penalty(loss_fn, images, family)[0] for family in families)

    (by_input, losses), (by_flow, _), default, normalized, shift = penalties(images)
    np.testing.assert_allclose(by_input, (weights**2).sum((1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(losses, (weights * images).sum((1, 2, 3)), rtol=1e-6)

    down = np.diff(images, axis=1, append=images[:, -1:])
    right = np.diff(images, axis=2, append=images[:, :, -1:])
    along_y, along_x = (weights * down).sum(-1), (weights * right).sum(-1)
    expected = (along_y**2 + along_x**2).sum((1, 2))
    np.testing.assert_allclose(by_flow, expected, rtol=1e-5)
    np.testing.assert_allclose(default, expected, rtol=1e-5)
    expected = ((along_y * 2.0) ** 2 + (along_x * 1.5) ** 2).sum((1, 2))  # (size - 1) / 2 of 5 rows and 4 columns
    np.testing.assert_allclose(normalized, expected, rtol=1e-5)
    np.testing.assert_allclose(shift, along_y.sum((1, 2)) ** 2 + along_x.sum((1, 2)) ** 2, rtol=1e-4)


BALLS = [linf(0.3), linf(np.array([0.1, 0.4])), l2(0.3), pixelwise_l2(0.3)]


@pytest.mark.parametrize("ball", BALLS, ids=["linf", "linf per component", "l2", "pixelwise_l2"])
def test_the_support_of_a_ball_is_the_increase_of_a_linear_loss_under_its_strongest_attack(ball, float64):
    """Of one step of additive perturbations; for flows, of the loss along the family's tangent."""
    images, weights = random_images(dtype=np.float64), random_images(1, dtype=np.float64) - 0.5

    def loss_fn(images):
        return jnp.sum(images * weights, axis=(1, 2, 3))

    attacked = one_step(loss_fn, images, ball=ball, perturbation=additive())
    penalties, losses = gradient_penalty(loss_fn, images, additive(), size=ball.support)
    np.testing.assert_allclose(losses + penalties, attacked.losses, rtol=1e-9)
    slopes = pull_back(flow(), weights, images)
    strongest = jax.grad(lambda slopes: jnp.sum(ball.support(slopes)))(slopes)
    expected = np.sum(slopes * strongest, axis=(1, 2, 3))
    np.testing.assert_allclose(gradient_penalty(loss_fn, images, size=ball.support)[0], expected, rtol=1e-9)


@pytest.mark.parametrize("ball", BALLS[::2] + BALLS[3:], ids=["linf", "l2", "pixelwise_l2"])
def test_the_rules_agree_on_the_derivative_of_a_dual_norm(ball, float64):
    params, images = tiny_params(dtype=np.float64), random_images(dtype=np.float64)

    def derivative(rule):
        def total(params):
            return jnp.sum(rule(tiny_loss(params), images, size=ball.support)[0] * np.array([1.0, 2.0, 3.0]))

        return jax.jit(jax.value_and_grad(total))(params)

    def check(rule, **tolerance):
        compare = functools.partial(np.testing.assert_allclose, **tolerance)
        jax.tree.map(compare, derivative(rule), derivative(gradient_penalty))

    check(forward_over_reverse_penalty, rtol=1e-9)
    check(functools.partial(finite_difference_penalty, step_size=1e-5), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "family", [additive(), flow(), flow(boundary="zeros", units="normalized"), affine(), lowres_flow(2, sigma=0.5)]
)
def test_double_backpropagation_matches_finite_differences(family, float64):
    params, images = tiny_params(dtype=np.float64), random_images(dtype=np.float64)

    @jax.jit
    def penalty(params):
        return jnp.mean(gradient_penalty(tiny_loss(params), images, family)[0])

    gradient = jax.jit(jax.grad(penalty))(params)
    for seed in (2, 3):
        line, step = tiny_params(seed, np.float64), 1e-5
        ahead, behind = (penalty(jax.tree.map(lambda p, d, s=s: p + s * d, params, line)) for s in (step, -step))
        along = sum(np.vdot(gradient[name], line[name]) for name in line)
        np.testing.assert_allclose(along, (ahead - behind) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("family", [additive(), flow(), affine(), lowres_flow(2)], ids=["add", "flow", "affine", "low"])
def test_the_finite_difference_converges_to_the_exact_penalty_at_first_order(family, float64):
    """With its parameter gradient; on images whose slopes differ on the two sides of every grid point."""
    params, images = tiny_params(dtype=np.float64), random_images(dtype=np.float64)

    def both(function):
        def penalties(params):
            values = function(tiny_loss(params), images)[0]
            return jnp.sum(values * np.array([1.0, 2.0, 3.0])), values

        (_, values), gradient = jax.jit(jax.value_and_grad(penalties, has_aux=True))(params)
        return np.concatenate([np.ravel(values), *(np.ravel(leaf) for leaf in jax.tree.leaves(gradient))])

    exact = both(lambda loss_fn, images: gradient_penalty(loss_fn, images, family))
    errors = [
        np.linalg.norm(both(lambda f, x, h=h: finite_difference_penalty(f, x, family, step_size=h)) - exact)
        for h in (1e-3, 5e-4)
    ]
    assert errors[0] < 0.02 * np.linalg.norm(exact)
    assert 1.9 < errors[0] / errors[1] < 2.1


@pytest.mark.slow
def test_the_finite_difference_under_vmap_is_that_of_every_member():
    """Mapped over labels and images, with auxiliary outputs; the derivative is taken outside of the map."""
    images = np.stack([random_images(), random_images()[::-1]])
    labels = np.stack([LABELS, LABELS[::-1]]).astype(np.int32)

    def objective(params, images, labels):
        def loss_fn(images):
            logits = tiny_model(params, images)
            return cross_entropy(logits, labels), (logits, labels)

        penalties, (losses, (logits, _)) = finite_difference_penalty(loss_fn, images, has_aux=True)
        return jnp.mean(penalties) + jnp.mean(losses) + jnp.mean(logits**2)

    params = tiny_params()
    together = jax.grad(lambda params: jax.vmap(objective, (None, 0, 0))(params, images, labels).sum())(params)
    alone = [jax.grad(objective)(params, *pair) for pair in zip(images, labels, strict=True)]
    apart = jax.tree.map(jnp.add, *alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), together, apart)


FAMILIES = [additive(), flow(), flow(boundary="zeros", units="normalized"), affine(), lowres_flow(2, sigma=0.5)]


def coupled(params, images):
    """A loss with batch statistics, integers among its constants and auxiliary outputs."""
    logits = tiny_model(params, images)
    logits = (logits - logits.mean(0, keepdims=True)) / jnp.sqrt(logits.var(0, keepdims=True) + 0.1)
    return cross_entropy(logits, jnp.asarray(LABELS)), {"logits": logits, "labels": jnp.asarray(LABELS)}


def value_and_gradients(rule, family, params, images):
    """The value and gradients of an objective with different cotangents for all penalties, losses and outputs."""

    def objective(params, images):
        penalties, (losses, aux) = rule(lambda images: coupled(params, images), images, family, has_aux=True)
        weights = np.arange(1.0, 1 + len(images), dtype=np.float32)
        return jnp.sum(weights * penalties) + jnp.sum(losses**2) + jnp.sum(aux["logits"] ** 3), (penalties, losses, aux)

    return jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(params, images)


def assert_equal_to_rounding(found, expected):
    def check(found, expected):
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * largest)

    jax.tree.map(check, found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=["add", "flow", "normalized", "affine", "low"])
def test_forward_over_reverse_is_the_exact_penalty(family):
    """Including gradients of parameters and images, for losses coupled by batch statistics, with auxiliary outputs."""
    arguments = family, tiny_params(), random_images()
    expected = jax.jit(functools.partial(value_and_gradients, gradient_penalty, family))(*arguments[1:])
    compiled = jax.jit(functools.partial(value_and_gradients, forward_over_reverse_penalty, family))(*arguments[1:])
    assert_equal_to_rounding(compiled, expected)
    assert_equal_to_rounding(value_and_gradients(forward_over_reverse_penalty, *arguments), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pmap", "shard_map", "shard_map without vma"])
def test_forward_over_reverse_is_the_exact_penalty_on_several_devices(kind, cpus):
    params, images = tiny_params(), random_images(shape=(4, *SHAPE))

    def mapped(rule):
        def gradients(params, images):
            (value, (penalties, losses, _)), found = value_and_gradients(rule, flow(), params, images)
            return value[None], penalties, losses, found[1], jax.tree.map(lambda leaf: leaf[None], found[0])

        if kind == "pmap":
            return jax.pmap(gradients, in_axes=(None, 0), devices=cpus[:4])(params, images)
        mesh = jax.make_mesh((4,), ("batch",), devices=cpus[:4], axis_types=(jax.sharding.AxisType.Auto,))
        replicated, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("batch")
        specs = {"mesh": mesh, "in_specs": (replicated, split), "out_specs": split}

        def varying(params, images):
            if kind == "shard_map":  # so that every device keeps the gradient of its own share
                params = jax.lax.pcast(params, "batch", to="varying")
            return gradients(params, images)

        function = jax.shard_map(varying, check_vma=kind == "shard_map", **specs)
        return jax.jit(function)(params, images.reshape(-1, *SHAPE[1:]))

    assert_equal_to_rounding(mapped(forward_over_reverse_penalty), mapped(gradient_penalty))


def test_forward_over_reverse_sums_the_gradients_of_shared_parameters_over_devices(cpus):
    """Under `shard_map` the gradient of a parameter that all devices share is that of the whole batch."""
    params, images = tiny_params(), random_images(shape=(12, *SHAPE[1:]))
    mesh = jax.make_mesh((4,), ("batch",), devices=cpus[:4], axis_types=(jax.sharding.AxisType.Auto,))
    replicated, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("batch")

    def gradients(rule):
        def share(params, images):
            return jax.grad(lambda params: jnp.sum(rule(tiny_loss(params), images)[0]))(params)

        return jax.jit(jax.shard_map(share, mesh=mesh, in_specs=(replicated, split), out_specs=replicated))

    found, expected = (gradients(rule)(params, images) for rule in (forward_over_reverse_penalty, gradient_penalty))
    assert_equal_to_rounding(found, expected)


def test_forward_over_reverse_keeps_the_memory_of_a_rematerialized_model():
    # A loop over the layers: XLA for CPUs would merge recomputations outside of a loop with the first computation.
    layers, width = np.zeros((64, 64, 64), np.float32), 64

    def megabytes(rule, layer):
        def loss_fn(layers, images):
            features, _ = jax.lax.scan(layer, images.reshape(len(images), width), layers)
            return jnp.sum(features**2, axis=1)

        def objective(layers, images):
            return jnp.mean(rule(functools.partial(loss_fn, layers), images)[0])

        compiled = jax.jit(jax.grad(objective)).lower(layers, np.zeros((512, 8, 8, 1), np.float32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 1e6

    def layer(features, kernel):
        for _ in range(4):
            features = jnp.tanh(features @ kernel)
        return features, None

    plain = megabytes(lambda loss_fn, images: (loss_fn(images),), jax.checkpoint(layer))
    ours = megabytes(forward_over_reverse_penalty, jax.checkpoint(layer))
    assert ours < 0.6 * megabytes(gradient_penalty, jax.checkpoint(layer))
    assert ours < 0.6 * megabytes(forward_over_reverse_penalty, layer)
    assert ours < 3 * plain


def test_the_finite_difference_of_a_flat_loss_is_zero_with_finite_gradients():
    images = np.full(SHAPE, 0.5, np.float32)

    def scale(weight):
        return finite_difference_penalty(lambda x: weight * jnp.sum(x, axis=(1, 2, 3)), images)[0].sum()

    value, slope = jax.value_and_grad(scale)(1.0)
    assert (value, slope) == (0.0, 0.0)


@pytest.mark.parametrize("penalty", RULES)
def test_auxiliary_outputs_come_from_the_clean_images(penalty):
    params, images = tiny_params(), random_images()

    def loss_fn(images):
        logits = tiny_model(params, images)
        return cross_entropy(logits, LABELS), {"logits": logits, "mean": images.mean()}

    penalties, (losses, aux) = penalty(loss_fn, images, has_aux=True)
    plain, plain_losses = penalty(tiny_loss(params), images)
    np.testing.assert_allclose(penalties, plain, rtol=1e-6)
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-6)
    np.testing.assert_allclose(aux["logits"], tiny_model(params, images), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(aux["mean"], images.mean(), rtol=1e-6)


@pytest.mark.parametrize("penalty", RULES)
def test_the_loss_is_called_once(penalty):
    counted = []

    def loss_fn(images):
        counted.append(images.shape)
        return jnp.sum(images**2, axis=(1, 2, 3))

    jax.jit(functools.partial(penalty, loss_fn)).lower(random_images())
    assert counted == [SHAPE]


def test_families_share_one_pass_through_the_model():
    counted = []

    def loss_fn(images):
        counted.append(1)
        return tiny_loss(tiny_params())(images)

    images = random_images()
    gradients, losses = image_gradients(loss_fn, images)
    shared = [squared_norm(pull_back(family, gradients, images)) for family in (additive(), flow(), affine())]
    assert len(counted) == 1
    for family, penalties in zip((additive(), flow(), affine()), shared, strict=True):
        alone, alone_losses = gradient_penalty(tiny_loss(tiny_params()), images, family)
        np.testing.assert_allclose(penalties, alone, rtol=1e-5)
        np.testing.assert_allclose(losses, alone_losses, rtol=1e-6)


def test_the_squared_norm_sums_the_leaves_in_float32():
    gradients = {"a": np.full((2, 3), 2, jnp.bfloat16), "b": np.full((2,), 256, np.float16)}
    squares = squared_norm(gradients)
    assert squares.dtype == np.float32
    assert squares.tolist() == [12 + 65536.0] * 2  # 65536 does not fit into float16


def test_a_random_start_is_noise_in_the_family_then_clipping():
    images = random_images()

    def always_up(key, params):
        return jnp.full_like(params, 0.25)

    started = random_start(jax.random.key(0), images, additive(), always_up)
    np.testing.assert_allclose(started, np.clip(images + 0.25, 0, 1), rtol=1e-6)
    free = random_start(jax.random.key(0), images, additive(), always_up, image_range=None)
    np.testing.assert_allclose(free, images + 0.25, rtol=1e-6)


def test_a_random_start_is_a_function_of_its_key():
    images = random_images()
    one, again, other = (random_start(jax.random.key(seed), images) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    assert not np.allclose(one, images)


def test_the_papers_weight():
    assert paper_weight(300, batch_size=128, image_size=32) == pytest.approx(4.40, abs=0.005)
    assert paper_weight(300, batch_size=128, image_size=32, units="normalized") == pytest.approx(0.0183, abs=5e-5)
    assert paper_weight(1, batch_size=1, image_size=(3, 9), units="normalized") == 1.0


def test_the_papers_weight_times_our_penalty_is_the_papers_term():
    images = random_images(shape=(3, 5, 5, 2))

    def loss_fn(images):
        return jnp.sum(images**3, axis=(1, 2, 3))

    def mean_loss(params):
        return jnp.mean(loss_fn(flow(units="normalized").apply(params, images)))

    theirs = 300 * squared_norm(jax.grad(mean_loss)(np.zeros((3, 5, 5, 2), np.float32))).mean()
    for units in ("pixels", "normalized"):
        weight = paper_weight(300, batch_size=3, image_size=5, units=units)
        ours = weight * gradient_penalty(loss_fn, images, flow(units=units))[0].mean()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_an_empty_batch_has_no_penalties():
    for penalty in RULES:
        penalties, losses = penalty(lambda x: jnp.sum(x, axis=(1, 2, 3)), np.zeros((0, 3, 3, 1), np.float32))
        assert penalties.shape == losses.shape == (0,)


IMAGES = random_images()


@pytest.mark.parametrize("penalty", [image_gradients, *RULES])
@pytest.mark.parametrize(
    ("loss_fn", "images", "has_aux", "error", "words"),
    [
        (jnp.sum, IMAGES, False, ValueError, ["loss_fn", "(3,)", "()", "leave out the mean"]),
        (lambda x: x.mean((1, 2)), IMAGES, False, ValueError, ["loss_fn", "(3,)", "(3, 2)"]),
        (lambda x: jnp.zeros(3, int), IMAGES, False, TypeError, ["loss_fn", "int"]),
        (lambda x: (x.sum((1, 2, 3)), 1), IMAGES, False, TypeError, ["loss_fn", "tuple", "has_aux=True"]),
        (lambda x: x.sum((1, 2, 3)), IMAGES, True, TypeError, ["loss_fn", "(losses, aux)", "has_aux=True"]),
        (jnp.sum, (IMAGES * 255).astype(np.uint8), False, TypeError, ["images", "uint8", "floating"]),
        (jnp.sum, IMAGES[0, 0], False, ValueError, ["images", "[n, h, w, c]", "(4, 2)"]),
    ],
)
def test_what_does_not_fit_is_named_under_jit_too(penalty, loss_fn, images, has_aux, error, words):
    for call in (penalty, jax.jit(penalty, static_argnums=0, static_argnames="has_aux")):
        with pytest.raises(error) as caught:
            call(loss_fn, images, has_aux=has_aux)
        assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: finite_difference_penalty(jnp.sum, IMAGES, step_size=0.0),
            ValueError,
            ["step_size", "above 0", "0.0"],
        ),
        (
            lambda: gradient_penalty(lambda x: x.sum((1, 2, 3)), IMAGES, size=jnp.sum),
            ValueError,
            ["size", "one number per example", "(3,)", "()"],
        ),
        (lambda: gradient_penalty(lambda x: x.sum((1, 2, 3)), IMAGES, size=linf(1.0)), TypeError, ["size", "function"]),
        (
            lambda: pull_back(flow(), IMAGES[:1], IMAGES),
            ValueError,
            ["image_gradients", "(3, 5, 4, 2)", "(1, 5, 4, 2)"],
        ),
        (lambda: random_start(jax.random.key(0), IMAGES, noise=-1.0), ValueError, ["stddev", "-1.0"]),
        (lambda: random_start(jax.random.key(0), IMAGES.astype(int)), TypeError, ["images", "int"]),
        (lambda: paper_weight(-1, batch_size=1, image_size=2), ValueError, ["weight", "at least 0", "-1"]),
        (lambda: paper_weight(1, batch_size=0, image_size=2), ValueError, ["batch_size", "at least 1", "0"]),
        (lambda: paper_weight(1, batch_size=1.5, image_size=2), TypeError, ["batch_size", "integer", "1.5"]),
        (lambda: paper_weight(1, batch_size=1, image_size=1), ValueError, ["image_size", "at least 2", "1"]),
        (lambda: paper_weight(1, batch_size=1, image_size=(4, 5)), ValueError, ["image_size", "square", "4x5"]),
        (
            lambda: paper_weight(1, batch_size=1, image_size=4, units="metres"),
            ValueError,
            ["units", "metres", "pixels"],
        ),
    ],
)
def test_other_arguments_that_do_not_fit_are_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("dtype", "x64", "rtol"), [("float32", False, 1e-5), ("float32", True, 1e-5), ("bfloat16", False, 0.02)]
)
def test_a_family_of_two_functions_is_enough(dtype, x64, rtol):
    # Its parameters, and so the perturbed images, may have a wider type than the images.
    brightness = Perturbation(
        init=lambda images: jnp.zeros(images.shape[0]),
        apply=lambda params, images: images + params[:, None, None, None],
    )
    weights = random_images(1)
    with jax.enable_x64(x64):
        penalties, _ = gradient_penalty(
            lambda x: jnp.sum(x * weights, axis=(1, 2, 3)), IMAGES.astype(dtype), brightness
        )
    np.testing.assert_allclose(penalties, weights.sum((1, 2, 3)) ** 2, rtol=rtol)
