"""Whether the input keeps up: a preset's steps on its own data, and photographs read by this program and by others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax

from benchmarks import harness, loaders
from benchmarks.options import Several, Timed, WithTorch
from benchmarks.rows import Rows
from train import parallel, presets
from train.config import Config
from train.data import Source
from train.loop import device_batches
from train.ranges import CountOrNone
from train.task import prepare

AHEAD = 6
"""Batches that the input may hold ready, read and on the device; a block is at least four times as long, unless
`quick`."""


@dataclass(frozen=True, kw_only=True)
class Options(WithTorch, Timed):
    """Times blocks of training steps in turn: with batches from the input, and with one batch again and again.

    With `--photographs`, times instead what reading photographs costs this program, plain decoders and other loaders.
    """

    quick: bool = False
    """At most a minute per preset, with shorter blocks if a step takes long."""
    preset: Several[str] = ("mnist5k-standard", "digits-standard")
    """Presets of `python -m train presets`."""
    data_dir: str | None = None
    """Folder of prepared data sets, for the CIFAR-10 presets."""
    photographs: CountOrNone = 0
    """Number of photographs to generate and to read; 0 for presets."""
    tensorflow_python: str | None = None
    """An interpreter with TensorFlow, to time that too."""


def run(options: Options) -> Rows:
    """A row per preset, or per loader of photographs.

    `milliseconds` are those of a step with the input, `share_of_constant` its speed relative to steps on one batch,
    `batch_milliseconds` the time of a batch from the input alone (on CPUs without handing it over, which is part of a
    step). For photographs, `milliseconds` are an image's processor time, and `cores_for_...` the cores that a host
    needs for as many images as its accelerators take.

    Raises:
        ConfigError: an unknown preset.
        DataError: its data cannot be used.
        UserError: an interpreter does not have its library.
    """
    if options.photographs:
        budget = 60 if options.quick else None
        return loaders.measure(
            options.photographs, options.rounds, budget, options.torch_python, options.tensorflow_python
        )
    return [_measure(name, options) for name in options.preset]


def _measure(name: str, options: Options) -> dict[str, Any]:
    config = presets.find(name).config
    config = replace(config, data=replace(config.data, data_dir=options.data_dir or config.data.data_dir))
    engine = parallel.make_engine(config.parallel, batch_size=config.batch_size)
    task = prepare(config)
    source, step = task.splits.train, engine.compile(task.step)
    batches = device_batches(config, source, engine, 0)
    # This batch is on the devices already, whatever the engine feeds to a step.
    constant = next(device_batches(config, source, engine._replace(feed=engine.put_batch), 0))
    state = engine.put_state(task.network.init())

    def steps(count: int, give: Callable[[], Any]) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(count):
            state, metrics = step(state, give())
        jax.block_until_ready(metrics)
        return 1e3 * (time.perf_counter() - start) / count

    steps(2, lambda: constant)
    single = steps(2, lambda: constant)
    count = max(2 if options.quick else 4 * AHEAD, min(round(500 / single), 50 * AHEAD))
    samples = harness.interleave(
        {
            "input": lambda: steps(count, lambda: next(batches)),
            "constant": lambda: steps(count, lambda: constant),
            "batch": lambda: _batch_alone(config, source, engine, count),
        },
        rounds=options.rounds,
        budget_seconds=60 if options.quick else None,
    )
    share = harness.ratio(samples, "constant", "input")
    return {
        "preset": name,
        "batch_size": config.batch_size,
        "steps_in_a_block": count,
        **harness.summary(samples["input"]),
        "share_of_constant": share["ratio"],
        "share_quartiles": share["ratio_quartiles"],
        "batch_milliseconds": harness.summary(samples["batch"])["milliseconds"],
    }


def _batch_alone(config: Config, source: Source, engine: parallel.Engine, count: int) -> float:
    """Milliseconds of a batch without training, after those that are read ahead."""
    batches: Iterator[Any] = device_batches(config, source, engine, 0)
    for _ in range(AHEAD):
        batch = next(batches)
    start = time.perf_counter()
    for _ in range(count):
        batch = next(batches)
    jax.block_until_ready(batch)
    return 1e3 * (time.perf_counter() - start) / count
