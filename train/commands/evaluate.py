"""Attacks trained runs on their test images and compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro

from train import compiled, files, parts, processes, reports, runs
from train.commands.placement import Placement, join
from train.errors import ConfigError, say
from train.evaluation import Protocol, Study, SuiteName, evaluate_run, partial_of, without_effect
from train.options import validate
from train.ranges import CountOrNone, Positive, Seed
from train.restored import load_networks, open_runs, open_sources

ADVICE = (
    "suite:   released is weak, to compare with published numbers; evaluate with --suite standard for every accuracy "
    "that you report"
)
"""The last line that an evaluation prints under the default suite."""


@dataclass(frozen=True)
class Evaluate:
    """Attacks trained runs on their test images and compares them."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, all with the same test images.
    Images per batch are the run's `evaluation.batch_size`: `fit --resume RUN --no-evaluate --evaluation.batch-size N`
    changes it."""
    suite: SuiteName = "released"
    """released is weak, to compare with published numbers; standard is for every accuracy that you report.
    released: the multi-step attack of Xia and Li's code (zero start, last iterate; the first run's `evaluation.steps`),
    and then one of 15 steps of which any iterate counts.
    quick, standard, full: more and stronger attacks, any iterate counts.
    spatial: translations by at most the radius, with rotations by at most 10 degrees per pixel of it.
    (Engstrom et al. use a radius of 3 pixels.)
    gradient-free: attacks from answers alone; weaker than quick where gradients exist."""
    radius: Positive | None = None
    """Largest displacement per component in pixels; by default the first run's `evaluation.radius`."""
    radii: tuple[Positive, ...] = ()
    """Budgets in pixels, increasing, of the accuracy curve, which then uses the whole suite.
    By default it has five multiples of the radius, on 200 images, with a light attack (for spatial, the suite)."""
    independent: bool = False
    """Run every attack on every correctly classified image, so that you can compare the attacks.
    By default each runs on the images that no earlier attack broke."""
    quantize: bool = False
    """The networks see attacked images of 8 bits: what is broken survives saving as an image file."""
    transfer_from: tuple[Path, ...] = ()
    """Run folders of other networks. Images deformed to fool these are also tried on the evaluated networks."""
    examples: CountOrNone = 0
    """Number of test images; 0 for the run's `evaluation.examples`. They are a random sample with every class in its
    proportion; of a set that is stored in random order, as TFDS stores sets, they are the first."""
    sample_seed: Seed | None = None
    """Seed of that sample. By default the first images of a set that is stored in random order, otherwise seed 0."""
    data_dir: str | None = None
    """Where the data is, if it has moved since training."""
    networks: Annotated[tuple[str, ...], tyro.conf.arg(name="model.name")] = ()
    """Networks of your own, package.module:factory, to import for runs whose config names them.
    They are never imported otherwise."""
    output: Path | None = None
    """Folder for all output, with a sub-folder for each of several runs.
    By default the evaluation and its pictures go into each run folder,
    and the comparison of several runs into the folder above the first one."""
    compilation_cache: str | None = None
    """Folder that keeps compiled programs for the next start, or off.
    By default what $JAX_COMPILATION_CACHE_DIR names, else `compiled` in $DEFORMREG_DATA or in
    ~/.cache/deformreg/data."""
    json: Path | None = None
    """Also write the evaluation to this JSON file; for several runs, all evaluations by name."""
    seed: Seed = 0
    """Seed of the attacks' random numbers."""
    devices: CountOrNone = 0
    """Number of this process's devices over which the images are divided; 0 for all."""
    placement: Annotated[Placement, tyro.conf.arg(name="")] = field(default_factory=Placement)


def run(arguments: list[str]) -> int:
    """Evaluates runs as a command line says."""
    options = validate(tyro.cli(Evaluate, prog="python -m train evaluate", args=arguments))
    if not options.runs:
        raise ConfigError("evaluate needs at least one run folder, for example runs/mnist5k-flow")
    if not all(low < high for low, high in pairwise(options.radii)):
        raise ConfigError(f"--radii must be increasing, got {' '.join(map(str, options.radii))}")
    join(options.placement)
    compiled.keep(options.compilation_cache)
    compare(options)
    return 0


def compare(options: Evaluate, *, again: str = "the same command") -> None:
    """Evaluates runs, writes their reports and, of several, the comparison, and prints the tables.

    Where there are several processes, all of them call it: each attacks its share of the images, and process 0 writes.

    Args:
        options: which runs, and how.
        again: what continues an evaluation that is stopped, for messages.
    """
    local = processes.local_devices(options.devices)
    networks = load_networks(options.networks, [*options.runs, *options.transfer_from])
    trained = open_runs(
        options.runs,
        data_dir=options.data_dir,
        examples=options.examples,
        sample_seed=options.sample_seed,
        networks=networks,
    )
    if options.examples > len(trained[0].labels):
        say(f"--examples {options.examples}: {trained[0].source} has {len(trained[0].labels)}; all are evaluated")
    usual = trained[0].config.evaluation
    radius = usual.radius if options.radius is None else options.radius
    sources = open_sources(options.transfer_from, trained[0], data_dir=options.data_dir, networks=networks)
    protocol = Protocol(
        options.suite, radius, options.radii, options.independent, sources, options.seed, options.quantize,
        usual.steps,
    )  # fmt: skip
    for line in without_effect(protocol):
        say(line)
    folders, above = reports.places(options.runs, options.output), options.output or options.runs[0].parent
    reports.check_writable(folders if len(folders) == 1 else [*folders, above], options.json)
    studies, team = {}, parts.team()
    with processes.stop_on_sigterm("keeping what was found") as requested:
        kept = [
            partial_of(folder, one, protocol, reports.guard(folder, one))
            for folder, one in zip(folders, trained, strict=True)
        ]
        parts.check_alike(kept)
        parts.check_shared(kept, team)
        stop_requested = parts.stop_together(kept[0], team, requested)
        for name, folder, one, file in zip(runs.short_names(options.runs), folders, trained, kept, strict=True):
            studies[name] = evaluate_run(
                name,
                one,
                protocol,
                file,
                devices=local,
                team=team,
                stop_requested=stop_requested,
                again=again,
            )
            if team.index == 0:
                reports.write_run_report(folder, name, studies[name], one.class_names, file.check)
        if team.index == 0:
            _conclude(options, studies, trained[0].class_names, above)
        if team.count > 1:
            # The end of one process ends the others. So none leaves, or may be ended by SIGTERM, before all is written.
            processes.barrier("reported")
        if team.index == 0:
            # Not before: the others may still have to read them; and started again after the first of several runs, the
            # command would evaluate it once more.
            for file in kept:
                file.remove()


def _conclude(options: Evaluate, studies: Mapping[str, Study], class_names: Sequence[str], above: Path) -> None:
    """Writes what is about all runs together, and prints the advice."""
    if len(studies) > 1:
        reports.write_comparison(above, studies, class_names)
    if options.suite == "released":
        print(ADVICE)
    if options.json:
        rows = {name: study.row for name, study in studies.items()}
        files.write_json(options.json, next(iter(rows.values())) if len(rows) == 1 else rows)
