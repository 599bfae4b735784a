"""Networks of a user's own: a Flax Linen module, or a function that makes one for a number of classes.

On the command line ``--model.name package.module:factory`` names such a function. A run folder may come from a
stranger, so what its config names is never imported: `load` is called for command lines alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import flax.linen as nn

from train.errors import ConfigError, one_line

Factory = Callable[..., nn.Module]
"""Called with ``num_classes=...``; the class of a module that has this attribute is one."""

Networks = dict[str, Factory]
"""Factories by the names that a command line gave them."""


def is_own(name: str) -> bool:
    """Whether a network's name is that of a factory in a module."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), attribute))


def load(names: Sequence[str]) -> Networks:
    """Imports factories that a command line names.

    Args:
        names: as ``package.module:factory``.

    Raises:
        ConfigError: there is no such module or function.
    """
    return {name: _load(name) for name in names}


def _load(name: str) -> Factory:
    if not is_own(name):
        raise ConfigError(f"--model.name must be package.module:factory, got {name!r:.80}")
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"--model.name {name}: {module_name} cannot be imported ({type(error).__name__}: {one_line(error)})"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ConfigError(f"--model.name {name}: {module_name} has no function or class {attribute}")
    made: Factory = factory
    return made


def make(model: nn.Module | Factory, num_classes: int) -> nn.Module:
    """A network, made for a number of classes if it is not a module yet.

    Raises:
        ConfigError: the factory cannot be called with ``num_classes``, or returns no Flax Linen module; or the module
            has an attribute that is not hashable.
    """
    made: object = model
    if not isinstance(model, nn.Module):
        try:
            made = model(num_classes=num_classes)
        except Exception as error:
            raise ConfigError(
                f"the network's factory fails when called with num_classes={num_classes} "
                f"({type(error).__name__}: {one_line(error)})"
            ) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"the network's factory must return a Flax Linen module, got {type(made).__name__}")
    try:
        hash(made)  # compiled programs are kept by their network
    except TypeError as error:
        raise ConfigError(
            f"the attributes of the network {type(made).__name__} must be hashable "
            f"({one_line(error.__cause__ or error)}): give it a tuple in place of a list or an array"
        ) from error
    return made
