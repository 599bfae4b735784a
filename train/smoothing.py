"""Noise of randomized smoothing by name: families and laws, for certificates and for the training that they need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

import deformreg
from deformreg import Perturbation
from deformreg.certification import SmoothingLaw, laws
from deformreg.fields import AFFINE_PARAMETERS
from train.errors import ConfigError


class Family(NamedTuple):
    """A perturbation family to certify against.

    Attributes:
        make: the family, of which only coarse flows use the stride; black enters at the border, as in training.
        sigma: of its noise by default, in `units`.
        units: of its parameters; one for all of them, or one each.
        threat: one of its perturbations in words.
        summary: for the help text.
    """

    make: Callable[[int], Perturbation]
    sigma: tuple[float, ...]
    units: tuple[str, ...]
    threat: str
    summary: str

    @property
    def factors(self) -> list[float]:
        """What turns each of `units` into the unit of the parameter: radians for degrees."""
        return [math.pi / 180 if unit == "degrees" else 1.0 for unit in self.units]

    def widths(self, sigma: tuple[float, ...], *, option: str) -> tuple[float, ...]:
        """The widths of the noise, by default the family's.

        Raises:
            ConfigError: there are too many or too few; it names `option`.
        """
        sigma = sigma or self.sigma
        counts = {len(self.units)} if len(set(self.units)) > 1 else {1, len(self.units)}
        if len(sigma) not in counts:
            expected = " or ".join(str(count) for count in sorted(counts))
            given, units = " ".join(map(str, sigma)), ", ".join(self.units)
            raise ConfigError(f"{option} must be {expected} numbers ({units}), got {given}")
        return sigma

    def law(self, name: str, sigma: Sequence[float]) -> SmoothingLaw:
        """The law of that name with one width for all parameters, or with one each, in `units`."""
        width = sigma[0] * self.factors[0] if len(sigma) == 1 else np.multiply(sigma, self.factors)
        return laws.LAWS[name](width)


def _affine(*parameters: str) -> Callable[[int], Perturbation]:
    return lambda _: deformreg.affine(parameters=parameters, boundary="zeros")


FAMILIES = {
    "flow": Family(lambda _: deformreg.flow(boundary="zeros"), (0.3,), ("px",), "flow", "every pixel on its own"),
    "smooth": Family(
        make=lambda stride: deformreg.lowres_flow(stride, boundary="zeros"),
        sigma=(1.0,),
        units=("px",),
        threat="coarse flow",
        summary="a coarse flow, interpolated",
    ),
    "translation": Family(_affine("dy", "dx"), (1.0,), ("px", "px"), "translation", "dy, dx"),
    "rotation": Family(_affine("rotation"), (10.0,), ("degrees",), "rotation", "about the centre"),
    "affine": Family(
        make=_affine(*AFFINE_PARAMETERS),
        sigma=(10.0, 1.0, 1.0, 0.1, 0.1, 0.1),
        units=("degrees", "px", "px", "log scale", "log scale", "px per px"),
        threat="affine map",
        summary="rotation, dy, dx, two log scales, shear",
    ),
}
"""The families, by name."""

if TYPE_CHECKING:
    FamilyName = str
    LawName = str
else:
    FamilyName = Literal[(*FAMILIES,)]
    LawName = Literal[(*laws.LAWS,)]

SUMMARIES = "; ".join(f"{name}: {family.summary}" for name, family in FAMILIES.items())
"""For help texts."""

_SIGMAS = ", ".join(f"{' '.join(map(str, family.sigma))} for {name}" for name, family in FAMILIES.items())
SIGMA = (
    "Standard deviation of Gaussian noise, or half the width of uniform noise, in pixels; for rotation in degrees. "
    "Give one number, or one per parameter; affine needs six: "
    f"degrees, two in pixels, two log scales, pixels per pixel. By default {_SIGMAS}."
)
"""For help texts."""
