"""Digits: sets that need no download, trained in seconds to minutes on two cores."""

from __future__ import annotations

from dataclasses import replace

from train.config import Config, Data, Evaluation, Model
from train.data import Augmentation
from train.methods.gradient import FlowGradient
from train.methods.greedy import Greedy
from train.methods.spatial import Spatial
from train.optimizers import Sgd
from train.presets.preset import Group, Preset, family

_SOURCE = "this project's recipe"

_MNIST = Preset(
    Config(
        data=Data(name="mnist5k"),
        augmentation=Augmentation(shift=1),
        model=Model(name="small-cnn", width=0.5),
        optimizer=Sgd(learning_rate=0.05, nesterov=True),
        evaluation=Evaluation(radius=0.675, steps=50, examples=500),
        batch_size=32,
        epochs=3,
    ),
    "small CNN",
    "half a minute on two cores",
    _SOURCE,
)

_GELU = _MNIST._replace(
    config=replace(_MNIST.config, model=replace(_MNIST.config.model, activation="gelu")), summary="small CNN with GELU"
)

_SPATIAL = _MNIST._replace(
    config=replace(_MNIST.config, optimizer=Sgd(learning_rate=0.1, nesterov=True), batch_size=128, epochs=12),
    duration="minutes on two cores",
)

_DIGITS = Preset(
    Config(
        data=Data(name="digits"),
        model=Model(name="small-cnn"),
        optimizer=Sgd(learning_rate=0.1, nesterov=True),
        evaluation=Evaluation(radius=0.175, steps=50, batch_size=50),
        epochs=20,
    ),
    "small CNN",
    "10 s on two cores",
    _SOURCE,
)

_FLOW = FlowGradient(weight=12.0)

MNIST5K = Group(
    "mnist5k: 4,000 and 1,000 MNIST images",
    {
        **family(
            "mnist5k",
            _MNIST,
            {"standard": Config().method, "flow": _FLOW, "greedy": Greedy(radius=0.125)},
            {
                "standard": "97 % clean, at 0.675 px 8 % multi-step, 0 % under `standard`",
                "flow": "97 % clean, at 0.675 px 32 % multi-step, 1 % under `standard`",
                "greedy": "97 % clean, at 0.675 px 34 % multi-step, 0 % under `standard`; at 0.3 px 73 %",
            },
        ),
        **family(
            "mnist5k-gelu",
            _GELU,
            {"standard": Config().method, "flow": _FLOW},
            {"standard": "97 % clean, at 0.675 px 7 % multi-step"},
        ),
        **family(
            "mnist5k",
            _SPATIAL,
            {"spatial": Spatial(radius=3.0, degrees=30.0, draws=10)},
            {"spatial": "98 % clean; 89 % under the grid of 3 px and 30 degrees (standard training: 14 %)"},
        ),
    },
)

DIGITS = Group(
    "digits: 1,500 and 297 digits of 8x8",
    family(
        "digits",
        _DIGITS,
        # Coarser images have steeper losses per pixel, so the weight is smaller.
        {"standard": Config().method, "flow": FlowGradient(weight=1.0), "greedy": Greedy(radius=0.2)},
        {
            "standard": "99.7 % clean, at 0.175 px 57 to 58 % multi-step, 28 % under `standard`",
            "flow": "99.7 % clean, at 0.175 px 73 to 78 % multi-step, 54 % under `standard`",
            "greedy": "99.3 % clean, at 0.175 px 89 % multi-step, 80 % under `standard`",
        },
    ),
)
