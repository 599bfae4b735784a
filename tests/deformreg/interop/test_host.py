"""A model on the host behaves like the same model in JAX; its failures are one line."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import perceptron
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from running import python

from deformreg import attacks, cross_entropy, gradient_penalty, linf
from deformreg.certification import certify, gaussian
from deformreg.evaluation import evaluate, suites
from deformreg.interop import ModelError, NoGradients, from_numpy
from deformreg.interop.host import HostModel, logits_function
from deformreg.perturbations import additive

IN_JAX = perceptron(30)
IMAGES = np.random.default_rng(0).random((6, 5, 6, 1)).astype(np.float32)
LABELS = np.asarray(IN_JAX(IMAGES)).argmax(axis=1)
KEY = jax.random.key(0)
SQUARE = attacks.square(ball=linf(0.3), num_queries=8, name="square")
PGD = attacks.pgd(ball=linf(0.3), num_steps=2, name="pgd")


def in_numpy(images):
    rng = np.random.default_rng(0)  # the weights of `perceptron`
    first, second = rng.normal(size=(30, 24)) / np.sqrt(30) * 2, rng.normal(size=(24, 5))
    return np.tanh((images - 0.5).reshape(len(images), -1) @ first) @ second


def with_derivative():
    """The model on the host, its derivative from JAX; the token counts the forward passes."""
    count = []

    def linearize(images):
        count.append(len(images))
        return in_numpy(images), len(count)

    def pull_back(images, token, cotangents):
        assert 1 <= token <= len(count)
        return np.asarray(jax.vjp(IN_JAX, jnp.asarray(images))[1](jnp.asarray(cotangents))[0])

    return logits_function(HostModel(lambda shape: 5, in_numpy, linearize, pull_back, lambda shape: None))


def test_values_and_derivatives_are_those_of_the_same_model_in_jax():
    on_host = with_derivative()

    def loss(logits_fn, images):
        return cross_entropy(logits_fn(images), LABELS)

    np.testing.assert_allclose(on_host(IMAGES), IN_JAX(IMAGES), atol=1e-5)
    (value, gradient), (expected, expected_gradient) = (
        jax.jit(jax.value_and_grad(lambda images, f=f: loss(f, images).sum()))(IMAGES) for f in (on_host, IN_JAX)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)
    batches = jnp.stack([IMAGES, 1 - IMAGES])
    np.testing.assert_allclose(jax.vmap(on_host)(batches), jax.vmap(IN_JAX)(batches), atol=1e-5)
    penalties = [gradient_penalty(lambda images, f=f: loss(f, images), IMAGES)[0] for f in (on_host, IN_JAX)]
    np.testing.assert_allclose(*penalties, rtol=1e-4)


def test_an_attack_on_the_host_is_the_attack_in_jax():
    results = [jax.jit(lambda f=f: PGD.run(f, IMAGES, LABELS, KEY))() for f in (with_derivative(), IN_JAX)]
    np.testing.assert_allclose(results[0].losses, results[1].losses, atol=1e-5)
    np.testing.assert_array_equal(results[0].success, results[1].success)


def test_second_derivatives_are_refused():
    on_host = with_derivative()

    def penalty(images):
        return gradient_penalty(lambda images: cross_entropy(on_host(images), LABELS), images)[0].sum()

    with pytest.raises(NoGradients, match="first derivatives only"):
        jax.grad(penalty)(jnp.asarray(IMAGES))


def recorder(function=in_numpy):
    calls = []

    def model(images):
        calls.append(len(images))
        return function(images)

    return model, calls


def test_gradient_attacks_are_refused_before_the_model_is_called():
    model, calls = recorder()
    logits_fn = from_numpy(model, 5)
    with pytest.raises(NoGradients, match="has no gradients: use attacks without them"):
        PGD.run(logits_fn, IMAGES, LABELS, KEY)
    with pytest.raises(NoGradients, match="attack 'pgd' needs gradients"):
        evaluate(lambda images: logits_fn(2 * images), IMAGES, LABELS, [SQUARE, PGD], key=KEY)
    assert calls == []


@pytest.mark.slow
def test_a_model_of_one_batch_size_is_evaluated_and_certified():
    model, calls = recorder()
    logits_fn = from_numpy(model, 5, batch_size=4)
    results = [evaluate(f, IMAGES, LABELS, [SQUARE], batch_size=6, key=KEY) for f in (logits_fn, IN_JAX)]
    np.testing.assert_array_equal(*(result.standing_mask for result in results))
    assert results[0].flags == ()
    certify(logits_fn, IMAGES[:1], law=gaussian(0.1), perturbation=additive(), num_selection=5, num_samples=10, key=KEY)
    assert set(calls) == {4}
    assert logits_fn(IMAGES[:0]).shape == (0, 5)


WITH_ONE_THREAD = """
import jax
import numpy as np

from deformreg.interop import from_numpy

