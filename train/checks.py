"""What `fit` refuses before a training begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from train import own, runs
from train.config import Config
from train.data import NoSplit
from train.errors import ConfigError, RunError
from train.methods import Method
from train.state import State
from train.task import Splits, open_split


def values(config: Any, method: Any, data: Any, optimizer: Any) -> None:
    """Raises `ConfigError` for the likeliest mix-ups, before a run folder is made."""
    if not isinstance(config, Config):
        raise ConfigError(f"config must be a train.Config, got {type(config).__name__}")
    if method is not None and not isinstance(method, Method):
        raise ConfigError(
            f"method must be a train.Method, got {_kind(method)}: give the config of a method as Config(method=...)"
        )
    if data is not None and not isinstance(data, Splits):
        raise ConfigError(f"data must be train.Splits of two sources, train and validation, got {_kind(data)}")
    if optimizer is not None and not callable(optimizer):
        raise ConfigError(
            f"optimizer must be a function of the learning rate, for example optax.lion, got {_kind(optimizer)}"
        )


def validation(config: Config, folder: Path) -> None:
    """Raises `RunError` if a run is continued with another test split that it is also validated on."""
    if not runs.Run(folder).config.exists():
        return
    before = runs.load_config(folder).data.test_split
    if before == config.data.test_split:
        return
    try:
        open_split(config, "validation", write=False)
    except NoSplit as error:
        raise RunError(
            f"{folder} is validated on its test images, so --data.test-split may not change (stored, current): "
            f"{before!r}, {config.data.test_split!r}"
        ) from error


def batch_size(config: Config, devices: int) -> None:
    """Raises `ConfigError` unless batches divide among the devices."""
    if config.batch_size % (devices * config.accumulate):
        raise ConfigError(
            f"--batch-size must be a multiple of {devices} devices times --accumulate {config.accumulate}, "
            f"got {config.batch_size}"
        )
    if config.labels.mixes and config.batch_size // devices % 2:
        raise ConfigError(
            "--labels.mixup and --labels.cutmix mix pairs of images: --batch-size must be an even number per device, "
            f"got {config.batch_size} on {devices}"
        )


def statistics(config: Config, shapes: State) -> None:
    """Raises `ConfigError` for statistics of batch normalization that the network does not have."""
    model, chosen = config.model, getattr(config.method, "statistics", "batch")
    # Passes on running statistics also leave out dropout, which any network of a user's own may have.
    varies = own.is_own(model.name) or model.given or model.dropout or model.stochastic_depth
    if jax.tree.leaves(shapes.batch_stats) or chosen == "batch" or (chosen == "running" and varies):
        return
    raise ConfigError(
        f"--method.statistics {chosen} has no effect on a network without batch normalization: leave it out"
    )


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
