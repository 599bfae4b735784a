"""Foolbox as an outside check: the same attack, the same budget, the same accuracy to within a point.

Runs where Foolbox is installed, its grid of rotations where PyTorch is too: that attack has no JAX form there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from deformreg import balls
from deformreg.attacks import pgd, rotation_translation
from deformreg.perturbations import additive

foolbox = pytest.importorskip("foolbox")

SIDE, COUNT = 12, 300
RNG = np.random.default_rng(0)
TEMPLATES = ndimage.gaussian_filter(RNG.normal(size=(5, SIDE, SIDE, 1)), (0, 1.5, 1.5, 0))
TEMPLATES = (TEMPLATES / TEMPLATES.std()).astype(np.float32)


def logits_fn(images):
    """Matched filters: a model that rotations and noise can fool."""
    return jnp.einsum("nhwc,khwc->nk", images - 0.5, TEMPLATES)


@pytest.fixture(scope="module")
def data():
    """Noisy templates."""
    labels = RNG.integers(5, size=COUNT)
    noise = ndimage.gaussian_filter(RNG.normal(size=(COUNT, SIDE, SIDE, 1)), (0, 1, 1, 0))
    images = np.clip(0.5 + 0.15 * TEMPLATES[labels] + 0.3 * noise / noise.std(), 0, 1)
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels)


def accuracy(attack, images, labels):
    """Robust accuracy over all examples: an error without an attack counts as broken, as in Foolbox."""
    right = jnp.argmax(logits_fn(images), axis=1) == labels
    return float(jnp.mean(right & ~attack.run(logits_fn, images, labels, jax.random.key(0)).success))


@pytest.mark.filterwarnings("ignore")  # Foolbox's own
@pytest.mark.parametrize("radius", [0.02, 0.05])
def test_pixel_steps(data, radius):
    images, labels = data
    model = foolbox.models.JAXModel(logits_fn, bounds=(0, 1))
    theirs = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=10, random_start=False)
    _, _, success = theirs(model, images, labels, epsilons=radius)
    family = additive(image_range=(0.0, 1.0))
    ours = pgd(ball=balls.linf(radius), num_steps=10, step_size=radius / 4, perturbation=family)
    expected = 1 - np.asarray(success).mean()
    assert 0.1 < expected < 0.85
    assert abs(accuracy(ours, images, labels) - expected) <= 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("degrees", "pixels"), [(10, 1), (20, 1.5)])
def test_rotations_and_translations(data, degrees, pixels):
    torch = pytest.importorskip("torch")
    images, labels = data

    class Logits(torch.nn.Module):
        def forward(self, images):
            return torch.tensor(np.asarray(logits_fn(jnp.asarray(images.permute(0, 2, 3, 1).numpy()))))

    model = foolbox.models.PyTorchModel(Logits().eval(), bounds=(0, 1), device="cpu")
    theirs = foolbox.attacks.SpatialAttack(max_translation=pixels, max_rotation=degrees, num_rotations=5)
    batch = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2), torch.tensor(np.asarray(labels))
    _, _, success = theirs(model, *batch)
    # Its pixel is 2 / side of the normalized image, a pixel of these images 2 / (side - 1).
    ours = rotation_translation(max_degrees=degrees, max_pixels=pixels * (SIDE - 1) / SIDE, grid=(5, 5, 5))
    expected = 1 - success.numpy().mean()
    assert 0.1 < expected < 0.85
    assert abs(accuracy(ours, images, labels) - expected) <= 0.01
