"""The families of networks: their sizes are the papers', their layers agree, and all of them train."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from settings import GROUP, LAYER, SMALL, TINY, batches

from train import parallel
from train.methods.gradient import FlowGradient
from train.models import advice, create_model, layers
from train.state import init_state
from train.step import make_step

SOME = [pytest.param(name, marks=[pytest.mark.slow] * (name != "vit")) for name in SMALL]
"""All of them, and without the slow tests one."""


def multiplications(jaxpr):
    """The multiplications of a program's convolutions and matrix products, as papers count FLOPs."""
    total = 0
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += multiplications(inner) if hasattr(inner, "eqns") else 0
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inputs = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += inputs * math.prod(equation.outvars[0].aval.shape)
        elif equation.primitive.name == "conv_general_dilated":
            inputs = math.prod(equation.invars[1].aval.shape[:-1])
            total += inputs * math.prod(equation.outvars[0].aval.shape)
    return total


# The common implementation of ResNet-50 strides in the 3x3 convolutions: 4.09 GFLOPs where the paper has 3.8.
TORCHVISION = "torchvision's table of weights"
HE = "He et al., CVPR 2016, table 1"
LIU = "Liu et al., CVPR 2022, table 1"
TOUVRON = "Touvron et al., ICML 2021, table 1; ECCV 2022 (DeiT III), table 2"
SINGH = "Singh et al., NeurIPS 2023, table 1"
ZAGORUYKO = "Zagoruyko and Komodakis, BMVC 2016, table 4"
PUBLISHED = [  # name, image size, millions of parameters, GFLOPs, source
    ("resnet-18-imagenet", 224, "11.7", "1.8", HE),
    ("resnet-34-imagenet", 224, "21.8", "3.7", HE),
    ("resnet-50", 224, "25.6", "4.09", TORCHVISION),
    ("convnext-t", 224, "29", "4.5", LIU),
    ("convnext-s", 224, "50", "8.7", LIU),
    ("vit-ti-16", 224, "5.7", "1.3", TOUVRON),
    ("vit-s-16", 224, "22.1", "4.6", TOUVRON),
    ("vit-b-16", 224, "86.6", "17.6", TOUVRON),
    ("vit-s-conv-16", 224, "22.8", None, SINGH),
    ("vit-b-conv-16", 224, "87.1", None, SINGH),
    ("wide-resnet-28-10", 32, "36.5", "5.2", ZAGORUYKO),
]


QUICK = ("resnet-50", "convnext-t", "vit-s-16")


@pytest.mark.parametrize(
    ("name", "size", "parameters", "flops", "source"),
    [pytest.param(*row, marks=[pytest.mark.slow] * (row[0] not in QUICK)) for row in PUBLISHED],
)
def test_networks_have_the_published_size(name, size, parameters, flops, source):
    model = create_model(name, num_classes=1000 if size == 224 else 10, implementation="lax")
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    millions = sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) / 1e6
    assert f"{millions:.{len(parameters.partition('.')[2])}f}" == parameters, source
    if flops is not None:
        giga = multiplications(jax.make_jaxpr(model.apply)(variables, images).jaxpr) / 1e9
        assert f"{giga:.{len(flops.partition('.')[2])}f}" == flops, source


@pytest.mark.parametrize(("h", "w"), [(7, 6), (2, 3)])
def test_both_poolings_agree_to_second_order(h, w):
    """Few distinct values, so that windows tie; the sine gives them second derivatives."""
    images = jax.random.randint(jax.random.key(0), (2, h, w, 3), 0, 3).astype(jnp.float32)

    def derivatives(images, implementation):
        def function(images):
            return layers.max_pool_3x3(jnp.sin(images), implementation=implementation)

        def slope(images):
            return jax.grad(lambda images: jnp.sum(function(images) ** 3))(images)

        return function(images), slope(images), jax.grad(lambda one: jnp.sum(slope(one) ** 2))(images)

    by_lax, by_matmul = (
        jax.jit(derivatives, static_argnums=1)(images, implementation) for implementation in ("lax", "matmul")
    )
    for first, second in zip(by_lax, by_matmul, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4 * max(1.0, float(jnp.abs(first).max())))


@pytest.mark.slow
def test_a_depthwise_convolution_is_one_of_every_channel():
    images = jax.random.normal(jax.random.key(0), (2, 6, 5, 3))
    kernel = jax.random.normal(jax.random.key(1), (7, 7, 3))
    channels = [layers.conv(images[..., i : i + 1], kernel[:, :, i, None, None]) for i in range(3)]
    np.testing.assert_allclose(
        layers.depthwise_conv(images, kernel), jnp.concatenate(channels, axis=-1), rtol=1e-4, atol=1e-4
    )


