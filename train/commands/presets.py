"""`presets`: what each preset trains, how long it takes, what to expect."""

from __future__ import annotations

from train.errors import ConfigError
from train.presets import table


def run(arguments: list[str]) -> int:
    """Prints the table.

    Raises:
        ConfigError: it takes no options.
    """
    if arguments and arguments[0] not in ("-h", "--help"):
        raise ConfigError(
            f"presets takes no options, got {' '.join(arguments)}: it lists all; `fit PRESET --help` explains one"
        )
    print(table())
    return 0
