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


# Each maker: the names that an example needs, and the logits as the framework itself computes them, without dropout.


def linen():
    from flax import linen

    class Net(linen.Module):
        rate: float = 0.5

        @linen.compact
        def __call__(self, images, train):
            hidden = linen.Dropout(self.rate, deterministic=not train)(linen.Conv(4, (3, 3), strides=4)(images))
            return linen.Dense(5)(hidden.reshape(len(images), -1))

    model = Net()
    variables = model.init(jax.random.key(0), IMAGES, train=False)
    return {"model": model, "variables": variables}, lambda images: Net(0.0).apply(variables, images, train=True)


def nnx():
    from flax import nnx

    rngs = nnx.Rngs(0)
    dropout, linear = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(3, 5, rngs=rngs)
    model = nnx.Sequential(lambda x: x.mean(axis=(1, 2)), dropout, linear)
    return {"model": model}, lambda images: linear(images.mean(axis=(1, 2)))


def equinox():
    eqx = pytest.importorskip("equinox")
    first, second = jax.random.split(jax.random.key(0))
    convolution, linear = eqx.nn.Conv2d(3, 4, 3, 4, key=first), eqx.nn.Linear(64, 5, key=second)
    model = eqx.nn.Sequential([convolution, eqx.nn.Lambda(jnp.ravel), eqx.nn.Dropout(0.5), linear])

    def reference(images):
        return jnp.stack([linear(convolution(image.transpose(2, 0, 1)).ravel()) for image in images])

    return {"eqx": eqx, "model": model}, reference


def haiku():
    hk = pytest.importorskip("haiku")
    network = hk.without_apply_rng(hk.transform(lambda images: hk.Linear(5)(hk.Flatten()(images))))
    params = network.init(jax.random.key(0), IMAGES)
    weights = params["linear"]
    return {"network": network, "params": params}, lambda images: images.reshape(4, -1) @ weights["w"] + weights["b"]


def in_torch(module, mean=(0.0,), std=(1.0,)):
    import torch

    def reference(images):
        with torch.no_grad():
            output = module.eval()(torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)))
        return getattr(output, "logits", output).numpy()

    return reference


def timm():
    pytest.importorskip("torch").manual_seed(0)
    framework = pytest.importorskip("timm")
    module = framework.create_model("resnet18", pretrained=False, num_classes=5)

    def create_model(name, pretrained):
        assert pretrained
        return module

    scale = (module.pretrained_cfg[name] for name in ("mean", "std"))
    return {"timm": types.SimpleNamespace(create_model=create_model)}, in_torch(module, *scale)


def transformers():
    pytest.importorskip("torch").manual_seed(0)
    hugging_face = pytest.importorskip("transformers")
    config = hugging_face.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
        num_labels=5,
    )  # fmt: skip
    module = hugging_face.ViTForImageClassification(config)
    made = types.SimpleNamespace(from_pretrained=lambda name: module)
    return {"AutoModelForImageClassification": made}, in_torch(module, (0.5,), (0.5,))


def robustbench():
    torch = pytest.importorskip("torch")
    from cifar_resnet import resnet

    torch.manual_seed(0)
    module = resnet(width=4)
    return {"robustbench": types.SimpleNamespace(load_model=lambda *names, **options: module)}, in_torch(module)


def onnx():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3 * 16 * 16, 5)).astype(np.float32)

    class Session:
        def run(self, names, feed):
            assert feed["images"].shape[1:] == (3, 16, 16)
            return [feed["images"].reshape(len(feed["images"]), -1) @ weights]

    return {"session": Session()}, lambda images: images.transpose(0, 3, 1, 2).reshape(4, -1) @ weights


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
def test_the_example_evaluates_the_model_as_its_framework_does(name, monkeypatch):
    made, reference = MODELS[name]()
    expected, evaluate, given = reference(IMAGES), deformreg.evaluate, []
    labels = np.array(expected).argmax(axis=1)
    labels[0] = (labels[0] + 1) % 5
    names = {**made, "images": IMAGES, "labels": labels, "jax": jax}
    block = next(block for block in BLOCKS if block.startswith(f"# {name}\n"))
    assert len(block.strip().splitlines()) == 4
    monkeypatch.setattr(
        deformreg, "evaluate", lambda *all_, **options: given.append(all_[0]) or evaluate(*all_, **options)
    )
    exec(BLOCKS[0], names)
    exec(block, names)
    np.testing.assert_allclose(given[0](IMAGES), expected, rtol=1e-4, atol=1e-5)
    evaluation = names["evaluation"]
    assert evaluation.correct_mask.tolist() == [False, True, True, True]
    assert sum(outcome.model_calls for outcome in evaluation.attacks) > len(IMAGES)
    assert not {flag.name for flag in evaluation.flags} & {"outputs_change_between_calls", "logits_not_finite"}
