"""The place that a method takes in a config when `fit` was given it as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from train.errors import ConfigError
from train.methods.method import Method
from train.ranges import HIDDEN


@dataclass(frozen=True)
class Given:
    """A method from your own script: `fit(config, folder, method=...)`."""

    name: Annotated[Literal["given"], HIDDEN] = "given"
    title: str = ""
    """The method's name."""

    def make(self) -> Method:
        raise ConfigError(f"the method {self.title!r} comes from a script: run it, or call fit(..., method=...) again")
