"""Weights in PyTorch's layouts: every array finds its place, and the logits are PyTorch's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_layouts as layouts

from train import manifests
from train.models import create_model
from train.weights.matching import match

FORMS = {  # the network, and its names and shapes elsewhere
    "torchvision resnet50": ("resnet-50", layouts.resnet_50()),
    "torchvision resnet18": (
        "resnet-18-imagenet",
        layouts.basic_resnet(((64, 2), (128, 2), (256, 2), (512, 2)), shortcut="downsample", head="fc", stem=7),
    ),
    "resnet18 for CIFAR-10": (
        "resnet-18",
        layouts.basic_resnet(((64, 2), (128, 2), (256, 2), (512, 2)), shortcut="shortcut", head="linear", stem=3),
    ),
    "resnet20 for CIFAR-10": (
        "resnet-20",
        layouts.basic_resnet(((16, 3), (32, 3), (64, 3)), shortcut=None, head="linear", stem=3),
    ),
    "wide resnet": ("wide-resnet-28-10", layouts.wide_resnet_28_10()),
    "vgg11_bn": ("vgg-11", layouts.vgg_11_bn()),
    "timm convnext_tiny": ("convnext-t", layouts.convnext_t()),
    "torchvision convnext_tiny": ("convnext-t", layouts.torchvision_convnext_t()),
    "timm vit_small_patch16_224": ("vit-s-16", layouts.vit_s_16()),
    "torchvision vit_b_16": ("vit-b-16", layouts.torchvision_vit_b_16()),
}

LOGITS = {  # of PyTorch in float64, with the recipe's weights and images
    "torchvision resnet50": [
        [-1.28852, 1.64053, 1.02492, 1.59765, 2.59403, 0.04613, 0.54500, -0.60289, 3.52489, -2.42029],
        [-1.42668, 1.49571, 0.98995, 1.51959, 2.59667, 0.11118, 0.70872, -0.37482, 3.70951, -2.28739],
    ],
    "timm convnext_tiny": [
        [1.36806, 0.93961, 1.66798, -0.02085, -1.71625, -1.25244, 1.07314, -0.18215, -0.08874, -2.12573],
        [1.70329, 1.19900, 1.31856, -0.12712, -1.86803, -1.73581, 1.08183, -0.27003, 0.27765, -1.83088],
    ],
    "timm vit_small_patch16_224": [
        [0.02803, 1.35820, 0.03425, 1.22883, -0.50218, -0.71750, -0.81904, 1.21805, 0.95855, -2.77875],
        [-0.08158, 1.46095, -0.14141, 1.24799, -0.55208, -0.31024, -0.86029, 0.82870, 1.17760, -3.03800],
    ],
}


def shapes_of(model):
    return manifests.flat(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))


QUICK = ("torchvision resnet50", "timm vit_small_patch16_224")


@pytest.mark.parametrize("form", [pytest.param(form, marks=[pytest.mark.slow] * (form not in QUICK)) for form in FORMS])
def test_every_array_has_its_place(form):
    name, shapes = FORMS[form]
    stored = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    stored["bn1.num_batches_tracked"] = np.zeros((), np.int64)
    network = shapes_of(create_model(name, num_classes=layouts.CLASSES))
    matched = match(network, stored)
    assert matched.lines() == []
    assert matched.arrays.keys() == network.keys()


@pytest.mark.slow
@pytest.mark.parametrize("form", LOGITS)
def test_the_logits_are_those_of_pytorch(form):
    name, shapes = FORMS[form]
    model = create_model(name, num_classes=layouts.CLASSES)
    stored = {f"module.{key}": value for key, value in layouts.weights(shapes).items()}
    variables = manifests.nested(match(shapes_of(model), stored).arrays)
    images = np.random.default_rng(1).uniform(size=(2, 64, 64, 3)).astype(np.float32)
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(variables, images), LOGITS[form], atol=1e-4)


def test_a_head_for_other_classes_is_left_out_and_named():
    network = shapes_of(create_model("vit-s-16", num_classes=3))
    stored = layouts.vit_s_16()
    stored = {name: np.broadcast_to(np.float32(0), shape) for name, shape in stored.items()}
    del stored["norm.bias"]
    stored["dist_token"] = np.zeros((1, 1, 384), np.float32)
    matched = match(network, stored)
    assert matched.lines() == [
        "of another shape, so newly initialized: params/head/bias [3], stored [10]",
        "of another shape, so newly initialized: params/head/kernel [384, 3], stored [10, 384]",
        "not in the file, so newly initialized: params/last_norm/bias",
        "not used: dist_token",
        "not used: head.bias",
        "not used: head.weight",
    ]
    assert len(matched.arrays) == len(network) - 3


def test_long_lists_are_cut():
    network = {f"params/layer_{index}/kernel": jnp.zeros(1) for index in range(12)}
    lines = match(network, {"params/other": np.zeros(1)}).lines()
    assert len(lines) == 11
    assert lines[9:] == ["... and 3 more", "not used: params/other"]


def test_arrays_keep_the_types_of_the_network():
    network = {"params/stem/kernel": jax.ShapeDtypeStruct((3, 3, 1, 2), jnp.float32)}
    values = np.arange(18, dtype=np.float16).reshape(2, 1, 3, 3)
    array = match(network, {"conv1.weight": values}).arrays["params/stem/kernel"]
    assert (array.dtype, array.shape) == (np.dtype("float32"), (3, 3, 1, 2))
    np.testing.assert_array_equal(array[1, 2, 0], [5, 14])
