"""Whether flow gradient regularization raises certified radii, with and without training under the certificate's noise.

A small network is trained on `digits`: standard and with the penalty, and for every family of deformations under its
noise, again without and with the penalty. Each is certified by randomized smoothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.claims.grid import SETTINGS
from benchmarks.options import Several, Written
from benchmarks.rows import Rows
from train.certification import Smoothing, certify_run
from train.loop import fit
from train.methods import AnyMethod
from train.methods.gradient import FlowGradient
from train.methods.noise import Noise
from train.methods.standard import Standard
from train.ranges import Count, Positive, Seed
from train.restored import open_run

FAMILIES = {"rotation": 10.0, "translation": 0.5, "smooth": 0.5}
"""Families that are certified, with the sigma of their noise: degrees, and pixels of 8x8."""


@dataclass(frozen=True, kw_only=True)
class Options(Written):
    """Trains small networks on digits with and without the flow gradient penalty and certifies them."""

    seeds: Several[Seed] = (0, 1, 2)
    """Seeds of the trainings."""
    weight: Positive = 3.0
    """Weight of the penalty."""
    examples: Count = 200
    """Test images to certify."""
    num_samples: Count = 2000
    """Draws per image."""


def run(options: Options) -> Rows:
    """A row per family and method: means over the seeds, and the smallest and largest mean radius."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            plain: dict[str, AnyMethod] = {"standard": Standard(), "flow gradient": FlowGradient(weight=options.weight)}
            for name, method in plain.items():
                run = _trained(method, seed, Path(folder))
                for family in FAMILIES:
                    found.setdefault((family, name), []).append(_certified(run, family, options))
            for family, sigma in FAMILIES.items():
                for name, weight in {"noise": 0.0, "noise + flow gradient": options.weight}.items():
                    noise = Noise(family=family, sigma=(sigma,), flow_gradient=weight)
                    run = _trained(noise, seed, Path(folder))
                    found.setdefault((family, name), []).append(_certified(run, family, options))
    return [_row(family, name, rows) for family in FAMILIES for (of, name), rows in found.items() if of == family]


def _trained(method: AnyMethod, seed: int, folder: Path) -> Path:
    """A run of the claims' small network on digits."""
    config = next(one for one in SETTINGS if one.name == "digits/small-cnn-relu").config
    run = folder / f"run-{len(list(folder.iterdir()))}"
    fit(replace(config, method=method, seed=seed), run)
    return run


def _certified(run: Path, family: str, options: Options) -> dict[str, Any]:
    smoothing = Smoothing(family=family, sigma=(FAMILIES[family],), num_samples=options.num_samples)
    return certify_run(run.name, open_run(run, examples=options.examples), smoothing).row


def _row(family: str, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    radii = [row["mean_radius"] for row in rows]
    return {
        "family": family,
        "method": name,
        "sigma": FAMILIES[family],
        "unit": rows[0]["unit"],
        "clean_accuracy": fmean(row["clean_accuracy"] for row in rows),
        "smoothed_accuracy": fmean(row["smoothed_accuracy"] for row in rows),
        "mean_radius": fmean(radii),
        "range": f"{min(radii):.3g} to {max(radii):.3g}",
        "seeds": len(rows),
        "examples": rows[0]["examples"],
        "num_samples": rows[0]["num_samples"],
    }
