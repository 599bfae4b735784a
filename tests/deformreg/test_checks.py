"""Arguments that do not fit are refused by every function that takes them, in one line that says what to give."""

import warnings

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import perceptron
from flax import nnx

import deformreg
from deformreg import attacks, balls, noise, perturbations
from deformreg.attacks.attack import as_argument
from deformreg.certification import Certificates, gaussian, smoothed_predictions, smoothed_votes

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).random((4, 5, 6, 1)).astype(np.float32)
LABELS = np.arange(4)
LOGITS = perceptron(30)
BALL = balls.linf(0.1)


def losses(images):
    return images.sum(axis=(1, 2, 3))


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


INFINITE = {
    "linf": balls.linf,
    "l2": balls.l2,
    "l2 of one example": lambda value: balls.l2(np.array([1.0, value])),
    "pixelwise_l2": balls.pixelwise_l2,
    "elastic": attacks.elastic,
    "adef": lambda value: attacks.adef(sigma=value),
    "spatial pixels": lambda value: attacks.rotation_translation(max_pixels=value),
    "spatial component": lambda value: attacks.rotation_translation(max_component=value),
    "step": lambda value: attacks.pgd(ball=BALL, num_steps=2, step_size=value),
    "gaussian": noise.gaussian,
    "uniform": noise.uniform,
    "within": lambda value: perturbations.flow(within=value).apply(jnp.zeros((4, 5, 6, 2)), jnp.asarray(IMAGES)),
    "sigma": lambda value: perturbations.lowres_flow(2, sigma=value),
}


@pytest.mark.parametrize("make", INFINITE.values(), ids=INFINITE)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_infinite_sizes_are_named(make, value):
    with pytest.raises(ValueError, match=r"must be (finite|at least 0), got") as caught:
        make(value)
    one_line(caught)


def test_an_attack_without_a_bound_is_no_mistake():
    for unbounded in (np.inf, float("inf")):
        assert attacks.adef(max_norm=unbounded).run(LOGITS, IMAGES, LABELS, KEY).success.shape == (4,)
    with pytest.raises(ValueError, match="max_norm must be at least 0"):
        attacks.adef(max_norm=np.nan)


ATTACKS = {
    "pgd": lambda **options: attacks.pgd(num_steps=1, **options),
    "apgd": lambda **options: attacks.apgd(**options),
    "greedy": lambda **options: attacks.greedy(**options),
    "square": lambda **options: attacks.square(**options),
    "random_fields": lambda **options: attacks.random_fields(**options),
    "spsa": lambda **options: attacks.spsa(**options),
    "nes": lambda **options: attacks.nes(**options),
    "multi_step": lambda **options: deformreg.multi_step(losses, IMAGES, num_steps=1, **options),
    "one_step": lambda **options: deformreg.one_step(losses, IMAGES, **options),
}


@pytest.mark.parametrize("make", [*ATTACKS.values(), attacks.stadv], ids=[*ATTACKS, "stadv"])
@pytest.mark.parametrize(("ball", "words"), [(0.5, "got 0.5"), (balls.linf, "call it, linf(...)")])
def test_what_is_no_ball_is_named(make, ball, words):
    with pytest.raises(TypeError) as caught:
        make(ball=ball)
    message = one_line(caught)
    assert "ball must be of type Ball, for example deformreg.linf(0.5)" in message
    assert words in message


@pytest.mark.parametrize("name", ["apgd", "square", "random_fields", "spsa", "nes"])
def test_radii_that_an_attack_does_not_take_are_named(name):
    with pytest.raises(ValueError, match=r"ball must have one .*got radii of shape"):
        ATTACKS[name](ball=balls.l2(np.ones(4)))


@pytest.mark.parametrize("ball", [balls.linf, balls.pixelwise_l2], ids=["linf", "pixelwise_l2"])
def test_the_greedy_attack_names_radii_that_are_several(ball):
    with pytest.raises(ValueError, match=r"the ball's radius must be one number, got .* of shape \(4,\)"):
        ATTACKS["greedy"](ball=ball(np.ones(4)))


