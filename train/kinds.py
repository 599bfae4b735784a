"""Methods, optimizers, schedules and rules by name: what is not of the config's kind begins with its own defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from train.config import Config
from train.errors import ConfigError
from train.methods import METHODS
from train.methods.penalties import RULES
from train.optimizers import OPTIMIZERS
from train.schedules import SCHEDULES

T = TypeVar("T")


def choose(config: Config, *, method: str, optimizer: str, schedule: str, rule: str | None = None) -> Config:
    """A config with parts of the named kinds.

    Args:
        config: its parts of the same kinds stay as they are.
        method, optimizer, schedule: names.
        rule: of the method's gradient penalty; None leaves the method's.

    Raises:
        ConfigError: a rule for a method without a gradient penalty.
    """
    config = replace(
        config,
        method=_chosen(METHODS, method, config.method),
        optimizer=_chosen(OPTIMIZERS, optimizer, config.optimizer),
        schedule=_chosen(SCHEDULES, schedule, config.schedule),
    )
    if rule is None:
        return config
    penalized: Any = config.method
    if not hasattr(penalized, "rule"):
        raise ConfigError(f"--rule needs a method with a gradient penalty, got {penalized.name}")
    return replace(config, method=replace(penalized, rule=_chosen(RULES, rule, penalized.rule)))


def _chosen(kinds: Mapping[str, type[T]], name: str, current: T) -> T:
    return current if kinds[name] is type(current) else kinds[name]()
