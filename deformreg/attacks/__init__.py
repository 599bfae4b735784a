"""Attacks: one file each, all of them per example, compiled and batched."""

from deformreg.attacks.ascent import Ascent, projected_ascent
from deformreg.attacks.gradient import Perturbed, multi_step, one_step

__all__ = ["Ascent", "Perturbed", "multi_step", "one_step", "projected_ascent"]