FAMILIES = {
    **{
        name: lambda family, make=make: make(ball=BALL, perturbation=family)
        for name, make in ATTACKS.items()
        if name != "greedy"
    },
    "gradient_penalty": lambda family: deformreg.gradient_penalty(losses, IMAGES, family),
    "finite differences": lambda family: deformreg.finite_difference_penalty(losses, IMAGES, family),
    "forward over reverse": lambda family: deformreg.forward_over_reverse_penalty(losses, IMAGES, family),
    "pull_back": lambda family: perturbations.pull_back(family, IMAGES, IMAGES),
    "random_start": lambda family: deformreg.random_start(KEY, IMAGES, family),
    "certify": lambda family: deformreg.certify(LOGITS, IMAGES, law=gaussian(0.1), perturbation=family, key=KEY),
    "votes": lambda family: smoothed_votes(LOGITS, IMAGES, law=gaussian(0.1), perturbation=family, key=KEY),
    "answers": lambda family: smoothed_predictions(LOGITS, IMAGES, law=gaussian(0.1), perturbation=family, key=KEY),
}


@pytest.mark.parametrize("use", FAMILIES.values(), ids=FAMILIES)
def test_a_family_that_was_not_called_is_named(use):
    with pytest.raises(TypeError, match=r"perturbation must be of type Perturbation.*call it, flow\(\.\.\.\)"):
        use(deformreg.flow)


KEYS = {
    "run": lambda key: attacks.pgd(ball=BALL, num_steps=1).run(LOGITS, IMAGES, LABELS, key),
    "multi_step": lambda key: deformreg.multi_step(losses, IMAGES, ball=BALL, num_steps=1, start="random", key=key),
    "random_start": lambda key: deformreg.random_start(key, IMAGES),
    "certify": lambda key: deformreg.certify(LOGITS, IMAGES, law=gaussian(0.1), num_samples=20, key=key),
    "votes": lambda key: smoothed_votes(LOGITS, IMAGES, law=gaussian(0.1), num_samples=20, key=key),
    "answers": lambda key: smoothed_predictions(LOGITS, IMAGES, law=gaussian(0.1), num_samples=20, key=key),
}


@pytest.mark.parametrize("use", KEYS.values(), ids=KEYS)
def test_numbers_are_no_keys(use):
    for wrong in (0, np.int32(3), jnp.zeros(2)):
        with pytest.raises(TypeError, match=r"key must be a JAX random key.*jax\.random\.key\(0\)") as caught:
            use(wrong)
        one_line(caught)
    for right in (KEY, jax.random.PRNGKey(0), np.asarray(jax.random.PRNGKey(0))):
        use(right)


LAYOUTS = {
    "run": lambda images: attacks.pgd(ball=BALL, num_steps=1).run(lambda x: x.mean((2, 3)), images, LABELS[:2], KEY),
    "multi_step": lambda images: deformreg.multi_step(losses, images, ball=BALL, num_steps=1),
    "gradient_penalty": lambda images: deformreg.gradient_penalty(losses, images),
    "finite differences": lambda images: deformreg.finite_difference_penalty(losses, images),
    "forward over reverse": lambda images: deformreg.forward_over_reverse_penalty(losses, images),
    "certify": lambda images: deformreg.certify(lambda x: x.mean((2, 3)), images, law=gaussian(0.1), key=KEY),
    "votes": lambda images: smoothed_votes(lambda x: x.mean((2, 3)), images, law=gaussian(0.1), key=KEY),
    "answers": lambda images: smoothed_predictions(lambda x: x.mean((2, 3)), images, law=gaussian(0.1), key=KEY),
}


@pytest.mark.parametrize("use", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 3, 24, 32), (2, 4, 48, 64), (2, 1, 28, 28)])
def test_channels_in_front_are_named(use, shape):
    with pytest.raises(ValueError, match=r"\[n, h, w, c\].*looks like \[n, c, h, w\]: transpose"):
        use(np.zeros(shape, np.float32))


