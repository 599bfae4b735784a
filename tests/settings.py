"""Every training method and every kind of network, small, by the names that tests give them; a tiny training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.config import Config, Data, Model
from train.methods.adversarial import Adversarial, Deformation
from train.methods.cure import Cure
from train.methods.displacement import Displacement
from train.methods.elle import Elle
from train.methods.fast import NFgsm
from train.methods.gradient import FlowGradient, FlowGradientAdversarial, FlowGradientDeformation, InputGradient
from train.methods.greedy import Greedy
from train.methods.llr import Llr
from train.methods.mart import Mart
from train.methods.noise import Noise
from train.methods.penalties import FiniteDifference, ForwardOverReverse
from train.methods.random_flows import RandomFlows
from train.methods.several import Gradients
from train.methods.spatial import Spatial
from train.methods.standard import Standard
from train.methods.trades import Trades
from train.models import convnext, create_model, resnet, vit
from train.models.blocks import Style
from train.optimizers import Sgd
from train.schedules import Constant
from train.state import State, init_state
from train.step import make_step

METHODS = {
    "standard": Standard(),
    "input-gradient": InputGradient(weight=0.1),
    "flow-gradient": FlowGradient(),
    "dual norm": FlowGradient(size="linf", weight=0.1),
    "random start": FlowGradient(random_start=0.1),
    "finite difference": FlowGradient(rule=FiniteDifference()),
    "forward over reverse": FlowGradient(rule=ForwardOverReverse()),
    "displacement": Displacement(radius=0.2),
    "gradients": Gradients(affine=0.01),
    "running statistics": FlowGradient(statistics="running"),
    "every third": FlowGradient(every=3),
    "a quarter": FlowGradient(share=0.25),
    "adversarial": Adversarial(radius=0.03, steps=2),
    "deformation": Deformation(radius=0.2, steps=2),
    "greedy": Greedy(radius=0.2, radius_ramp_steps=4),
    "both": FlowGradientDeformation(radius=0.2, steps=2),
    "both, pixels": FlowGradientAdversarial(radius=0.03, steps=2),
    "spatial": Spatial(radius=1.0, degrees=10.0, draws=3),
    "random flows": RandomFlows(),
    "noise": Noise(family="rotation", flow_gradient=1.0),
    "trades": Trades(radius=0.2, steps=2),
    "mart": Mart(radius=0.4, steps=2),
    "n-fgsm": NFgsm(radius=0.2, radius_ramp_steps=4),
    "elle": Elle(radius=0.2, weight=10.0),
    "cure": Cure(radius=0.2, weight=0.1),
    "llr": Llr(radius=0.2, weight=0.1, steps=2),
}

LAYER = Style(norm="layer", activation="gelu")
GROUP = Style(norm="group")

SMALL = {
    "basic": resnet.ResNet(resnet.Architecture(((8, 1), (16, 1)), stem=8), 4, style=GROUP),
    "padded": resnet.ResNet(resnet.Architecture(((8, 1), (16, 1)), resnet.PaddedBlock, 8), 4, style=GROUP),
    "bottleneck": resnet.ResNet(
        resnet.Architecture(((8, 1), (16, 1)), resnet.BottleneckBlock, 8, for_large_images=True),
        4,
        style=replace(GROUP, activation="softplus"),
    ),
    "preactivated": resnet.ResNet(
        resnet.Architecture(((8, 1), (16, 1)), resnet.PreactivatedBlock, 8), 4, style=replace(GROUP, activation="silu")
    ),
    "convnext": convnext.ConvNext(((8, 1), (16, 1)), 4, style=LAYER),
    "vit": vit.VisionTransformer(vit.Architecture(2, 4, depth=2), 4, width=0.125, style=LAYER),
    "vit-conv": vit.VisionTransformer(vit.Architecture(2, 4, stem=16, depth=1), 4, style=LAYER),
}
"""One of every kind of block and stem, for images of 8x8."""

TINY = Config(
    data=Data(name="digits"),
    model=Model(width=0.25, norm="group"),
    optimizer=Sgd(learning_rate=0.02),
    schedule=Constant(),
    batch_size=16,
    epochs=1,
)


def batches(count: int, size: int = 16, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Random 8x8 images that a network can learn: brighter on the side that the label says."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        labels = rng.integers(0, 4, size).astype(np.int32)
        images = rng.integers(0, 100, (size, 8, 8, 1))
        for image, label in zip(images, labels, strict=True):
            image[4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 100
        yield {"image": images.astype(np.uint8), "label": labels, "position": np.arange(size, dtype=np.int32)}


class OneLayer(nn.Module):
    """A network that compiles in no time, for what does not depend on it."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


class Plain(nn.Module):
    """A network that compiles fast, and smooth, so that two orders of summation differ by rounding only."""

    norm: str = "group"

    @nn.compact
    def __call__(self, images, train=False):
        features = nn.Dense(16)(images.reshape(len(images), -1))
        norm = nn.GroupNorm(4) if self.norm == "group" else nn.BatchNorm(not train, momentum=0.9)
        return nn.Dense(4)(jnp.tanh(norm(features)))


@cache
def start(model: nn.Module, seed: int) -> State:
    """The state before the first step, without the optimizer's: compiled once a network."""
    return init_state(model, optax.identity(), (8, 8, 1), seed)


@cache
def network(config: Config, axis_name: str | None = None):
    """``(model, state, step)`` of a config, for `batches`: `Plain` with group normalization, else the small CNN."""
    rate = config.schedule.make(config.optimizer.learning_rate, epochs=1, steps_per_epoch=10)
    optimizer = config.optimizer.make(rate)
    model = Plain() if config.model.norm == "group" else create_model(
        "small-cnn", num_classes=4, width=config.model.width, norm="batch", axis_name=axis_name
    )  # fmt: skip
    state = start(model, config.seed)
    state = state._replace(opt_state=optimizer.init(state.params))
    step = make_step(
        config.method.make(), model, optimizer, rate=rate, augmentation=config.augmentation,
        accumulate=config.accumulate,
    )  # fmt: skip
    return model, state, step


@cache
def compiled(config: Config):
    """The compiled step of a config."""
    return jax.jit(network(config)[2])
