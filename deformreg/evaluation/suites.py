"""Suites: lists of attacks for `deformreg.evaluate`, by how much time there is.

The budget bounds every component of the final displacement field, in pixels, whatever the attack: the worst case over
a suite is the robust accuracy at that radius. `spatial` alone is about another threat, whole rotations and
translations.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from deformreg.attacks.adef import adef
from deformreg.attacks.apgd import apgd
from deformreg.attacks.attack import Attack
from deformreg.attacks.elastic import elastic
from deformreg.attacks.estimated import nes, spsa
from deformreg.attacks.pgd import pgd
from deformreg.attacks.random_fields import random_fields
from deformreg.attacks.spatial import rotation_translation
from deformreg.attacks.square import square
from deformreg.attacks.stadv import stadv
from deformreg.balls import linf


def quick(radius_pixels: float) -> list[Attack]:
    """Seconds on small models: for looking at while training.

    Args:
        radius_pixels: the bound on every component of the displacement field.

    Returns:
        Ten random fields, then 20 steps that count any iterate.

    Example:
        >>> [attack.name for attack in quick(1.5)]
        ['random', 'pgd']
    """
    ball = linf(radius_pixels)
    return [
        random_fields(ball=ball, num_fields=10, name="random"),
        pgd(ball=ball, num_steps=20, keep="any", name="pgd"),
    ]


def standard(radius_pixels: float, *, classes: int = 10) -> list[Attack]:
    """What a reported number should have withstood.

    Args:
        radius_pixels: the bound on every component of the displacement field.
        classes: of the model; with fewer than four the margin stands in for the difference of logits ratio.

    Returns:
        Random fields, multi-step from zero and from random starts, APGD on two losses, small rotations with
        translations, and Square.

    Example:
        >>> [attack.name for attack in standard(1.5)]
        ['random', 'pgd', 'apgd-ce', 'apgd-dlr', 'rotation-translation', 'square']
    """
    ball, ratio = linf(radius_pixels), _ratio(classes)
    return [
        random_fields(ball=ball, num_fields=50, name="random"),
        pgd(ball=ball, num_steps=50, restarts=2, keep="any", name="pgd"),
        apgd(ball=ball, num_steps=100, name="apgd-ce"),
        apgd(ball=ball, num_steps=100, loss=ratio, name="apgd-dlr"),
        rotation_translation(grid=(5, 5, 5), max_component=radius_pixels, boundary="edge", name="rotation-translation"),
        square(ball=ball, num_queries=500, name="square"),
    ]


def full(radius_pixels: float, *, classes: int = 10) -> list[Attack]:
    """`standard` with more of everything, and every other kind of attack.

    Args:
        radius_pixels: the bound on every component of the displacement field.
        classes: of the model, see `standard`; up to nine others are targeted, where an evaluation has no targets of
            its own.

    Returns:
        More restarts, targeted APGD, ADef, stAdv inside the bound, elastic fields, a denser grid, 5000 queries for
        Square, SPSA and NES. stAdv needs Optax.

    Raises:
        ImportError: Optax is not installed.

    Example:
        >>> [attack.name for attack in full(1.5)][:4]
        ['random', 'pgd', 'apgd-ce', 'apgd-dlr']
    """
    ball, ratio = linf(radius_pixels), _ratio(classes)
    return [
        random_fields(ball=ball, num_fields=200, name="random"),
        pgd(ball=ball, num_steps=100, restarts=5, keep="any", name="pgd"),
        apgd(ball=ball, num_steps=100, restarts=5, name="apgd-ce"),
        apgd(ball=ball, num_steps=100, loss=ratio, restarts=5, name="apgd-dlr"),
        apgd(ball=ball, loss=ratio, num_targets=min(9, classes - 1), name="apgd-targeted"),
        adef(max_norm=radius_pixels, candidates=1, name="adef"),
        stadv(ball=ball, num_evaluations=200, keep="any", name="stadv"),
        elastic(radius_pixels, num_steps=100, restarts=2, name="elastic"),
        rotation_translation(
            grid=(31, 5, 5), max_component=radius_pixels, boundary="edge", name="rotation-translation"
        ),
        square(ball=ball, num_queries=5000, name="square"),
        spsa(ball=ball, num_steps=20, num_samples=50, name="spsa"),
        nes(ball=ball, num_steps=20, num_samples=50, name="nes"),
    ]


def spatial(radius_pixels: float, *, degrees_per_pixel: float = 10.0) -> list[Attack]:
    """Rotations and translations as a threat of their own: black enters, pixels far from the centre move far.

    Args:
        radius_pixels: the largest translation along either axis; 3 in the paper.
        degrees_per_pixel: the largest rotation over it, so that one number is the budget; 30 degrees in the paper.

    Returns:
        The worst of ten random ones, then the paper's whole grid.

    Example:
        >>> [attack.name for attack in spatial(3.0)]
        ['worst-of-10', 'grid']

    References:
        Engstrom et al., "Exploring the Landscape of Spatial Robustness", ICML 2019.
    """
    attack = partial(rotation_translation, max_degrees=degrees_per_pixel * radius_pixels, max_pixels=radius_pixels)
    return [attack(grid=None, num_draws=10, name="worst-of-10"), attack(grid=(31, 5, 5), name="grid")]


def _ratio(classes: int) -> Literal["dlr", "margin"]:
    return "dlr" if classes >= 4 else "margin"  # three would do for the untargeted ratio alone
