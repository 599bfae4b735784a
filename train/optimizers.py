"""Optimizers: one value a kind, one line in `AnyOptimizer`.

References:
    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019 (AdamW).
    You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR 2020 (LAMB).
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import optax
import optax.contrib
from jax.tree_util import keystr, tree_map_with_path

from train.errors import ConfigError
from train.ranges import HIDDEN, Fraction, NonNegative, Positive


@dataclass(frozen=True)
class _Optimizer:
    """Options that all optimizers have."""

    clip_norm: NonNegative = 0.0
    """Euclidean norm over all parameters to which a longer gradient is shortened; 0 for no limit."""
    decay_all: bool = True
    """Weight decay also shrinks biases, scales of normalization, tokens and positions, not only the layers' kernels."""

    def _clipped(self, *parts: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer of some parts, after clipping."""
        return optax.chain(*([optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []), *parts)

    @property
    def _mask(self) -> Callable[[Any], Any] | None:
        """Which parameters decay: None for all of them, or the kernels of layers."""
        return None if self.decay_all else lambda params: tree_map_with_path(lambda path, _: _is_kernel(path), params)


@dataclass(frozen=True)
class Sgd(_Optimizer):
    """Stochastic gradient descent with momentum."""

    learning_rate: Positive = 0.01
    """Peak learning rate."""
    momentum: Fraction = 0.9
    """Momentum, in [0, 1)."""
    nesterov: bool = False
    """Use Nesterov momentum."""
    weight_decay: NonNegative = 5e-4
    """As in PyTorch's SGD: this factor times the parameters is added to their gradients, before the momentum."""
    name: Annotated[Literal["sgd"], HIDDEN] = "sgd"

    def make(self, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        return self._clipped(
            optax.add_decayed_weights(self.weight_decay, self._mask),
            optax.sgd(rate, momentum=self.momentum or None, nesterov=self.nesterov),
        )


@dataclass(frozen=True)
class AdamW(_Optimizer):
    """Adam with decoupled weight decay."""

    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 0.05
    """Every step shrinks every parameter by the learning rate times this fraction of it."""
    beta1: Fraction = 0.9
    """Decay of the gradient's mean, in [0, 1)."""
    beta2: Fraction = 0.999
    """Decay of the gradient's mean square, in [0, 1)."""
    name: Annotated[Literal["adamw"], HIDDEN] = "adamw"

    def make(self, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        return self._clipped(
            optax.adamw(rate, b1=self.beta1, b2=self.beta2, weight_decay=self.weight_decay, mask=self._mask)
        )


@dataclass(frozen=True)
class Lamb(_Optimizer):
    """Adam whose step has a length in proportion to that of each parameter array: for large batches."""

    learning_rate: Positive = 1e-2
    """Peak learning rate."""
    weight_decay: NonNegative = 0.02
    """This factor times the parameters is added to Adam's direction."""
    beta1: Fraction = 0.9
    """Decay of the gradient's mean, in [0, 1)."""
    beta2: Fraction = 0.999
    """Decay of the gradient's mean square, in [0, 1)."""
    name: Annotated[Literal["lamb"], HIDDEN] = "lamb"

    def make(self, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        return self._clipped(
            optax.lamb(rate, b1=self.beta1, b2=self.beta2, weight_decay=self.weight_decay, mask=self._mask)
        )


@dataclass(frozen=True)
class Muon(_Optimizer):
    """Orthogonalized momentum for the kernels of dense and convolutional layers, AdamW for the other parameters.

    This AdamW has Nesterov's momentum, as in Optax's Muon. It also takes the kernels of one input channel: those of
    depthwise convolutions, which are no matrices, and that of a first convolution on gray images.
    """

    learning_rate: Positive = 1e-2
    """Peak learning rate, of both."""
    weight_decay: NonNegative = 0.01
    """Every step shrinks every parameter by the learning rate times this fraction of it."""
    momentum: Fraction = 0.95
    """Decay of the gradient's mean, in [0, 1); with Nesterov's look ahead."""
    name: Annotated[Literal["muon"], HIDDEN] = "muon"

    def make(self, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        def shrinkage(step: Any) -> Any:
            return -self.weight_decay * (rate(step) if callable(rate) else rate)

        return self._clipped(
            optax.contrib.muon(
                rate,
                beta=self.momentum,
                muon_weight_dimension_numbers=lambda params: tree_map_with_path(_as_matrix, params),
            ),
            # Muon's own decay has no mask for the parameters of AdamW, some of which are kernels.
            optax.add_decayed_weights(shrinkage, self._mask),
        )


def _is_kernel(path: tuple[Any, ...]) -> bool:
    """Whether a parameter is a layer's kernel, by its name."""
    return keystr(path[-1:], simple=True) == "kernel"


def _as_matrix(path: tuple[Any, ...], leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
    """A kernel as a matrix from all its inputs, with height and width, to its outputs; None for other parameters.

    None also for kernels of depthwise convolutions, which have three axes here and one input channel in Flax, and for
    those of Flax's attention, which have an axis of heads.
    """
    depthwise = leaf.ndim == 4 and leaf.shape[2] == 1
    if not _is_kernel(path) or leaf.ndim not in (2, 4) or depthwise:
        return None
    return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)


Make = Callable[[optax.Schedule], optax.GradientTransformation]
"""An optimizer of your own: a function from the learning rate, itself a function of the step, to a transformation."""


@dataclass(frozen=True)
class Given:
    """The place that an optimizer takes in a config when `fit` was given it: `fit(config, folder, optimizer=...)`."""

    title: str = ""
    """The name of the function."""
    learning_rate: Positive = 0.01
    """Peak learning rate."""
    name: Annotated[Literal["given"], HIDDEN] = "given"

    def make(self, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        raise ConfigError(
            f"the optimizer {self.title!r} of this run comes from a script: pass it there, as optimizer=..."
        )


AnyOptimizer = (
    Sgd  #
    | AdamW
    | Lamb
    | Muon
    | Given
)

OPTIMIZERS = {kind.name: kind for kind in get_args(AnyOptimizer)}
