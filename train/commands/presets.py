"""`presets`: what each preset trains, how long it takes, what to expect."""

from __future__ import annotations

from train.presets import table


def run(arguments: list[str]) -> int:
    """Prints the table; takes no options."""
    print(table())
    return 0
