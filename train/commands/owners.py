"""Options that belong to another method, optimizer, schedule or rule than the chosen one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from train.config import Config
from train.errors import ConfigError
from train.methods import METHODS
from train.methods.given import Given
from train.methods.penalties import RULES
from train.optimizers import OPTIMIZERS
from train.schedules import SCHEDULES

_KINDS: dict[str, Mapping[str, type[Any]]] = {
    "method.rule": RULES,  # first: its options begin like those of a method
    "method": METHODS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}
"""The kinds that an option chooses among, by what the names of their own options begin with."""

_OPTION = re.compile(rf"--({'|'.join(map(re.escape, _KINDS))})\.(?:no-)?([a-z0-9-]+)")


def check_owners(arguments: Sequence[str], config: Config) -> None:
    """Checks that the options of a command line belong to the kinds that it chooses.

    Args:
        arguments: the command line.
        config: of the kinds that it chooses.

    Raises:
        ConfigError: an option belongs to other kinds only; the message names them and how to choose one. An option
            that no kind has is left to the parser, which knows similar ones.
    """
    for argument in arguments:
        match = _OPTION.match(argument.partition("=")[0].replace("_", "-"))
        if match is None:
            continue
        group, option = match.groups()
        if group == "method.rule" and not hasattr(config.method, "rule"):
            group, option = "method", "rule"
        chosen: Any = getattr(config.method, "rule", None) if group == "method.rule" else getattr(config, group)
        owners = [name for name, kind in _KINDS[group].items() if kind is not Given and option in _options(kind)]
        if owners and chosen.name not in owners:
            noun = group.removeprefix("method.")
            raise ConfigError(
                f"{match[0]} is no option of the {noun} {chosen.name}: {', '.join(owners)} "
                f"{'have' if len(owners) > 1 else 'has'} it, and --{noun} {owners[0]} chooses "
                f"{'one of them' if len(owners) > 1 else 'that'}"
            )


def _options(kind: type[Any]) -> set[str]:
    """The options of a kind as a command line spells them, without its name."""
    return {field.name.replace("_", "-") for field in dataclasses.fields(kind) if field.name != "name"}
