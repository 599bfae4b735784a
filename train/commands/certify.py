"""Certifies a trained run by randomized smoothing: radii within which no deformation of a family changes the answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from train import compiled, files, processes, reports, runs
from train.certification import Smoothing, certify_run, check, partial_of
from train.commands.placement import placed
from train.errors import ConfigError, say
from train.options import validate
from train.ranges import CountOrNone, Seed
from train.restored import load_networks, network_of, open_run


@dataclass(frozen=True)
class Certify:
    """Certifies a trained run on its test images by randomized smoothing.

    Finds radii within which no deformation of a family changes the answer of the smoothed classifier, the class that
    the network most often answers under noise. docs/certification.md says what that covers.
    """

    run: tyro.conf.Positional[Path]
    """The run folder."""
    smoothing: Annotated[Smoothing, tyro.conf.arg(name="")] = field(default_factory=Smoothing)
    examples: CountOrNone = 100
    """Number of test images; 0 for the run's `evaluation.examples`.
    They are a random sample with every class in its proportion, as `evaluate` takes it."""
    sample_seed: Seed | None = None
    """Seed of that sample. By default the first images of a set that is stored in random order, otherwise seed 0."""
    data_dir: str | None = None
    """Where the data is, if it has moved since training."""
    networks: Annotated[tuple[str, ...], tyro.conf.arg(name="model.name")] = ()
    """A network of your own, package.module:factory, to import if the run's config names it.
    It is never imported otherwise."""
    output: Path | None = None
    """Folder for certified.json, certified.md and certified.png; by default the run folder."""
    compilation_cache: str | None = None
    """Folder that keeps compiled programs for the next start, or off.
    By default what $JAX_COMPILATION_CACHE_DIR names, else `compiled` in $DEFORMREG_DATA or in
    ~/.cache/deformreg/data."""
    json: Path | None = None
    """Also write the result to this JSON file."""
    devices: CountOrNone = 0
    """Number of this process's devices, each of which takes an image at a time; 0 for all."""


def parse(arguments: list[str]) -> Certify:
    """The options of a command line. Raises `ConfigError` if one cannot be used."""
    if not arguments:
        raise ConfigError("certify needs a run folder, for example runs/digits-standard")
    if given := placed(arguments):
        raise ConfigError(f"certify runs in one process, on all its devices: leave out {' '.join(given)}")
    options = tyro.cli(Certify, prog="python -m train certify", args=arguments)
    smoothing = check(options.smoothing)  # first: its errors name the options without a prefix
    return replace(validate(options), smoothing=smoothing)


def run(arguments: list[str]) -> int:
    """Certifies a run, writes the report and prints its table."""
    options = parse(arguments)
    folder, name = options.output or options.run, runs.short_names([options.run])[0]
    reports.check_writable([folder], options.json)
    processes.check_devices()
    local = processes.local_devices(options.devices)
    compiled.keep(options.compilation_cache)
    model = network_of(options.run, load_networks(options.networks, [options.run]))
    trained = open_run(
        options.run, data_dir=options.data_dir, examples=options.examples, sample_seed=options.sample_seed, model=model
    )
    if Certify.examples != options.examples > len(trained.labels):
        say(f"--examples {options.examples}: {trained.source} has {len(trained.labels)}; all are certified")
    still_same = reports.guard(folder, trained)
    kept = partial_of(folder, trained, options.smoothing, still_same)
    certified = certify_run(name, trained, options.smoothing, kept, devices=local)
    reports.write_certified(folder, name, certified, still_same)
    if options.json:
        files.write_json(options.json, certified.row)
    kept.remove()
    return 0
