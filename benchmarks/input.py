"""Whether the input keeps up: a preset's training steps fed by its own data, against the same steps on one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax

from benchmarks import harness
from train import parallel, presets
from train.loop import Task, device_batches, prepare

AHEAD = 6
"""Batches that the input of decoded sets may hold ready, read and on the device: a block is four times as long, unless
`quick`."""


def measure(
    names: tuple[str, ...] = ("mnist5k-standard", "digits-standard"),
    *,
    data_dir: str | None = None,
    rounds: int = 7,
    quick: bool = False,
) -> list[dict[str, Any]]:
    """Times blocks of training steps in turn: with batches from the input, with one batch again and again.

    Args:
        names: presets.
        data_dir: of prepared data sets, for the presets that need one.
        rounds: timed rounds.
        quick: at most a minute a preset, with shorter blocks where a step takes long.

    Returns:
        A row per preset. `milliseconds` are those of one step with the input, `share_of_constant` is the steps a
        second with it over those without, `batch_milliseconds` what the input alone takes for a batch that nobody
        is training on, on CPUs without the handing over, which is part of a step.

    Raises:
        ConfigError: an unknown preset.
        DataError: its data cannot be used.
    """
    return [_row(name, data_dir, rounds, quick) for name in names]


def _row(name: str, data_dir: str | None, rounds: int, quick: bool) -> dict[str, Any]:
    config = presets.find(name).config
    config = replace(config, data=replace(config.data, data_dir=data_dir or config.data.data_dir))
    engine = parallel.make_engine(config.parallel, batch_size=config.batch_size)
    task = prepare(config)
    step = engine.compile(task.network.step)
    batches = device_batches(config, task, engine, 0)
    # There already, whatever steps are fed.
    constant = next(device_batches(config, task, engine._replace(feed=engine.put_batch), 0))
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
    count = max(2 if quick else 4 * AHEAD, min(round(500 / single), 50 * AHEAD))
    samples = harness.interleave(
        {
            "input": lambda: steps(count, lambda: next(batches)),
            "constant": lambda: steps(count, lambda: constant),
            "batch": lambda: _alone(task, config, engine, count),
        },
        rounds=rounds,
        budget_seconds=60 if quick else None,
    )
    return {
        "preset": name,
        "batch_size": config.batch_size,
        "steps_in_a_block": count,
        **harness.summary(samples["input"]),
        "share_of_constant": harness.ratio(samples, "constant", "input")["ratio"],
        "share_quartiles": harness.ratio(samples, "constant", "input")["ratio_quartiles"],
        "batch_milliseconds": harness.summary(samples["batch"])["milliseconds"],
    }


def _alone(task: Task, config: Any, engine: parallel.Engine, count: int) -> float:
    """Milliseconds of a batch without training, beyond those that are read ahead."""
    batches: Iterator[Any] = device_batches(config, task, engine, 0)
    for _ in range(AHEAD):
        batch = next(batches)
    start = time.perf_counter()
    for _ in range(count):
        batch = next(batches)
    jax.block_until_ready(batch)
    return 1e3 * (time.perf_counter() - start) / count
