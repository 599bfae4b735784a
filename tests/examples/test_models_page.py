"""The examples of docs/models.md run, each where its framework is installed, on small untrained models."""

import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deformreg

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
BLOCKS = [block.split("```")[0] for block in PAGE.split("```python\n")[1:]]
IMAGES = np.random.default_rng(0).random((4, 16, 16, 3)).astype(np.float32)
LABELS = np.arange(4) % 2


def linen():
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, images, train):
            hidden = linen.Dropout(0.5, deterministic=not train)(linen.Conv(4, (3, 3), strides=4)(images))
            return linen.Dense(5)(hidden.reshape(len(images), -1))

    model = Net()
    return {"model": model, "variables": model.init(jax.random.key(0), IMAGES, train=False)}


def nnx():
    from flax import nnx

    rngs = nnx.Rngs(0)
    dropout = nnx.Dropout(0.5, rngs=rngs)
    return {"model": nnx.Sequential(lambda x: x.mean(axis=(1, 2)), dropout, nnx.Linear(3, 5, rngs=rngs))}


def equinox():
    eqx = pytest.importorskip("equinox")
    first, second = jax.random.split(jax.random.key(0))
    layers = [eqx.nn.Conv2d(3, 4, 3, 4, key=first), jnp.ravel, eqx.nn.Dropout(0.5), eqx.nn.Linear(64, 5, key=second)]
    return {"eqx": eqx, "model": eqx.nn.Sequential([eqx.nn.Lambda(e) if e is jnp.ravel else e for e in layers])}


def haiku():
    hk = pytest.importorskip("haiku")
    network = hk.without_apply_rng(hk.transform(lambda images: hk.Linear(5)(hk.Flatten()(images))))
    return {"network": network, "params": network.init(jax.random.key(0), IMAGES)}


def timm():
    pytest.importorskip("torch").manual_seed(0)
    module = pytest.importorskip("timm")
    create = module.create_model

    def small(name, pretrained):
        assert pretrained
        return create(name, pretrained=False, num_classes=5)

    return {"timm": types.SimpleNamespace(create_model=small)}


def transformers():
    pytest.importorskip("torch").manual_seed(0)
    hugging_face = pytest.importorskip("transformers")
    config = hugging_face.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
        num_labels=5,
    )  # fmt: skip
    made = types.SimpleNamespace(from_pretrained=lambda name: hugging_face.ViTForImageClassification(config))
    return {"AutoModelForImageClassification": made}


def robustbench():
    torch = pytest.importorskip("torch")
    from cifar_resnet import resnet

    torch.manual_seed(0)
    return {"robustbench": types.SimpleNamespace(load_model=lambda *names, **options: resnet(width=4))}


def onnx():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3 * 16 * 16, 5)).astype(np.float32)

    class Session:
        def run(self, names, feed):
            assert feed["images"].shape[1:] == (3, 16, 16)
            return [feed["images"].reshape(len(feed["images"]), -1) @ weights]

    return {"session": Session()}


MODELS = {make.__name__: make for make in (linen, nnx, equinox, haiku, timm, transformers, robustbench, onnx)}


def test_every_example_is_run():
    assert {block.split("\n")[0] for block in BLOCKS[1:]} == {f"# {name}" for name in [*MODELS, "torch penalty"]}


@pytest.mark.slow
def test_the_penalty_in_pytorch_is_the_librarys():
    torch = pytest.importorskip("torch")
    names = {"torch": torch}
    exec(next(block for block in BLOCKS if block.startswith("# torch penalty\n")), names)
    kernel = np.random.default_rng(1).normal(size=(3 * 16 * 16, 5)).astype(np.float32) / 10
    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    found = names["flow_penalties"](lambda x: x.flatten(1) @ torch.from_numpy(kernel), images, torch.from_numpy(LABELS))

    def loss_fn(images):
        return deformreg.cross_entropy(images.transpose(0, 3, 1, 2).reshape(len(images), -1) @ kernel, LABELS)

    expected = deformreg.gradient_penalty(loss_fn, jnp.asarray(IMAGES))
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs.detach().numpy(), ours, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(torch|timm|transformers).*")
@pytest.mark.parametrize("name", MODELS)
def test_the_example_evaluates_a_model(name):
    names = {**MODELS[name](), "images": IMAGES, "labels": LABELS, "jax": jax}
    block = next(block for block in BLOCKS if block.startswith(f"# {name}\n"))
    assert len(block.strip().splitlines()) == 4
    exec(BLOCKS[0], names)
    exec(block, names)
    evaluation = names["evaluation"]
    assert evaluation.examples == len(IMAGES)
    assert evaluation.robust_accuracy <= evaluation.clean_accuracy
    assert not {flag.name for flag in evaluation.flags} & {"outputs_change_between_calls", "logits_not_finite"}