LARGE = np.ones((4, 100, 100, 3), np.float32)
model = jax.jit(lambda images: from_numpy(lambda images: images[:, 0, :2, 0], 2)(images + 1))
print(float(model(LARGE).sum()))
"""


@pytest.mark.slow
def test_a_model_may_be_called_where_jax_has_one_thread():
    environment = {**os.environ, "PJRT_NPROC": "1", "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
    assert python(WITH_ONE_THREAD, environment=environment) == "16.0\n"


@pytest.mark.slow
def test_every_device_may_call_the_model(cpus):
    model, calls = recorder()
    logits_fn, images = from_numpy(model, 5), np.concatenate([IMAGES, IMAGES[:2]])
    expected = IN_JAX(images)
    np.testing.assert_allclose(
        jax.pmap(logits_fn, devices=cpus[:4])(images.reshape(4, 2, 5, 6, 1)).reshape(8, 5), expected, atol=1e-5
    )
    mesh = jax.make_mesh((4,), ("data",), devices=cpus[:4], axis_types=(AxisType.Auto,))
    sharded = jax.shard_map(logits_fn, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_allclose(jax.jit(sharded)(images), expected, atol=1e-5)
    assert calls == [2] * 8
    together = jax.jit(lambda images: 2 * logits_fn(images))
    spread = jax.device_put(images, NamedSharding(mesh, P("data")))
    np.testing.assert_allclose(together(spread), 2 * expected, atol=1e-5)
    assert set(calls[8:]) == {8}  # every processor device asks for the whole batch


def hard(images):
    return 5.0 * np.eye(5)[in_numpy(images).argmax(axis=1)]


def test_outputs_that_do_not_respond_are_flagged_without_gradients():
    result = evaluate(from_numpy(hard, 5), IMAGES, LABELS, [SQUARE], batch_size=6, key=KEY)
    assert [flag.name for flag in result.flags] == ["outputs_do_not_respond"]
    shifted = SQUARE._replace(
        perturbation=SQUARE.perturbation._replace(apply=lambda params, images: images + 0.1 + 0 * params[..., :1])
    )
    result = evaluate(from_numpy(in_numpy, 5), IMAGES, LABELS, [shifted], image_range=(0, 2), key=KEY)
    assert {"identity_changes_the_loss", "outputs_do_not_respond"} <= {flag.name for flag in result.flags}


def failing(images):
    raise ConnectionError("the service\nis gone")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (failing, r"the model failed on images of shape \(6, 5, 6, 1\): ConnectionError: the service is gone$"),
        (lambda images: images.sum(axis=(1, 2, 3)), r"logits of shape \(6, classes\), got float32 of shape \(6,\)$"),
        (lambda images: in_numpy(images)[:, :4], r"logits of 5 classes, got shape \(6, 4\)$"),
        (lambda images: in_numpy(images)[:1], r"logits of shape \(6, classes\), got float64 of shape \(1, 5\)$"),
        (lambda images: [str(image) for image in images], r"logits of shape \(6, classes\), got <U"),
    ],
)
def test_failures_are_one_line(function, message):
    logits_fn = from_numpy(function, 5)
    with pytest.raises(ModelError, match=message):
        logits_fn(IMAGES)
    with pytest.raises(ModelError, match=message) as caught:
        evaluate(logits_fn, IMAGES, LABELS, [SQUARE], key=KEY, batch_size=6)
    assert "\n" not in str(caught.value)


def test_a_model_that_fails_later_ends_the_evaluation_with_its_line():
    model, calls = recorder(lambda images: in_numpy(images) if len(calls) < 9 else failing(images))
    with pytest.raises(ModelError, match=r"the service is gone$"):
        evaluate(from_numpy(model, 5), IMAGES, LABELS, [SQUARE], key=KEY)
    assert len(calls) == 9


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="function must be a function, got float64"):
        from_numpy(np.zeros(3), 5)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        from_numpy(in_numpy, 1)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        from_numpy(in_numpy, 5, batch_size=0)
    with pytest.raises(ValueError, match="images must have shape"):
        from_numpy(in_numpy, 5)(IMAGES[0, 0])


@pytest.mark.slow
def test_the_gradient_free_suite_breaks_a_model_without_gradients():
    data = np.random.default_rng(1).random((24, 5, 6, 1)).astype(np.float32)
    labels = np.asarray(IN_JAX(data)).argmax(axis=1)
    result = evaluate(from_numpy(in_numpy, 5), data, labels, suites.gradient_free(0.3), batch_size=8, key=KEY)
    assert result.robust_accuracy < 0.5
    assert result.flags == ()


def test_the_host_gets_types_that_it_knows():
    seen = []

    def model(images):
        seen.append(images.dtype)
        return np.zeros((len(images), 2), np.float32)

    logits_fn = from_numpy(model, 2)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        logits_fn(jnp.ones((1, 2, 2, 1), dtype))
        jax.jit(logits_fn)(jnp.ones((1, 2, 2, 1), dtype)).block_until_ready()
    assert set(seen) == {np.dtype(np.float32)}
