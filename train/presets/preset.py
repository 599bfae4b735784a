"""What a preset is, and how the families of presets are derived."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from train.config import Config
from train.methods import AnyMethod
from train.optimizers import Sgd
from train.schedules import Cosine


class Preset(NamedTuple):
    """A named config.

    Attributes:
        config: what is trained.
        summary: in a few words.
        duration: how long, where.
        source: where the recipe comes from.
        expect: accuracies that were measured or published, and which; empty where there are none.
    """

    config: Config
    summary: str
    duration: str
    source: str
    expect: str = ""

    def __str__(self) -> str:
        return "; ".join(part for part in (self.summary, self.duration, self.expect) if part)


class Group(NamedTuple):
    """The presets of a data set, by name."""

    title: str
    presets: Mapping[str, Preset]


def family(
    name: str,
    base: Preset,
    methods: Mapping[str, AnyMethod],
    expect: Mapping[str, str] | None = None,
    *,
    suffix: str = "",
    narrow: Callable[[Config], Config] | None = None,
) -> dict[str, Preset]:
    """Presets that differ in their training method only, named ``NAME-METHOD[SUFFIX]``.

    Args:
        name: of the data set and the network.
        base: all but the method.
        methods: by their short names.
        expect: what to expect of a method, by its short name.
        suffix: of the names.
        narrow: makes the config of a second preset of each, ``...-narrow``.
    """
    presets = {}
    for short, method in methods.items():
        full = base._replace(
            config=replace(base.config, method=method),
            summary=f"{base.summary}, {method.name}{' by its dual norm' * (_size(method) != 'squared')}",
            expect=(expect or {}).get(short, ""),
        )
        presets[f"{name}-{short}{suffix}"] = full
        if narrow is not None:
            presets[f"{name}-{short}{suffix}-narrow"] = full._replace(
                config=narrow(full.config),
                summary=f"{full.summary}, 1/8 width",
                duration="minutes on two cores",
                expect="a trend, not the figures of the whole network",
            )
    return presets


def _size(method: AnyMethod) -> str:
    """Of which gradient penalty."""
    return getattr(method, "size", "squared")


def narrow(config: Config) -> Config:
    """An eighth of the width and 8 epochs, SGD with a learning rate to match; otherwise the same recipe."""
    return replace(
        config,
        model=replace(config.model, width=0.125),
        optimizer=Sgd(learning_rate=0.05),
        schedule=Cosine(),
        evaluation=replace(config.evaluation, steps=20, examples=1000),
        epochs=8,
    )
