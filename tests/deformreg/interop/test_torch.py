"""A PyTorch module in JAX: the same numbers as in PyTorch, and a module that is left as it was.

Runs where PyTorch is installed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import perceptron

torch = pytest.importorskip("torch")

from cifar_resnet import resnet  # noqa: E402

from deformreg import attacks, balls, cross_entropy, gradient_penalty, losses  # noqa: E402
from deformreg.evaluation import evaluate, suites  # noqa: E402
from deformreg.interop import ModelError, NoGradients, from_torch  # noqa: E402
from deformreg.perturbations import additive  # noqa: E402

KEY = jax.random.key(0)
RADIUS = 0.3
BALL = balls.linf(RADIUS)
IN_JAX = perceptron(30)
IMAGES = np.random.default_rng(0).random((6, 5, 6, 1)).astype(np.float32)
LABELS = np.asarray(IN_JAX(IMAGES)).argmax(axis=1)
COLORS = np.random.default_rng(1).random((4, 32, 32, 3)).astype(np.float32)


class Perceptron(torch.nn.Module):
    """`perceptron`, with a dropout that must be off."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        first = rng.normal(size=(30, 24)).astype(np.float32) / np.sqrt(30) * 2
        self.first = torch.nn.Parameter(torch.tensor(first, dtype=torch.float32))
        self.second = torch.nn.Parameter(torch.tensor(rng.normal(size=(24, 5)), dtype=torch.float32))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, images):
        assert not self.training
        flat = (images - 0.5).permute(0, 2, 3, 1).reshape(len(images), -1)
        return self.dropout(torch.tanh(flat @ self.first)) @ self.second


ATTACKS = {
    "pgd": attacks.pgd(ball=BALL, num_steps=4, restarts=2, start="random", keep="any"),
    "pixels": attacks.pgd(ball=balls.l2(0.3), num_steps=4, perturbation=additive(image_range=(0.0, 1.0)), keep="best"),
    "apgd": attacks.apgd(ball=BALL, num_steps=6, loss="dlr", num_targets=2),
    "greedy": attacks.greedy(ball=BALL, num_steps=6),
    "random": attacks.random_fields(ball=BALL, num_fields=5),
    "square": attacks.square(ball=BALL, num_queries=10),
    "grid": attacks.rotation_translation(grid=(3, 2, 2), max_component=RADIUS),
    "elastic": attacks.elastic(RADIUS, num_steps=4),
    "adef": attacks.adef(max_norm=RADIUS, num_steps=6, candidates=2, sigma=0.5),
    "stadv": attacks.stadv(num_evaluations=8, ball=BALL, memory_size=3),
    "spsa": attacks.spsa(ball=BALL, num_steps=2, num_samples=3),
    "nes": attacks.nes(ball=BALL, num_steps=2, num_samples=3, keep="last"),
    "transfer": attacks.transfer(attacks.pgd(ball=BALL, num_steps=3, keep="best"), from_torch(Perceptron())),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_module_is_the_attack_on_the_same_model_in_jax(name):
    module = Perceptron()
    both = [jax.jit(lambda f=f: ATTACKS[name].run(f, IMAGES, LABELS, KEY))() for f in (from_torch(module), IN_JAX)]
    np.testing.assert_array_equal(*(result.success for result in both))
    np.testing.assert_allclose(*(result.losses for result in both), atol=1e-4)
    assert module.training
    assert module.dropout.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


@pytest.mark.slow
def test_an_evaluation_of_the_module_is_that_of_the_same_model_in_jax():
    modules = from_torch(Perceptron()), IN_JAX
    pair = [evaluate(f, IMAGES, LABELS, suites.quick(RADIUS), batch_size=4, key=KEY) for f in modules]
    np.testing.assert_array_equal(*(result.standing_mask for result in pair))
    assert pair[0].flags == pair[1].flags == ()
    assert pair[0].model_calls == pair[1].model_calls


def test_the_gradient_is_the_one_that_pytorch_computes():
    torch.manual_seed(0)
    module = resnet(width=4)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    logits_fn = from_torch(module, mean=mean, std=std)
    labels = np.arange(4)

    def loss(images):
        return cross_entropy(logits_fn(images), labels)

    values, gradients = jax.jit(jax.value_and_grad(lambda images: loss(images).sum()))(COLORS)
    module.eval()
    inputs = torch.tensor(COLORS).permute(0, 3, 1, 2).requires_grad_()
    standardized = (inputs - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected = torch.nn.functional.cross_entropy(module(standardized), torch.tensor(labels), reduction="sum")
    expected.backward()
    np.testing.assert_allclose(values, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradients, inputs.grad.permute(0, 2, 3, 1), atol=1e-5)
    penalties, _ = gradient_penalty(loss, COLORS, additive())
    np.testing.assert_allclose(penalties, (inputs.grad**2).sum((1, 2, 3)), rtol=1e-3)


class Counting(torch.nn.Module):
    """Counts its forward passes, by batch size."""

    def __init__(self, module):
        super().__init__()
        self.module, self.sizes = module, []

    def forward(self, images):
        self.sizes.append(len(images))
        return self.module(images)


def test_a_step_costs_one_forward_pass_and_late_derivatives_compute_it_again():
    module = Counting(Perceptron())
    logits_fn = from_torch(module)
    step = jax.jit(jax.value_and_grad(lambda images: logits_fn(images).sum()))
    jax.block_until_ready(step(IMAGES))
    module.sizes.clear()
    jax.block_until_ready(step(IMAGES))
    assert module.sizes == [6]
    _, first = jax.vjp(logits_fn, jnp.asarray(IMAGES))
    jax.vjp(logits_fn, 1 - jnp.asarray(IMAGES))
    expected = jax.vjp(IN_JAX, jnp.asarray(IMAGES))[1](jnp.ones((6, 5)))[0]
    np.testing.assert_allclose(first(jnp.ones((6, 5)))[0], expected, atol=1e-5)


def test_a_module_of_one_batch_size_sees_no_other():
    module = Counting(Perceptron())
    logits_fn = from_torch(module, batch_size=4)
    np.testing.assert_allclose(logits_fn(IMAGES), IN_JAX(IMAGES), atol=1e-5)

    def margins(images, f):
        return losses.margin(f(images), LABELS).sum()

    gradients = [jax.jit(jax.grad(lambda images, f=f: margins(images, f)))(IMAGES) for f in (logits_fn, IN_JAX)]
    np.testing.assert_allclose(*gradients, atol=1e-5)
    assert set(module.sizes) == {4}
    assert logits_fn(IMAGES[:0]).shape == (0, 5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.bfloat16, 0.1)])
