"""Whether deformations that fool one network fool another: the chosen networks of a setting, each against all others.

References:
    Papernot, McDaniel and Goodfellow, "Transferability in Machine Learning", arXiv 1605.07277.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from jax import Array
from tqdm import tqdm

import deformreg
from benchmarks.claims import grid, lines, plan, verdicts
from benchmarks.options import Several, Written
from benchmarks.rows import Rows
from deformreg import linf
from deformreg.attacks import pgd
from train.errors import ConfigError
from train.loop import fit
from train.restored import LogitsFn, Trained, open_run


@dataclass(frozen=True, kw_only=True)
class Options(Written):
    """Trains the networks that the claims chose, deforms test images against each, and shows them to all."""

    setting: Several[str] = ("mnist5k/small-cnn-relu", "mnist5k/small-cnn-gelu")
    """Settings of the grid of claims."""
    methods: Several[str] = grid.COMPARED
    """Methods, each at the strength that held-out images choose; those without finished cells are left out."""
    lines: Path = lines.FILE
    """The file of finished cells, which tells the strengths."""
    data_dir: str | None = None
    """The folder of data sets."""


def run(options: Options) -> Rows:
    """A row per network: its accuracy on clean images, on its own deformed ones and on those of the other networks.

    Raises:
        ConfigError: the grid has no such setting or method, or no network of the setting has finished cells.
    """
    if unknown := set(options.methods) - grid.METHODS.keys():
        raise ConfigError(f"--methods {min(unknown)!r}: the grid has {', '.join(grid.METHODS)}")
    cells = [cell for name in options.setting for cell in _chosen(name, options)]
    with tempfile.TemporaryDirectory() as folder:
        bar = tqdm(cells, desc="training", disable=None, leave=False)
        runs = [(cell, _trained(cell, Path(folder) / str(number), options)) for number, cell in enumerate(bar)]
        return [row for name in options.setting for row in _rows([one for one in runs if one[0].setting.name == name])]


def _chosen(name: str, options: Options) -> list[grid.Cell]:
    """The cells of a setting whose networks are compared: of the first seed, and of matched clean accuracy."""
    setting = next((one for one in grid.SETTINGS if one.name == name), None)
    if setting is None:
        raise ConfigError(f"--setting {name!r}: the grid has {', '.join(one.name for one in grid.SETTINGS)}")
    finished = plan.judgeable(lines.current(lines.read(options.lines), grid.cells()))
    found = verdicts.chosen(finished, name)
    chosen = {method: one for method, one in found.items() if method in options.methods and one.matched}
    cells = [grid.Cell(setting, method, one.strength, 0) for method, one in chosen.items()]
    if not cells:
        raise ConfigError(
            f"{options.lines} has no finished cells of matched accuracy of {name}: see python -m benchmarks claims"
        )
    return cells


def _trained(cell: grid.Cell, folder: Path, options: Options) -> Trained:
    fit(replace(cell.config, data=replace(cell.config.data, data_dir=options.data_dir)), folder)
    return open_run(folder, examples=cell.setting.examples)


def _rows(networks: Sequence[tuple[grid.Cell, Trained]]) -> Rows:
    """The rows of one setting."""
    radius = networks[0][0].setting.budgets.seen[1]
    attack = pgd(ball=linf(radius), num_steps=50, step_size=radius / 20, start="random", keep="best")

    @jax.jit
    def deformed(logits_fn: LogitsFn, images: Array, labels: Array) -> Array:
        return deformreg.warp(images, attack.run(logits_fn, images, labels, jax.random.key(0)).params)

    @jax.jit
    def is_right(logits_fn: LogitsFn, images: Array, labels: Array) -> Array:
        return logits_fn(images).argmax(axis=1) == labels

    sources = {cell.method: deformed(one.logits_fn, one.images[:], one.labels) for cell, one in networks}
    rows = []
    for cell, one in networks:
        clean = np.asarray(is_right(one.logits_fn, one.images[:], one.labels))
        kept = {
            name: clean & np.asarray(is_right(one.logits_fn, images, one.labels)) for name, images in sources.items()
        }
        others = [found for name, found in kept.items() if name != cell.method]
        rows.append(
            {
                "setting": cell.setting.name,
                "method": cell.method,
                "strength": cell.strength,
                "clean_accuracy": float(clean.mean()),
                "own": float(kept[cell.method].mean()),
                "transferred": float(np.logical_and.reduce([clean, *others]).mean()),
                "from": {name: float(found.mean()) for name, found in kept.items()},
                "radius_pixels": radius,
                "examples": len(clean),
            }
        )
    return rows
