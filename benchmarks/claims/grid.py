"""The grid, declared: data and networks, methods with their strengths, seeds, in the order in which they are computed.

A new method is one value in `METHODS`; its strengths stand in each setting. Budgets are chosen so that the standard
network is broken on most images at the middle radius.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from train.config import Config, Data, Model
from train.data import Augmentation
from train.methods import AnyMethod
from train.methods.adversarial import Adversarial, Deformation
from train.methods.gradient import FlowGradient, FlowGradientDeformation, InputGradient
from train.methods.random_flows import RandomFlows
from train.methods.spatial import Spatial
from train.methods.standard import Standard
from train.methods.trades import Trades
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
        budgets: of the evaluation.
        strengths: for each method of `METHODS`, the weights or radii that are tried.
        examples: number of test images to attack.
        seeds: how many.
    """

    name: str
    config: Config
    budgets: Budgets
    strengths: Mapping[str, tuple[float, ...]]
    examples: int = 200
    seeds: int = 1


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
        method = METHODS[self.method](self.strength, self.setting.budgets)
        return replace(self.setting.config, method=method, seed=self.seed)


METHODS: dict[str, Callable[[float, Budgets], AnyMethod]] = {
    "standard": lambda _, budgets: Standard(),
    "random flows": lambda radius, budgets: RandomFlows(radius=radius),
    "input gradient": lambda weight, budgets: InputGradient(weight=weight),
    "flow gradient": lambda weight, budgets: FlowGradient(weight=weight),
    "flow gradient, dual norm": lambda radius, budgets: FlowGradient(weight=radius, size="linf"),
    "flow gradient, random start": lambda weight, budgets: FlowGradient(
        weight=weight, random_start=budgets.seen[0] / 2
    ),
    "pixel adversarial": lambda radius, budgets: Adversarial(radius=radius),
    "deformation": lambda radius, budgets: Deformation(radius=radius),
    "deformation, 1 step": lambda radius, budgets: Deformation(radius=radius, steps=1, step_size=1.25 * radius),
    "worst of 10 rotations": lambda share, budgets: Spatial(
        radius=share * budgets.shift, degrees=share * budgets.degrees, draws=10
    ),
    "TRADES": lambda beta, budgets: Trades(beta=beta, radius=budgets.seen[1]),
    "flow gradient + deformation": lambda weight, budgets: FlowGradientDeformation(
        weight=weight, radius=budgets.seen[1]
    ),
}
"""What each method trains with at a strength: a weight, for the last radius methods a radius in its unit."""

_DIGITS = Setting(
    "digits/small-cnn-relu",
    Config(
        data=Data(name="digits", holdout=0.15),
        model=Model(name="small-cnn"),
        optimizer=Sgd(learning_rate=0.03, nesterov=True),  # larger steps diverge under large weights
        batch_size=64,
        epochs=30,
    ),
    Budgets(seen=(0.1, 0.2, 0.3), smooth=0.5, pixels=0.15, shift=0.5, degrees=10.0),
    {
        "standard": (0.0,),
        "flow gradient": (0.3, 1.0, 3.0, 10.0),
        "input gradient": (0.03, 0.1, 0.3, 1.0),
        "deformation": (0.1, 0.2, 0.3),
        "pixel adversarial": (0.05, 0.1, 0.15, 0.2),
        "flow gradient + deformation": (0.3, 1.0, 3.0),
        "flow gradient, dual norm": (0.05, 0.1, 0.2),
        "random flows": (0.2, 0.4),
        "deformation, 1 step": (0.1, 0.2, 0.3),
        "TRADES": (1.0, 3.0, 6.0),
        "worst of 10 rotations": (0.5, 1.0),
        "flow gradient, random start": (1.0, 3.0),
    },
    seeds=3,
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
    Budgets(seen=(0.25, 0.5, 0.75), smooth=1.5, pixels=0.1, shift=3.0, degrees=30.0),
    {
        "standard": (0.0,),
        "flow gradient": (4.0, 12.0, 36.0),
        "input gradient": (0.1, 0.3, 1.0),
        "deformation": (0.25, 0.5),
        "pixel adversarial": (0.05, 0.1, 0.2),
        "flow gradient + deformation": (4.0, 12.0),
        "flow gradient, dual norm": (0.1, 0.2, 0.4),
        "random flows": (0.5, 1.0),
        "deformation, 1 step": (0.25, 0.5),
        "TRADES": (1.0, 6.0),
        "worst of 10 rotations": (0.5, 1.0),
        "flow gradient, random start": (12.0, 36.0),
    },
    seeds=3,
)


def _smooth(setting: Setting) -> Setting:
    """The same with GELU in place of ReLU: smooth networks fit gradient penalties better."""
    model = replace(setting.config.model, activation="gelu")
    return setting._replace(
        name=setting.name.replace("relu", "gelu"), config=replace(setting.config, model=model), seeds=1
    )


SETTINGS = (_DIGITS, _MNIST, _smooth(_DIGITS), _smooth(_MNIST))


def cells() -> list[Cell]:
    """All cells, in the order in which they are computed: one seed of everything before the second."""
    seeds = max(setting.seeds for setting in SETTINGS)
    return [
        Cell(setting, method, strength, seed)
        for seed in range(seeds)
        for setting in SETTINGS
        if seed < setting.seeds
        for method, strengths in setting.strengths.items()
        for strength in strengths
    ]
