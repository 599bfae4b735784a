"""A network that subtracts a mean from its images and divides by a standard deviation, channel by channel."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array


class Standardized(nn.Module):
    """A network that standardizes its images, so that attacks and penalties see them in [0, 1].

    Attributes:
        network: takes the standardized images.
        mean: one number per channel; none for 0.
        std: one number per channel; none for 1.
    """

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def setup(self) -> None:
        # Weights keep their names, with standardization or without.
        nn.share_scope(self, self.network)

    def __call__(self, images: Array, train: bool = False, keys: Array | None = None) -> Any:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != images.shape[-1]:
                raise ValueError(f"{name} must be {images.shape[-1]} numbers, one per channel, got {len(values)}")
        mean, std = jnp.array(self.mean or (0.0,), images.dtype), jnp.array(self.std or (1.0,), images.dtype)
        return self.network((images - mean) / std, train=train, **({} if keys is None else {"keys": keys}))
