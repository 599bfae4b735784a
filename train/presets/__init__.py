"""Presets: configs by name, with where they come from, how long they take and what to expect.

One file a kind of data, one line in `GROUPS`. The ``-narrow`` ones are the same at an eighth of the width and a few
epochs: minutes on two cores, to see the whole way from data to report.
"""

from __future__ import annotations

import difflib
import itertools

from train.errors import ConfigError
from train.presets.cifar import CIFAR10, CIFAR100
from train.presets.imagenet import IMAGENET, IMAGENET100, IMAGENETTE, PHOTOS
from train.presets.preset import Preset
from train.presets.small import DIGITS, MNIST5K

GROUPS = (
    MNIST5K,  #
    DIGITS,
    PHOTOS,
    CIFAR10,
    CIFAR100,
    IMAGENETTE,
    IMAGENET100,
    IMAGENET,
)

PRESETS: dict[str, Preset] = {name: preset for group in GROUPS for name, preset in group.presets.items()}


def find(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: there is none; the message has the nearest one.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, 1)
    hint = f"did you mean {near[0]}?" if near else "`python -m train presets` lists them"
    raise ConfigError(f"there is no preset {name!r}: {hint}")


def table() -> str:
    """All presets by their data sets and sources, one a line, for the terminal."""
    width = max(map(len, PRESETS))
    lines = []
    for group in GROUPS:
        lines += ["", group.title]
        for source, members in itertools.groupby(group.presets.items(), lambda item: item[1].source):
            lines += [f"  {source}", *(f"    {name:<{width}}  {preset}" for name, preset in members)]
    return "\n".join(lines[1:])
