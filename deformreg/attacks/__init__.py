"""Attacks, one file each: per example, compiled and batched. `search` is the kit for writing another.

`stadv` needs Optax, which is optional: ``pip install optax``.
"""

from deformreg.attacks.adef import adef
from deformreg.attacks.apgd import apgd
from deformreg.attacks.ascent import Ascent, projected_ascent
from deformreg.attacks.attack import (
    Attack,
    AttackResult,
    Budget,
    DifferenceNorms,
    Examples,
    FlowNorms,
    LogitsFn,
    Search,
    measure,
)
from deformreg.attacks.elastic import elastic
from deformreg.attacks.estimated import nes, spsa
from deformreg.attacks.gradient import Perturbed, multi_step, one_step
from deformreg.attacks.greedy import greedy, greedy_step
from deformreg.attacks.pgd import pgd
from deformreg.attacks.random_fields import random_fields
from deformreg.attacks.spatial import rotation_translation
from deformreg.attacks.square import square
from deformreg.attacks.stadv import stadv
from deformreg.attacks.transfer import transfer

__all__ = [
    "Ascent",
    "Attack",
    "AttackResult",
    "Budget",
    "DifferenceNorms",
    "Examples",
    "FlowNorms",
    "LogitsFn",
    "Perturbed",
    "Search",
    "adef",
    "apgd",
    "elastic",
    "greedy",
    "greedy_step",
    "measure",
    "multi_step",
    "nes",
    "one_step",
    "pgd",
    "projected_ascent",
    "random_fields",
    "rotation_translation",
    "spsa",
    "square",
    "stadv",
    "transfer",
]