def test_images_take_the_type_of_the_parameters(dtype, tolerance):
    logits_fn = from_torch(Perceptron().to(dtype))
    assert logits_fn(IMAGES).dtype == jnp.float32
    np.testing.assert_allclose(logits_fn(IMAGES), IN_JAX(IMAGES), atol=tolerance)
    assert jax.grad(lambda images: logits_fn(images).sum())(jnp.asarray(IMAGES, jnp.bfloat16)).dtype == jnp.bfloat16


class Wrapped(Perceptron):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, images):
        return self.change(super().forward(images))


class Output:
    def __init__(self, logits):
        self.logits = logits


def test_logits_may_be_an_attribute_of_the_output():
    np.testing.assert_allclose(from_torch(Wrapped(Output))(IMAGES), IN_JAX(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: (logits, 1), r"must return logits, got a tuple of 2: return them alone"),
        (lambda logits: logits.sum(1), r"must return logits of shape \(6, classes\), got float32 of shape \(6,\)"),
        (lambda logits: logits @ logits, r"failed on images of shape \(6, 5, 6, 1\): RuntimeError: mat1 and mat2"),
    ],
)
def test_failures_are_one_line_before_the_first_attack(change, message):
    with pytest.raises(ModelError, match=message) as caught:
        evaluate(from_torch(Wrapped(change)), IMAGES, LABELS, [ATTACKS["square"]], key=KEY, batch_size=6)
    assert "\n" not in str(caught.value)


def test_a_module_that_cuts_its_gradient_is_refused_by_gradient_attacks_alone():
    logits_fn = from_torch(Wrapped(lambda logits: logits.detach()))
    with pytest.raises(NoGradients, match=r"computes its logits without gradients \(detach, no_grad, argmax\)"):
        evaluate(logits_fn, IMAGES, LABELS, [ATTACKS["pgd"]], key=KEY)
    np.testing.assert_allclose(logits_fn(IMAGES), IN_JAX(IMAGES), atol=1e-5)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module.*call it"):
        from_torch(Perceptron)
    with pytest.raises(ValueError, match="std must be finite numbers above 0"):
        from_torch(Perceptron(), std=[0.0])
    with pytest.raises(ModelError, match="mean must have one number per channel: 1, got 3"):
        from_torch(Perceptron(), mean=[0.1, 0.2, 0.3])(IMAGES)


@pytest.mark.parametrize("axes", [1, 3])
def test_signals_and_volumes_have_their_channels_first_in_pytorch(axes):
    shape = (2, *range(4, 4 + axes), 3)
    batch = np.random.default_rng(0).random(shape).astype(np.float32)
    module = torch.nn.Sequential(torch.nn.Flatten(start_dim=2), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten())
    logits_fn = from_torch(module, mean=[0.1, 0.2, 0.3])
    expected = batch.mean(axis=tuple(range(1, 1 + axes))) - np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(logits_fn(batch), expected, atol=1e-6)
    gradient = jax.grad(lambda images: logits_fn(images)[:, 0].sum())(jnp.asarray(batch))
    np.testing.assert_allclose(gradient[..., 0], 1 / np.prod(shape[1:-1]), rtol=1e-5)
    np.testing.assert_array_equal(gradient[..., 1:], 0)
