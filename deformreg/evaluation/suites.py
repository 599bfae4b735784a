"""Suites of attacks for `deformreg.evaluate`, from seconds to hours.

Call a suite with a radius to get its attacks: ``suites.standard(0.5)``. In `quick`, `standard` and `full` the radius
bounds every component of the final displacement field in pixels, whatever the attack, so the worst case over the suite
is the robust accuracy at that radius. `spatial` covers another threat, rotations and translations of the whole image.

A new suite is one `Suite` and one line in `SUITES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from deformreg import _checks
from deformreg.attacks.adef import adef
from deformreg.attacks.apgd import apgd
from deformreg.attacks.attack import Attack
from deformreg.attacks.elastic import elastic
from deformreg.attacks.estimated import nes, spsa
from deformreg.attacks.greedy import greedy
from deformreg.attacks.pgd import pgd
from deformreg.attacks.random_fields import random_fields
from deformreg.attacks.spatial import rotation_translation
from deformreg.attacks.square import square
from deformreg.attacks.stadv import stadv
from deformreg.balls import linf
from deformreg.criteria import Criterion


@dataclass(frozen=True, eq=False)
class Suite:
    """Attacks by name, each a function of the radius, in the order in which an evaluation runs them.

    Attributes:
        makers: by the attack's name, a function from the radius to the attack. The radius may be traced.

    Raises:
        ValueError: no attacks.

    Example:
        >>> mine = Suite({"weak": lambda radius: pgd(ball=linf(radius), num_steps=5)})
        >>> [attack.name for attack in mine(0.5)]
        ['weak']
    """

    makers: Mapping[str, Callable[[Any], Attack]]

    def __post_init__(self) -> None:
        if not self.makers:
            raise ValueError("a suite must hold at least one attack, got none")

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks' names, in order."""
        return tuple(self.makers)

    def member(self, name: str, radius: Any) -> Attack:
        """Makes one attack at a radius; the others are not made.

        Args:
            name: of the attack.
            radius: of the budget, in pixels; it may be traced.

        Returns:
            The attack, with this name.

        Raises:
            KeyError: the suite has no attack of this name.
        """
        return self.makers[name](radius)._replace(name=name)

    def __call__(self, radius: Any) -> list[Attack]:
        """Makes all attacks at a radius."""
        return [self.member(name, radius) for name in self.names]

    def suited_to(self, criterion: Criterion) -> Suite:
        """Returns the members that can attack under a criterion: without those that need one class per image.

        Args:
            criterion: see `deformreg.criteria`.

        Returns:
            The suite, or a shorter one.

        Raises:
            ValueError: none would be left.
        """
        fit = {name: make for name, make in self.makers.items() if criterion.one_class or not make(1.0).one_class}
        return Suite(fit)

    def plus(self, name: str, make: Callable[[Any], Attack]) -> Suite:
        """Returns the suite followed by one more attack.

        Args:
            name: of the attack.
            make: a function from the radius to the attack.

        Returns:
            The longer suite.

        Raises:
            ValueError: the suite has an attack of this name.
        """
        if name in self.makers:
            raise ValueError(f"attacks of a suite must have different names, got {name!r} twice")
        return Suite({**self.makers, name: make})

    def without(self, *names: str) -> Suite:
        """Returns the suite without some attacks, for example those that do not take signals or volumes.

        Args:
            names: of the attacks to leave out, not of all.

        Returns:
            The shorter suite.

        Raises:
            ValueError: the suite has no attack of such a name, or none would be left.
        """
        for name in names:
            _checks.choice("names", name, self.names)
        return Suite({name: make for name, make in self.makers.items() if name not in names})


def fixed(attacks: Iterable[Attack]) -> Suite:
    """Makes a suite of finished attacks, which ignores the radius.

    Args:
        attacks: one or more, of different names.

    Returns:
        The suite.

    Raises:
        TypeError: one attack alone, or what is no attack.
        ValueError: no attacks, or two with the same name.

    Example:
        >>> fixed([pgd(ball=linf(0.5), num_steps=5, name="weak")]).names
        ('weak',)
    """
    if isinstance(attacks, Attack):
        raise TypeError(f"attacks must be a list of attacks, got the attack {attacks.name!r} alone: give [attack]")
    if not isinstance(attacks, Iterable) or isinstance(attacks, (str, bytes)):
        raise TypeError(
            f"attacks must be a list of attacks or a suite, got {_checks.described(attacks)}: "
            "for example deformreg.evaluation.suites.standard(0.5)"
        )
    example = "pgd(ball=linf(0.5), num_steps=50)"
    attacks = tuple(_checks.instance("attacks", attack, Attack, example) for attack in attacks)
    names = [attack.name for attack in attacks]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"attacks must be one or more of different names, got {names}")
    return Suite({attack.name: partial(_same, attack) for attack in attacks})


def _same(attack: Attack, radius: Any) -> Attack:
    del radius
    return attack


