"""Training methods: one file a kind, one line in `AnyMethod`."""

from __future__ import annotations

from typing import get_args

from train.methods.adversarial import Adversarial, Deformation
from train.methods.cure import Cure
from train.methods.displacement import Displacement
from train.methods.elle import Elle
from train.methods.fast import Fast, NFgsm
from train.methods.given import Given
from train.methods.gradient import FlowGradient, FlowGradientAdversarial, FlowGradientDeformation, InputGradient
from train.methods.greedy import Greedy
from train.methods.llr import Llr
from train.methods.mart import Mart
from train.methods.method import CLEAN, NO_PENALTY, Aux, Forward, Inputs, Method, Penalty, Terms
from train.methods.noise import Noise
from train.methods.random_flows import RandomFlows
from train.methods.several import Gradients
from train.methods.spatial import Spatial
from train.methods.standard import Standard
from train.methods.trades import Trades

AnyMethod = (
    Standard  #
    | FlowGradient
    | InputGradient
    | Gradients
    | Displacement
    | Adversarial
    | Deformation
    | Greedy
    | FlowGradientDeformation
    | FlowGradientAdversarial
    | Spatial
    | RandomFlows
    | Noise
    | Trades
    | Mart
    | Fast
    | NFgsm
    | Elle
    | Cure
    | Llr
    | Given
)
"""The registry: each kind is a config with its own options only, and `make` gives the value."""

METHODS = {kind.name: kind for kind in get_args(AnyMethod)}

__all__ = [
    "CLEAN",
    "METHODS",
    "NO_PENALTY",
    "AnyMethod",
    "Aux",
    "Forward",
    "Inputs",
    "Method",
    "Penalty",
    "Terms",
]
