"""The grid, declared: data and networks, methods with their strengths, seeds, in the order in which they are computed.

A new method is one value in `METHODS`; its strengths stand in each setting. Budgets are chosen so that the standard
network is broken on most images at the middle radius.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from train.config import Config, Data, Model
from train.data import Augmentation
from train.methods import AnyMethod
from train.methods.adversarial import Adversarial, Deformation
from train.methods.displacement import Displacement
from train.methods.elle import Elle
from train.methods.gradient import FlowGradient, FlowGradientAdversarial, FlowGradientDeformation, InputGradient
from train.methods.greedy import Greedy
from train.methods.penalties import FiniteDifference
from train.methods.random_flows import RandomFlows
from train.methods.several import Gradients
from train.methods.spatial import Spatial
from train.methods.standard import Standard
from train.methods.trades import Trades
from train.models.blocks import Activation
from train.optimizers import Sgd


class Budgets(NamedTuple):
    """What the attacks of an evaluation may do to images of one size.

    Attributes:
        seen: three radii per flow component, in pixels, increasing; the middle one judges.
        smooth: per component of an elastic field, in pixels.
        pixels: change of a pixel's value, for images in [0, 1].
        shift: largest translation in pixels of the rotation-translation grid.
        degrees: its largest rotation.
    """

    seen: tuple[float, float, float]
    smooth: float
    pixels: float
    shift: float
    degrees: float


class Setting(NamedTuple):
    """Data and a network, and what is tried on them.

    Attributes:
        name: of data and network.
        config: all but method and seed.
        steps: of a training.
        weight: of the flow gradient penalty where a method's strength is a radius.
        budgets: of the evaluation.
        strengths: for each method of `METHODS`, the weights or radii that are tried.
        examples: number of test images to attack, and of held-out images.
        held_out: number of held-out images on which clean accuracy is measured.
        seeds: how many, for the methods in `repeated`; one for the others.
        repeated: methods; those that the setting does not try have no effect.
        curves: whether every strength is measured on test images; else only the one that held-out images choose.
    """

    name: str
    config: Config
    steps: int
    weight: float
    budgets: Budgets
    strengths: Mapping[str, tuple[float, ...]]
    examples: int = 200
    held_out: int = 200
    seeds: int = 1
    repeated: tuple[str, ...] = ()
    curves: bool = False


class Cell(NamedTuple):
    """One training of the grid.

    Attributes:
        setting: data and network.
        method: a name of `METHODS`.
        strength: the method's weight or radius.
        seed: of the training.
    """

    setting: Setting
    method: str
    strength: float
    seed: int

    @property
    def name(self) -> str:
        """Names the cell, its line and its run."""
        return f"{self.setting.name}/{self.method.replace(' ', '-')}-{self.strength:g}/seed{self.seed}"

    @property
    def config(self) -> Config:
        """What is trained."""
        method = METHODS[self.method](self.strength, self.setting)
        return replace(self.setting.config, method=method, seed=self.seed)

    @property
    def attacked(self) -> dict[str, Any]:
        """How it is attacked, for its line."""
        budgets = self.setting.budgets
        counts = {"examples": self.setting.examples, "held_out": self.setting.held_out}
        return {**counts, **budgets._asdict(), "seen": list(budgets.seen)}


def _relative(budget: float, setting: Setting) -> float:
    """The weight of another family's squared gradient for a flow's of 1.

    To first order, squared increases of the loss under budgets are squared gradients times squared budgets.
    """
    return (budget / setting.budgets.seen[1]) ** 2


METHODS: dict[str, Callable[[float, Setting], AnyMethod]] = {
    "standard": lambda _, setting: Standard(),
    "random flows": lambda radius, setting: RandomFlows(radius=radius),
    "input gradient": lambda weight, setting: InputGradient(weight=weight),
    "input gradient, dual norm": lambda radius, setting: InputGradient(weight=radius, size="linf"),
    "flow gradient": lambda weight, setting: FlowGradient(weight=weight),
    "flow gradient, dual norm": lambda radius, setting: FlowGradient(weight=radius, size="linf"),
    "flow gradient, random start": lambda weight, setting: FlowGradient(
        weight=weight, random_start=setting.budgets.seen[0] / 2
    ),
    "flow gradient, every 4th step": lambda weight, setting: FlowGradient(weight=weight, every=4),
    "flow gradient, a quarter": lambda weight, setting: FlowGradient(weight=weight, share=0.25),
    "flow gradient, last third": lambda weight, setting: FlowGradient(weight=weight, first_step=2 * setting.steps // 3),
    "flow gradient, growing": lambda weight, setting: FlowGradient(weight=weight, weight_ramp_steps=setting.steps // 2),
    "flow gradient, finite difference": lambda weight, setting: FlowGradient(weight=weight, rule=FiniteDifference()),
    "flow and input gradient": lambda weight, setting: Gradients(
        flow=weight, pixels=weight * _relative(setting.budgets.pixels, setting)
    ),
    "flow, input and affine gradient": lambda weight, setting: Gradients(
        flow=weight,
        pixels=weight * _relative(setting.budgets.pixels, setting),
        affine=weight * _relative(math.radians(setting.budgets.degrees), setting),
    ),
    "displacement penalty": lambda weight, setting: Displacement(weight=weight, radius=setting.budgets.seen[1]),
    "local linearity": lambda weight, setting: Elle(weight=weight, radius=setting.budgets.seen[1]),
    "pixel adversarial": lambda radius, setting: Adversarial(radius=radius),
    "deformation": lambda radius, setting: Deformation(radius=radius),
    "deformation, greedy": lambda radius, setting: Greedy(radius=radius),
    "deformation, 1 step": lambda radius, setting: Deformation(radius=radius, steps=1, step_size=1.25 * radius),
    "worst of 10 rotations": lambda share, setting: Spatial(
        radius=share * setting.budgets.shift, degrees=share * setting.budgets.degrees, draws=10
    ),
    "TRADES": lambda beta, setting: Trades(beta=beta, radius=setting.budgets.seen[1]),
    "flow gradient + deformation": lambda radius, setting: FlowGradientDeformation(
        weight=setting.weight, radius=radius
    ),
    "flow gradient + pixel adversarial": lambda radius, setting: FlowGradientAdversarial(
        weight=setting.weight, radius=radius
    ),
}
"""What each method trains with at a strength: a weight, for those that know an attack by its radius that radius."""

CLAIMED = (
    "standard", "flow gradient", "input gradient", "deformation", "pixel adversarial", "flow gradient + deformation"
)  # fmt: skip
"""The methods that the claims name."""

COMPARED = (*CLAIMED, "flow gradient, dual norm")
"""Those, and the penalty in the dual norm: the methods that `mnist5k` repeats and that GELU is tried with."""

CHEAPER = ("flow gradient, every 4th step", "flow gradient, a quarter", "deformation, greedy")
"""Cheaper forms of what the claims name; `digits` and `mnist5k` repeat them."""

SMOOTHED = ("standard", "flow gradient", "input gradient", "flow gradient, dual norm", "deformation")
"""The methods that are tried with smooth activations in place of ReLU."""

_DIGITS = Setting(
    "digits/small-cnn-relu",
    Config(
        data=Data(name="digits", holdout=0.15),
        model=Model(name="small-cnn"),
        optimizer=Sgd(learning_rate=0.03, nesterov=True),  # larger steps diverge under large weights
        batch_size=64,
        epochs=30,
    ),
    570,
    1.0,
    Budgets(seen=(0.1, 0.2, 0.3), smooth=0.5, pixels=0.15, shift=0.5, degrees=10.0),
    {
        "standard": (0.0,),
        "flow gradient": (0.3, 1.0, 3.0, 5.0, 10.0),
        "input gradient": (0.03, 0.1, 0.3, 1.0, 3.0),
        "deformation": (0.1, 0.2, 0.3),
        "pixel adversarial": (0.05, 0.1, 0.15, 0.2),
        "flow gradient + deformation": (0.1, 0.2, 0.3),
        "flow gradient, dual norm": (0.05, 0.1, 0.2),
        "random flows": (0.2, 0.4),
        "displacement penalty": (3.0, 10.0, 15.0),
        "deformation, greedy": (0.1, 0.2, 0.3),
        "deformation, 1 step": (0.1, 0.2, 0.3),
        "TRADES": (1.0, 3.0, 6.0),
        "worst of 10 rotations": (0.5, 1.0),
        "flow gradient, random start": (1.0, 3.0),
        "flow gradient, every 4th step": (1.0, 3.0),
        "flow gradient, a quarter": (1.0, 3.0),
        "flow gradient, last third": (3.0, 10.0),
        "flow gradient, growing": (3.0, 10.0),
        "flow gradient, finite difference": (3.0,),
        "input gradient, dual norm": (0.02, 0.05, 0.1),
        "flow and input gradient": (0.3, 1.0, 3.0),
        "flow, input and affine gradient": (0.3, 1.0, 3.0),
        "local linearity": (10.0, 100.0, 1000.0),
        "flow gradient + pixel adversarial": (0.05, 0.1, 0.15),
    },
    seeds=3,
    repeated=(*CLAIMED, *CHEAPER),
    curves=True,
)

_MNIST = Setting(
    "mnist5k/small-cnn-relu",
    Config(
        data=Data(name="mnist5k", holdout=0.1),
        augmentation=Augmentation(shift=1),
        model=Model(name="small-cnn", width=0.5),
        optimizer=Sgd(learning_rate=0.05, nesterov=True),
        batch_size=32,
        epochs=8,
    ),
    896,
    4.0,
    Budgets(seen=(0.25, 0.5, 0.75), smooth=1.5, pixels=0.1, shift=3.0, degrees=30.0),
    {
        "standard": (0.0,),
        "flow gradient": (4.0, 12.0, 36.0, 100.0),
        "input gradient": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
        "deformation": (0.125, 0.25, 0.5),
        "pixel adversarial": (0.025, 0.05, 0.1, 0.2),
        "flow gradient + deformation": (0.125, 0.25, 0.5),
        "flow gradient, dual norm": (0.1, 0.2, 0.4),
        "random flows": (0.5, 1.0),
        "displacement penalty": (0.3, 1.0, 3.0),
        "deformation, greedy": (0.125, 0.25, 0.5),
        "deformation, 1 step": (0.25, 0.5),
        "TRADES": (1.0, 6.0),
        "worst of 10 rotations": (0.5, 1.0),
        "flow gradient, random start": (12.0, 36.0),
        "flow gradient, every 4th step": (4.0, 12.0),
        "flow gradient, a quarter": (4.0, 12.0),
        "flow gradient, last third": (12.0, 36.0),
        "flow gradient, growing": (12.0, 36.0),
        "flow gradient, finite difference": (12.0,),
        "input gradient, dual norm": (0.02, 0.05, 0.1),
        "flow and input gradient": (4.0, 12.0, 36.0),
        "flow, input and affine gradient": (4.0, 12.0, 36.0),
        "local linearity": (10.0, 100.0, 1000.0),
        "flow gradient + pixel adversarial": (0.025, 0.05, 0.1),
    },
    seeds=3,
    repeated=(*COMPARED, *CHEAPER),
    curves=True,
)


def _activated(setting: Setting, activation: Activation, methods: tuple[str, ...]) -> Setting:
    """The same with another activation in place of ReLU, for fewer methods."""
    return setting._replace(
        name=setting.name.replace("relu", activation),
        config=replace(setting.config, model=replace(setting.config.model, activation=activation)),
        strengths={method: setting.strengths[method] for method in methods},
    )


_MNIST_RESIDUAL = Setting(
    "mnist5k/preact-resnet-18-relu",
    replace(_MNIST.config, model=Model(name="preact-resnet-18", width=0.125), epochs=4),
    448,
    4.0,
    _MNIST.budgets,
    {
        "standard": (0.0,),
        "flow gradient": (1.0, 4.0, 12.0),
        "input gradient": (0.1, 0.3, 1.0),
        "flow gradient, dual norm": (0.1, 0.2, 0.4),
        "deformation": (0.125, 0.25),
    },
    seeds=3,
    repeated=SMOOTHED,
)


def _cifar(network: str, model: Model) -> Setting:
    """A part of the JPEG copy of CIFAR-10 and a narrow network: small enough for two cores."""
    return Setting(
        f"cifar10-jpeg/{network}",
        Config(
            data=Data(name="cifar10", train_split="train[:10000]", holdout=0.1),
            augmentation=Augmentation(shift=4, flip=True),
            model=model,
            optimizer=Sgd(learning_rate=0.05, nesterov=True),
            batch_size=64,
            epochs=12,
        ),
        1680,
        0.1,
        # A standard network keeps 5 % at the released radius, the largest one here, under the suite `quick`.
        Budgets(seen=(0.05, 0.1, 0.155), smooth=0.5, pixels=2 / 255, shift=2.0, degrees=15.0),
        {
            # Its mean squared input gradient is 39 times that of the flow: these weights penalize about as much.
            # Radii of 0.02 px already take 1 to 8 points of the clean accuracy on held-out images.
            "standard": (0.0,),
            "flow gradient": (0.1, 0.3, 1.0),
            "input gradient": (0.003, 0.01, 0.03),
            "flow gradient, dual norm": (0.005, 0.02),
            "deformation": (0.01, 0.02),
            "pixel adversarial": (0.5 / 255, 1 / 255),
            "flow gradient + deformation": (0.01,),
        },
        examples=100,
        held_out=1000,
    )


_CIFAR_SMALL = _cifar("small-cnn-relu", Model(name="small-cnn", width=0.5))
_CIFAR = _cifar("preact-resnet-18-relu", Model(name="preact-resnet-18", width=0.125))

SETTINGS = (
    _MNIST,
    _DIGITS,
    _activated(_MNIST, "gelu", COMPARED),
    _activated(_DIGITS, "gelu", COMPARED)._replace(seeds=1),
    _activated(_MNIST, "silu", SMOOTHED)._replace(curves=False),
    _cifar("vgg-13-relu", Model(name="vgg-13", width=0.25)),
    _cifar("resnet-20-relu", Model(name="resnet-20", width=0.5)),
    _MNIST_RESIDUAL,
    _activated(_MNIST_RESIDUAL, "gelu", SMOOTHED),
    _activated(_MNIST_RESIDUAL, "silu", SMOOTHED),
    _activated(_CIFAR_SMALL, "relu", SMOOTHED),
    _activated(_CIFAR_SMALL, "gelu", SMOOTHED),
    _activated(_CIFAR_SMALL, "silu", SMOOTHED),
    _activated(_CIFAR, "relu", SMOOTHED),
    _activated(_CIFAR, "gelu", COMPARED),
    _activated(_CIFAR, "silu", SMOOTHED),
)


def tries(setting: str, method: str) -> bool:
    """Whether a setting tries a method; one that the grid does not have may try all."""
    strengths = {one.name: one.strengths for one in SETTINGS}.get(setting)
    return strengths is None or method in strengths


def cells() -> list[Cell]:
    """All cells that can be computed, in the order for it.

    The methods that the claims name, or that are repeated, come before the others, and one seed before the second.
    """
    found = [
        Cell(setting, method, strength, seed)
        for setting in SETTINGS
        for method, strengths in setting.strengths.items()
        for seed in range(setting.seeds if method in setting.repeated else 1)
        for strength in strengths
    ]
    return sorted(found, key=lambda cell: (cell.method not in (*CLAIMED, *cell.setting.repeated), cell.seed))
