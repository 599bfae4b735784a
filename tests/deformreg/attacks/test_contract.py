"""The contract of every attack."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import perceptron

from deformreg import attacks, balls, losses, released
from deformreg.attacks import DifferenceNorms, Examples, FlowNorms
from deformreg.attacks.search import fresh, objective, record, runners_up
from deformreg.evaluation import suites
from deformreg.perturbations import additive
from deformreg.testing import check_attack

pytestmark = pytest.mark.usefixtures("strict_promotion")

SHAPE = (5, 6, 1)
RADIUS = 0.4
BALL = balls.linf(RADIUS)
LOGITS = perceptron(30)

ATTACKS = {
    "released": attacks.pgd(ball=BALL, num_steps=4),
    "restarts": attacks.pgd(ball=balls.pixelwise_l2(RADIUS), num_steps=3, restarts=2, start="random", keep="any"),
    "pixels": attacks.pgd(ball=balls.l2(0.3), num_steps=4, perturbation=additive(image_range=(0.0, 1.0)), keep="best"),
    "apgd": attacks.apgd(ball=BALL, num_steps=8),
    "apgd-targets": attacks.apgd(ball=BALL, num_steps=4, loss="dlr", num_targets=2, restarts=2),
    "greedy": attacks.greedy(ball=BALL, num_steps=8),
    "greedy-pixelwise": attacks.greedy(ball=balls.pixelwise_l2(RADIUS), num_steps=12, keep="best"),
    "random": attacks.random_fields(ball=BALL, num_fields=5),
    "square": attacks.square(ball=BALL, num_queries=12),
    "grid": attacks.rotation_translation(grid=(3, 2, 2), max_component=RADIUS),
    "worst": attacks.rotation_translation(grid=None, num_draws=4, max_degrees=10, max_pixels=0.5, keep="best"),
    "elastic": attacks.elastic(RADIUS, num_steps=4),
    "elastic-raw": attacks.elastic(RADIUS, num_steps=4, bound="raw", stride=2),
    "adef": attacks.adef(max_norm=RADIUS, num_steps=6, candidates=2, sigma=0.5),
    "stadv": attacks.stadv(num_evaluations=8, ball=BALL, memory_size=3),
    "spsa": attacks.spsa(ball=BALL, num_steps=8, num_samples=20),
    "nes": attacks.nes(ball=BALL, num_steps=8, num_samples=20, keep="last"),
    "transfer": attacks.transfer(attacks.pgd(ball=BALL, num_steps=3, keep="best"), perceptron(30, seed=3)),
}
TARGETED = ("released", "apgd", "greedy", "greedy-pixelwise", "square", "adef", "stadv", "transfer")


def examples(count=6, seed=0):
    images = np.random.default_rng(seed).random((count, *SHAPE)).astype(np.float32)
    return jnp.asarray(images), jnp.argmax(LOGITS(images), axis=1)


@functools.cache
def compiled(name):
    return jax.jit(lambda images, labels, key: ATTACKS[name].run(LOGITS, images, labels, key))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_result_is_what_it_says(name):
    attack = ATTACKS[name]
    images, labels = examples()
    result = check_attack(attack, LOGITS, images, labels, key=jax.random.key(0))
    assert result.success.any()
    if name == "pixels":
        assert isinstance(result.norms, DifferenceNorms)
        assert (result.norms.l2 <= 0.3 + 1e-5).all()
    else:
        assert isinstance(result.norms, FlowNorms)
        if attack.budget.unit == "pixels":
            assert (result.norms.max_component <= RADIUS * (1 + 1e-4)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "name"),
    [
        *(((30, 1), name) for name in ("released", "greedy", "square", "stadv")),
        *(((2, 3, 5, 1), name) for name in ATTACKS if name not in ("grid", "worst", "apgd-targets")),
    ],
)
def test_signals_and_volumes_are_attacked_likewise(name, shape):
    images, labels = examples()
    result = check_attack(ATTACKS[name], LOGITS, images.reshape(-1, *shape), labels, key=jax.random.key(0))
    assert result.success.any()


@pytest.mark.parametrize("shape", [(30, 1), (2, 3, 5, 1)], ids=["signals", "volumes"])
def test_rotations_refuse_signals_and_volumes(shape):
    images, labels = examples()
    with pytest.raises(ValueError, match=r"affine\(\) moves images \[n, h, w, c\] only, got shape"):
        ATTACKS["grid"].run(LOGITS, images.reshape(len(images), *shape), labels, jax.random.key(0))


@pytest.mark.parametrize("name", TARGETED)
def test_a_targeted_success_reaches_the_target(name):
    attack = ATTACKS[name]
    images, labels = examples()
    targets = jnp.argsort(LOGITS(images), axis=1)[:, -2]
    result = jax.jit(lambda key: attack.run(LOGITS, images, labels, key, targets))(jax.random.key(0))
    np.testing.assert_array_equal(jnp.argmax(LOGITS(result.images), axis=1) == targets, result.success)
    assert result.success.any() or name == "transfer"  # whose gradients are those of another model


def test_apgd_aims_at_no_more_classes_than_there_are():
    images, labels = examples()
    makers = [attacks.apgd(ball=BALL, num_steps=3, num_targets=count) for count in (4, 9)]
    some, more = (attack.run(LOGITS, images, labels, jax.random.key(0)) for attack in makers)
    np.testing.assert_array_equal(some.params, more.params)
    np.testing.assert_array_equal(some.model_calls, more.model_calls)


def masked(logits_fn, count=2):
    """The model with more classes, each masked out by a logit of -inf, as a switch between tasks leaves them."""
    return lambda images: jnp.pad(logits_fn(images), [(0, 0), (0, count)], constant_values=-jnp.inf)


AIMED = {
    "apgd-all-targets": attacks.apgd(ball=BALL, num_steps=3, loss="dlr", num_targets=9),
    "apgd-margin-targets": attacks.apgd(ball=BALL, num_steps=3, loss="margin", num_targets=9, restarts=2, keep="best"),
    "pgd-dlr": attacks.pgd(ball=BALL, num_steps=4, loss="dlr"),
    "pgd-margin": attacks.pgd(ball=BALL, num_steps=4, loss="margin"),
}


@pytest.mark.parametrize(
    ("name", "classes"),
    [*((name, 5) for name in (*ATTACKS, *AIMED)), *((name, 3) for name in ("apgd-targets", *AIMED))],
)
def test_classes_that_are_masked_out_change_no_attack(name, classes):
    """Neither what is found nor what it costs. With three classes the margin replaces the ratio of logits."""
    attack, logits_fn, images = {**ATTACKS, **AIMED}[name], perceptron(30, classes=classes), examples()[0]
    labels = jnp.argmax(logits_fn(images), axis=1)
    plain = attack.run(logits_fn, images, labels, jax.random.key(0))
    result = attack.run(masked(logits_fn), images, labels, jax.random.key(0))
    np.testing.assert_array_equal(result.success, plain.success)
    np.testing.assert_array_equal(result.model_calls, plain.model_calls)
    np.testing.assert_allclose(result.params, plain.params, atol=1e-5)
    np.testing.assert_allclose(result.losses, plain.losses, atol=1e-4)


def test_adef_aims_at_no_class_that_is_masked_out():
    """Of six candidates two are masked out: the last of the others takes their place."""
    images, labels = examples()
    four, six = (attacks.adef(max_norm=RADIUS, num_steps=6, candidates=count) for count in (4, 6))
    plain = four.run(LOGITS, images, labels, jax.random.key(0))
    result = six.run(masked(LOGITS), images, labels, jax.random.key(0))
    assert plain.success.any()
    np.testing.assert_array_equal(result.success, plain.success)
    np.testing.assert_allclose(result.params, plain.params, atol=1e-5)


@pytest.mark.parametrize("name", ["released", "greedy", "square", "adef", "stadv", "nes", *AIMED])
def test_an_image_with_a_single_class_left_is_not_broken(name):
    images, labels = examples()
    only = lambda images: jnp.where(labels[:, None] == jnp.arange(5)[None], LOGITS(images), -jnp.inf)  # noqa: E731
    result = {**ATTACKS, **AIMED}[name].run(only, images, labels, jax.random.key(0))
    assert not result.success.any()
    assert np.isfinite(result.params).all()


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
@pytest.mark.parametrize("targeted", [False, True])
def test_gradients_are_finite_where_classes_are_masked_out(loss, targeted):
    """The masked class may be any but the label or the target; in the last rows fewer than four are left."""
    images, labels = examples()
    targets = (labels + 1) % 5 if targeted else None
    away = (jnp.arange(5)[None] - labels[:, None]) % 5  # 0 is the label, 1 the target
    left = jnp.array([5, 5, 4, 3, 2, 2])[:, None]
    given = Examples(images, labels, jax.random.split(jax.random.key(0), 6), targets)

    def total(images):
        return objective(loss, jnp.where(away < left, LOGITS(images), -jnp.inf), given).sum()

    value, gradient = jax.value_and_grad(total)(images)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()


def test_runners_up_are_classes_that_the_logits_allow():
    logits = jnp.array([[5.0, 1.0, 3.0, -jnp.inf], [-jnp.inf, 2.0, -jnp.inf, 7.0], [-jnp.inf, -jnp.inf, 1.0, -jnp.inf]])
    found = runners_up(logits, jnp.array([0, 3, 2]), 3)
    assert found[:2].tolist() == [[2, 1, 1], [1, 1, 1]]
    assert len(set(found[2].tolist())) == 1  # no class to aim at


def test_arguments_are_checked_by_name():
    images, labels = examples()
    with pytest.raises(ValueError, match="labels must have shape"):
        ATTACKS["released"].run(LOGITS, images, labels[:2], jax.random.key(0))
    with pytest.raises(TypeError, match="targets must be integers"):
        ATTACKS["released"].run(LOGITS, images, labels, jax.random.key(0), targets=jnp.ones(6))
    with pytest.raises(ValueError, match="num_targets needs a named loss"):
        attacks.apgd(ball=BALL, num_targets=2, loss=losses.margin).run(LOGITS, images, labels, jax.random.key(0))
    with pytest.raises(ValueError, match="keep must be one of"):
        attacks.square(ball=BALL, keep="last")
    with pytest.raises(ValueError, match="step_size must be at least 0"):
        attacks.pgd(ball=BALL, num_steps=3, step_size=-1.0)
    makers = (attacks.apgd, attacks.square, attacks.random_fields, attacks.spsa, attacks.nes)
    for make in (*(functools.partial(make, ball=BALL) for make in makers), attacks.rotation_translation,
                 functools.partial(attacks.pgd, ball=BALL, num_steps=3)):  # fmt: skip
        with pytest.raises(ValueError, match="loss must be one of 'cross_entropy', 'margin', 'dlr', got 'hinge'"):
            make(loss="hinge")


@pytest.mark.slow
def test_a_gradient_that_is_not_a_number_is_no_success():
    def logits_fn(images):
        length = jnp.sqrt(jnp.sum(images**2, axis=(1, 2, 3)))  # its slope at zero is not a number
        return jnp.stack([jnp.full_like(length, 0.1), length], axis=1)

    images, labels = jnp.zeros((2, *SHAPE)), np.zeros(2, int)
    pixels = {"ball": BALL, "perturbation": additive(), "num_steps": 3, "keep": "any"}
    stuck = [
        attacks.pgd(**pixels),
        attacks.apgd(**pixels, start="zero"),
        attacks.adef(),
        attacks.stadv(num_evaluations=3),
        attacks.greedy(ball=BALL, num_steps=3, keep="best"),
    ]
    for attack in stuck:
        result = attack.run(logits_fn, images, labels, jax.random.key(0))
        assert not result.success.any(), attack.name
        np.testing.assert_array_equal(result.params, 0)
    result = attacks.pgd(**pixels, restarts=2).run(logits_fn, images, labels, jax.random.key(0))
    assert result.success.all()
    assert np.isfinite(result.images).all()
    # Parameters that are not finite are no success either.
    search = fresh(Examples(images, labels, jax.random.split(jax.random.key(0))), images.at[0, 0].set(jnp.nan))
    noted = record(search, jnp.ones(2), jnp.ones(2, bool), keep="any")
    assert noted.broken.tolist() == noted.done.tolist() == [False, True]
    assert np.isfinite(noted.kept).all()


@pytest.mark.parametrize("breaks", [False, True])
def test_a_candidate_without_an_objective_gives_way_to_the_next(breaks):
    """But not to one that does not break the model, if it does itself."""
    images, labels = jnp.zeros((2, 4, 4, 1)), jnp.zeros(2, int)
    search = fresh(Examples(images, labels, jax.random.split(jax.random.key(0))), images)
    search = record(search, jnp.full(2, jnp.nan), jnp.full(2, breaks), keep="best")
    search = record(search._replace(params=images + 1), jnp.array([-1.0, 2.0]), jnp.array([True, False]), keep="best")
    assert search.kept[:, 0, 0, 0].tolist() == ([1, 0] if breaks else [1, 1])
    assert np.isfinite(search.losses).tolist() == [True, not breaks]


@pytest.mark.parametrize("name", ["restarts", "pixels", "adef", "greedy", "greedy-pixelwise"])
def test_budgets_hold_for_sixteen_bit_images(name):
    images, labels = examples()
    result = compiled(name)(images.astype(jnp.bfloat16), labels, jax.random.key(0))
    assert result.images.dtype == jnp.bfloat16
    assert (ATTACKS[name].size(result.params, images) <= 1 + 1e-4).all()


@pytest.mark.parametrize("suite", [released.suite(), *suites.SUITES.values()], ids=["released", *suites.SUITES])
def test_budgets_and_settings_are_plain_data(suite):
    for attack in suite(jnp.float32(0.5)):
        assert json.loads(json.dumps(attack.budget.radius)) in (0.5, [5.0, 0.5, 0.5])
        json.dumps(attack.settings)


def test_a_radius_of_zero_moves_nothing():
    assert suites.full(0.0)
    images, labels = examples()
    for attack in (
        attacks.adef(max_norm=0.0, num_steps=2),
        attacks.spsa(ball=balls.linf(0.0), num_steps=2, num_samples=2),
        attacks.nes(ball=balls.linf(0.0), num_steps=2, num_samples=2),
        attacks.greedy(ball=balls.linf(0.0), num_steps=3),
        attacks.greedy(ball=balls.pixelwise_l2(0.0), num_steps=3),
    ):
        result = attack.run(LOGITS, images, labels, jax.random.key(0))
        np.testing.assert_array_equal(result.params, 0)
        assert not result.success.any()
        assert np.isfinite(result.losses).all()


@pytest.mark.slow
def test_each_example_keeps_to_its_own_radius():
    images, labels = examples()
    radii, keys = jnp.linspace(0.0, 0.5, len(images)), jax.random.split(jax.random.key(0), len(images))
    makers = (
        functools.partial(attacks.pgd, num_steps=3, start="random", keep="last"),
        functools.partial(attacks.stadv, num_evaluations=4, memory_size=2),
    )
    for make in makers:
        together = make(ball=balls.l2(radii)).run(LOGITS, images, labels, keys).params
        assert (balls.l2(1.0).norm(together) <= radii * (1 + 1e-5)).all()
        for at in (1, 4):
            one = slice(at, at + 1)
            alone = make(ball=balls.l2(radii[at])).run(LOGITS, images[one], labels[one], keys[one]).params
            np.testing.assert_allclose(together[one], alone, atol=1e-5)


def test_logits_that_are_not_finite_are_no_prediction():
    images, labels = examples()
    broken = jax.jit(lambda: ATTACKS["released"].run(lambda x: LOGITS(x) * jnp.nan, images, labels, jax.random.key(0)))
    assert broken().success.all()