LIKELY = [
    *((2, 1, 28, 1), (2, 1, 128, 9), (2, 3, 7, 7), (2, 8, 8, 64), (2, 3, 28, 4), (2, 3, 64, 8), (2, 4, 16, 8)),
    *((2, 32, 32, 32), (2, 3, 64, 16), (2, 64, 3, 32), (2, 4, 16, 16, 8), (2, 8, 16, 16, 4), (2, 64, 8), (2, 9, 7)),
]


@pytest.mark.parametrize("shape", LIKELY)
def test_small_images_and_many_channels_are_no_mistake(shape):
    penalties, _ = deformreg.gradient_penalty(total, np.zeros(shape, np.float32))
    assert penalties.shape == (2,)


DOUBTFUL = [
    *((2, 1, 8, 8), (2, 3, 16, 16), (2, 64, 32, 32), (2, 2, 48, 48), (2, 1, 80, 100)),
    *((2, 3, 16, 16, 16), (2, 1, 9, 9, 9), (2, 28, 28), (2, 8, 64), (2, 20, 40)),
]


@pytest.mark.parametrize("shape", DOUBTFUL)
def test_what_may_be_either_layout_is_computed_with_a_warning(shape):
    """Once for all calls of a place, which is the caller's; families that move no pixels do not ask."""
    images = np.zeros(shape, np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            penalties, _ = deformreg.gradient_penalty(total, images)
    assert penalties.shape == (2,)
    (one,) = caught
    assert (one.category, one.filename) == (UserWarning, __file__)
    kind = "signals" if len(shape) == 3 else "images"
    assert str(one.message).startswith(f"{kind} of shape {shape} are read as [n, ")
    assert "but may be" in str(one.message)
    assert "transpose" in str(one.message)
    deformreg.gradient_penalty(total, images, deformreg.additive())


def test_exchanged_axes_go_around_the_check_of_the_layout():
    images = np.random.default_rng(0).random((2, 3, 30, 40)).astype(np.float32)
    with pytest.raises(ValueError, match="looks like"):
        deformreg.gradient_penalty(squares, images)
    there, _ = deformreg.gradient_penalty(lambda x: squares(x.swapaxes(1, 2)), images.swapaxes(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deformreg.penalties.exact.check_layout", lambda *_: None)
        here, _ = deformreg.gradient_penalty(squares, images)
    np.testing.assert_allclose(there, here, rtol=1e-5)


def total(images):
    return images.reshape(len(images), -1).sum(axis=1)


def squares(images):
    return total(images**2 * np.arange(3, dtype=np.float32)[:, None, None])


@pytest.mark.parametrize("result", [lambda x: (x, x), lambda x: None, lambda x: {"loss": x}, lambda x: x[:1]])
def test_what_is_no_loss_per_example_is_named(result):
    for use in (deformreg.image_gradients, deformreg.gradient_penalty, _steps):
        with pytest.raises((TypeError, ValueError), match="loss_fn") as caught:
            use(lambda images: result(losses(images)), IMAGES)
        one_line(caught)


def _steps(loss_fn, images):
    return deformreg.multi_step(loss_fn, images, ball=BALL, num_steps=1)


@pytest.mark.parametrize(
    "logits", [lambda x: (x, x), lambda x: x[:, 0], lambda x: x[:, :1], lambda x: None, lambda x: x.astype(int)]
)
def test_certificates_need_logits(logits):
    with pytest.raises((TypeError, ValueError), match="logits_fn must return logits") as caught:
        deformreg.certify(lambda images: logits(LOGITS(images)), IMAGES, law=gaussian(0.1), key=KEY)
    one_line(caught)


def test_what_is_no_array_of_numbers_is_named():
    for wrong in (None, "images", {"images": IMAGES}, (IMAGES, LABELS), np.array([object()])):
        for use in (deformreg.gradient_penalty, _steps):
            with pytest.raises(TypeError, match="images must be an array") as caught:
                use(losses, wrong)
            one_line(caught)
        with pytest.raises(TypeError, match="images must be"):
            deformreg.certify(LOGITS, wrong, law=gaussian(0.1), key=KEY)


def test_big_endian_images_are_read():
    swapped = IMAGES.astype(">f4")
    for use in (deformreg.gradient_penalty, _steps):
        for mine, theirs in zip(
            jax.tree.leaves(use(losses, IMAGES)), jax.tree.leaves(use(losses, swapped)), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
    found = deformreg.certify(LOGITS, swapped, law=gaussian(0.01), num_samples=20, key=KEY)
    assert found.predictions.shape == (4,)


def test_certified_accuracy_checks_labels_and_radii():
    found = Certificates(np.zeros(2, int), np.ones(2), np.ones(2), "l2 norm", 1.5, 100, 1000, 0.001, 3300, 1.0)
    for labels in ([0, -1], [0, 2**40]):
        with pytest.raises(ValueError, match="labels must be in"):
            deformreg.certified_accuracy(found, labels, [0.0])
    for radii in ([0.0, np.inf], [0.0, np.nan], [np.nan], [], [1.0, 0.5]):
        with pytest.raises(ValueError, match="radii must increase from at least 0"):
            deformreg.certified_accuracy(found, [0, 0], radii)


def test_a_model_in_training_mode_is_told_what_to_do():
    norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
    loss_fn, logits_fn = (lambda images: losses(norm(images))), (lambda images: norm(images)[:, :2, 0, 0])
    attack = attacks.pgd(ball=BALL, num_steps=1)
    calls = (
        ("loss_fn", lambda: deformreg.gradient_penalty(loss_fn, IMAGES)),
        ("loss_fn", lambda: deformreg.finite_difference_penalty(loss_fn, IMAGES)),
        ("loss_fn", lambda: deformreg.multi_step(loss_fn, IMAGES, ball=BALL, num_steps=1)),
        ("logits_fn", lambda: attack.run(logits_fn, IMAGES, LABELS % 2, KEY)),
        ("logits_fn", lambda: deformreg.evaluate(logits_fn, IMAGES, LABELS % 2, [attack], key=KEY)),
        ("logits_fn", lambda: smoothed_votes(logits_fn, IMAGES, law=gaussian(0.1), num_samples=2, key=KEY)),
        ("logits_fn", lambda: deformreg.certify(logits_fn, IMAGES, law=gaussian(0.1), num_samples=20, key=KEY)),
    )
    for name, call in calls:
        with pytest.raises(
            ValueError, match=rf"{name} must not change the model's state: call model.eval\(\)"
        ) as caught:
            call()
        one_line(caught)
    norm.eval()
    assert deformreg.gradient_penalty(loss_fn, IMAGES)[0].shape == (4,)


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_keys_whose_draws_depend_on_other_examples_are_replaced(implementation):
    key = jax.random.fold_in(jax.random.key(3, impl=implementation), 5)
    raw = jax.random.key_data(key)
    same = jax.random.wrap_key_data(raw[:2], impl="threefry2x32")
    attack = attacks.random_fields(ball=BALL, num_fields=3, keep="best")
    expected = attack.run(LOGITS, IMAGES, LABELS, same)
    for one in (key, raw):
        np.testing.assert_array_equal(attack.run(LOGITS, IMAGES, LABELS, one).params, expected.params)
    alone = attack.run(LOGITS, IMAGES[2:], LABELS[2:], jax.random.split(key, 4)[2:])
    together = attack.run(LOGITS, IMAGES, LABELS, jax.random.split(key, 4))
    np.testing.assert_allclose(alone.params, together.params[2:], rtol=1e-6)


def test_numbers_of_a_partial_are_known_when_it_is_compiled():
    """Shapes and branches may depend on them; another value, or another type of it, compiles anew."""
    seen = []

    def network(weights, images, *, groups, scale, strides=None, padding=(0, (1,))):
        seen.append((groups, scale, strides, padding))
        logits = LOGITS(images).reshape(len(images), groups, -1).reshape(len(images), -1)
        return logits * weights * (1.0 if scale > 0.5 else jnp.nan)

    def certified(**keywords):
        seen.clear()
        logits_fn = jax.tree_util.Partial(network, jnp.float32(2.0), **keywords)
        found = deformreg.certify(logits_fn, IMAGES[:1], law=gaussian(0.1), num_samples=20, key=KEY)
        assert found.predictions[0] >= 0
        return set(seen)

    assert certified(groups=5, scale=1.5) == {(5, 1.5, None, (0, (1,)))}
    assert certified(groups=1, scale=1.0, strides=(2, 2), padding=None) == {(1, 1.0, (2, 2), None)}
    one, true = (as_argument(jax.tree_util.Partial(network, groups=value)) for value in (1, True))
    same = as_argument(jax.tree_util.Partial(network, groups=1))
    assert jax.tree.structure(one) == jax.tree.structure(same) != jax.tree.structure(true)


@pytest.mark.parametrize(
    ("logits_fn", "place"),
    [
        (
            jax.tree_util.Partial(lambda p, x: LOGITS(x), {"w": IMAGES, "f": [jnp.tanh]}),
            "the function tanh at args[0]['f'][0]",
        ),
        (jax.tree_util.Partial(lambda x, p: LOGITS(x), p={"name": "cnn"}), "'cnn' at keywords['p']['name']"),
        (jax.tree_util.Partial(lambda p, x: LOGITS(x), "cnn"), "'cnn' at args[0]"),
        (jax.tree_util.Partial(lambda p, x: LOGITS(x), np.array([None])), "object of shape (1,) at args[0]"),
        (
            jax.tree_util.Partial(lambda p, x: LOGITS(x), equinox.nn.MLP(2, 2, 2, 1, key=KEY)),
            "at args[0].activation",
        ),
    ],
    ids=["dict", "keyword", "string", "objects", "equinox"],
)
def test_what_is_no_array_in_a_partial_is_named(logits_fn, place):
    attack = attacks.pgd(ball=BALL, num_steps=1)
    for use in (
        lambda: deformreg.evaluate(logits_fn, IMAGES, LABELS, [attack], key=KEY),
        lambda: deformreg.certify(logits_fn, IMAGES, law=gaussian(0.1), num_samples=20, key=KEY),
        lambda: deformreg.evaluation.frames(logits_fn, IMAGES, LABELS, np.zeros((4, 5, 6, 2))),
    ):
        with pytest.raises(TypeError, match=r"logits_fn must be a Partial of arrays, got .*: close over it") as caught:
            use()
        assert place in one_line(caught)
        assert "equinox.partition" in one_line(caught)


def test_flags_of_a_partial_stay_flags():
    def network(weights, images, *, train, scale):
        return LOGITS(images) * (weights if not train else jnp.nan) * scale

    logits_fn = jax.tree_util.Partial(network, jnp.float32(2.0), train=False, scale=jnp.float32(0.5))
    found = deformreg.evaluate(logits_fn, IMAGES, LABELS, [attacks.pgd(ball=BALL, num_steps=1)], key=KEY)
    again = deformreg.evaluate(LOGITS, IMAGES, LABELS, [attacks.pgd(ball=BALL, num_steps=1)], key=KEY)
    assert (found.clean_accuracy, found.robust_accuracy) == (again.clean_accuracy, again.robust_accuracy)


def test_a_number_per_example_has_no_length():
    with pytest.raises(ValueError, match=r"pixelwise_l2 bounds the vectors .* shape \(4,\): use linf") as caught:
        balls.pixelwise_l2(0.5).project(jnp.ones(4))
    one_line(caught)


def test_draws_beside_a_grid_are_refused():
    with pytest.raises(ValueError, match=r"num_draws=50 has no effect beside a grid: give grid=None") as caught:
        attacks.rotation_translation(num_draws=50)
    one_line(caught)
    assert attacks.rotation_translation(grid=None).settings["num_draws"] == 10