def test_a_pooling_keeps_a_nan_and_takes_the_first_maximum():
    images = jnp.zeros((1, 3, 3, 1))
    for implementation in ("lax", "matmul"):
        pool = partial(layers.max_pool_3x3, implementation=implementation)
        pooled = pool(images.at[0, 1, 1, 0].set(jnp.nan))
        assert pooled.shape == (1, 2, 2, 1)
        assert jnp.isnan(pooled).all()
        gradient = jax.grad(lambda images, pool=pool: pool(images)[0, 1, 1, 0])(images)
        np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 0, 0], [0, 1, 0], [0, 0, 0]])


def test_patches_are_what_a_strided_convolution_sees():
    images = jax.random.normal(jax.random.key(2), (2, 5, 7, 3))
    kernel = jax.random.normal(jax.random.key(3), (2, 2, 3, 4))
    expected = jax.lax.conv_general_dilated(images, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(layers.patches(images, 2) @ kernel.reshape(-1, 4), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SOME)
def test_examples_do_not_interact(name):
    """Group and layer norm: a batch's logits are those of its examples alone."""
    model = SMALL[name]
    images = jnp.asarray(next(batches(1, 3))["image"], jnp.float32) / 255
    variables = jax.jit(model.init)(jax.random.key(0), images)
    apply = jax.jit(model.apply)
    whole = apply(variables, images)
    assert (whole.shape, whole.dtype) == ((3, 4), jnp.float32)
    np.testing.assert_allclose(apply(variables, images[1:2]), whole[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SOME)
def test_narrow_arithmetic_and_rematerialization_change_neither_parameters_nor_types(name):
    model = SMALL[name]
    style = replace(model.style, dtype=jnp.bfloat16, dropout=0.1, stochastic_depth=0.1)
    images, keys = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32), jax.random.split(jax.random.key(0), 4)
    expected = jax.eval_shape(model.init, jax.random.key(0), images)
    for other in (model.clone(style=style), model.clone(style=style, remat=True)):
        assert jax.eval_shape(other.init, jax.random.key(0), images) == expected

        def losses(params, other=other):
            logits = other.apply(params, jnp.zeros(images.shape), train=True, keys=keys)
            assert logits.dtype == jnp.float32
            return jnp.sum(logits)

        program = str(jax.make_jaxpr(jax.grad(losses))(expected))
        assert "bf16" in program
        assert ("remat" in program) == other.remat


@pytest.mark.slow
def test_dropout_does_not_depend_on_the_number_of_devices():
    model = SMALL["basic"].clone(style=replace(GROUP, dropout=0.3, stochastic_depth=0.3))
    rate = TINY.schedule.make(0.02, epochs=1, steps_per_epoch=10)
    optimizer = TINY.optimizer.make(rate)
    (batch,), losses = batches(1), {}
    for kind, devices in (("pmap", 1), ("pmap", 4), ("jit", 4)):
        engine = parallel.make_engine(kind, devices=devices, batch_size=16)
        step = engine.compile(
            make_step(FlowGradient().make(), model, optimizer, rate=rate, augmentation=TINY.augmentation)
        )
        _, metrics = step(engine.put_state(init_state(model, optimizer, (8, 8, 1), 0)), engine.feed(batch))
        losses[kind, devices] = float(metrics["loss"]), float(metrics["penalty"])
    np.testing.assert_allclose(losses["pmap", 4], losses["pmap", 1], rtol=1e-5)
    np.testing.assert_allclose(losses["jit", 4], losses["pmap", 1], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit-s-16", 40, r"height and width must be multiples of 16 for these patches, got \(1, 40, 40, 3\)"),
        ("convnext-t", 31, "images must be at least 32x32 for a ConvNeXt"),
    ],
)
def test_images_that_a_network_cannot_take_are_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(create_model(name, num_classes=3).init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def test_networks_with_layer_norm_have_no_other():
    with pytest.raises(ValueError, match="vit-s-16 has no batch norm: norm must be layer"):
        create_model("vit-s-16", num_classes=3, norm="batch")
    assert create_model("vit-s-16", num_classes=3).style == LAYER
    assert create_model("convnext-t", num_classes=3, activation="silu").style == replace(LAYER, activation="silu")


def test_networks_for_small_images_are_advised_against_on_large_ones():
    assert "--model.name resnet-18-imagenet" in advice("resnet-18", 224)
    assert "--model.name resnet-34-imagenet" in advice("resnet-34", 128)
    assert "--model.name resnet-18-imagenet" in advice("wide-resnet-28-10", 224)
    for name, side in (("resnet-18", 64), ("resnet-50", 224), ("vgg-16", 224), ("vit-s-16", 224), ("mine:make", 224)):
        assert advice(name, side) is None