def rotations_and_translations(*, degrees_per_pixel: float = 10.0) -> Suite:
    """Makes a suite of whole-image rotations and translations; black enters at the border.

    The radius is the largest translation along either axis in pixels; 3 in the paper.

    Args:
        degrees_per_pixel: the largest rotation in degrees, divided by the radius, so that one number is the budget;
            10 in the paper (30 degrees at 3 pixels).

    Returns:
        The worst of ten random maps, then the paper's whole grid.

    Example:
        >>> rotations_and_translations().names
        ('worst-of-10', 'grid')

    References:
        Engstrom et al., "Exploring the Landscape of Spatial Robustness", ICML 2019.
    """

    def make(radius: Any, **options: Any) -> Attack:
        return rotation_translation(max_degrees=degrees_per_pixel * radius, max_pixels=radius, **options)

    return Suite(
        {
            "worst-of-10": partial(make, grid=None, num_draws=10),
            "grid": partial(make, grid=(31, 5, 5)),
        }
    )


def _small_rotations(radius: Any, grid: tuple[int, int, int]) -> Attack:
    return rotation_translation(grid=grid, max_component=radius, boundary="edge")


def _baseline(radius: Any, num_fields: int) -> Attack:
    return random_fields(ball=linf(radius), num_fields=num_fields)._replace(sample=SAMPLE)


SAMPLE = 32
"""Examples that the baseline of random fields tries: it is to show that the other attacks work, and breaks few."""

quick = Suite({"greedy": lambda radius: greedy(ball=linf(radius), num_steps=20)})
"""Takes seconds on small models: 20 steps of the greedy attack. For a look during training; an evaluation's diagnosis
tells whether gradients mislead."""

standard = Suite(
    {
        "greedy": lambda radius: greedy(ball=linf(radius), num_steps=220),
        "greedy-margin": lambda radius: greedy(ball=linf(radius), num_steps=560, loss="margin"),
        "apgd-targeted": lambda radius: apgd(ball=linf(radius), num_steps=20, loss="dlr", num_targets=4),
        "square": lambda radius: square(ball=linf(radius), num_queries=100),
        "rotation-translation": lambda radius: _small_rotations(radius, (5, 5, 5))._replace(sample=SAMPLE),
        "random": partial(_baseline, num_fields=50),
    }
)
"""The least that a published robust accuracy should rest on: the greedy attack on the cross-entropy and on the margin,
APGD towards the four likeliest other classes, and Square; small rotations with translations and random fields as
baselines on up to 32 images."""

full = Suite(
    {
        "greedy": lambda radius: greedy(ball=linf(radius), num_steps=1000),
        "greedy-margin": lambda radius: greedy(ball=linf(radius), num_steps=1000, loss="margin"),
        "pgd": lambda radius: pgd(ball=linf(radius), num_steps=100, restarts=5, keep="any"),
        "apgd-ce": lambda radius: apgd(ball=linf(radius), num_steps=100, restarts=5),
        "apgd-dlr": lambda radius: apgd(ball=linf(radius), num_steps=100, loss="dlr", restarts=5),
        "apgd-targeted": lambda radius: apgd(ball=linf(radius), loss="dlr", num_targets=9),
        "adef": lambda radius: adef(max_norm=radius, candidates=1),
        "stadv": lambda radius: stadv(ball=linf(radius), num_evaluations=200, keep="any"),
        "elastic": lambda radius: elastic(radius, num_steps=100, restarts=2),
        "rotation-translation": partial(_small_rotations, grid=(31, 5, 5)),
        "square": lambda radius: square(ball=linf(radius), num_queries=5000),
        "spsa": lambda radius: spsa(ball=linf(radius), num_steps=20, num_samples=50),
        "nes": lambda radius: nes(ball=linf(radius), num_steps=20, num_samples=50),
        "random": partial(_baseline, num_fields=200),
    }
)
"""`standard` with more of everything, and every other kind of attack: APGD towards up to nine other classes, ADef,
stAdv within the radius (needs Optax), elastic fields, a denser grid, 5000 queries of Square, SPSA and NES."""

spatial = rotations_and_translations()
"""The worst of ten random rotations and translations, then the paper's whole grid, with 10 degrees per pixel."""

gradient_free = Suite(
    {
        "random": lambda radius: random_fields(ball=linf(radius), num_fields=50),
        "square": lambda radius: square(ball=linf(radius), num_queries=2000),
        "rotation-translation": partial(_small_rotations, grid=(5, 5, 5)),
        "nes": lambda radius: nes(ball=linf(radius), num_steps=20, num_samples=50),
    }
)
"""For models without gradients (`deformreg.interop.from_numpy`): random fields, 2000 queries of Square, small rotations
with translations, and NES. Where gradients exist, it is weaker than `quick`."""

SUITES = {"quick": quick, "standard": standard, "full": full, "spatial": spatial, "gradient-free": gradient_free}
