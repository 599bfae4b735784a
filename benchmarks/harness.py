"""Timing on a noisy machine: candidates in turn, medians of paired ratios, compilation apart; and XLA's own counts."""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

Samples = dict[str, list[float]]


def interleave(
    candidates: Mapping[str, Callable[[], Any]], *, rounds: int, budget_seconds: float | None = None
) -> Samples:
    """Times candidates in turn, A B A B, so that drift of the machine's speed affects all of them alike.

    Args:
        candidates: functions without arguments that do one unit of work and wait for it. One that returns a float has
            measured itself, in milliseconds.
        rounds: timed rounds, after two that are not counted.
        budget_seconds: stop after the round in which this time is used up, but not before three rounds.

    Returns:
        Milliseconds by candidate, one per round.
    """
    samples: Samples = {name: [] for name in candidates}
    began = time.perf_counter()
    progress = tqdm(total=rounds + 2, desc=", ".join(candidates), disable=not sys.stderr.isatty(), leave=False)
    for index in range(-2, rounds):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            own = candidate()
            elapsed = 1e3 * (time.perf_counter() - start)
            if index >= 0:
                samples[name].append(own if isinstance(own, float) else elapsed)
        progress.update()
        if budget_seconds is not None and index >= 2 and time.perf_counter() - began > budget_seconds:
            break
    progress.close()
    return samples


def repeated(function: Callable[..., Any], *arguments: Any, seconds: float = 0.02) -> Callable[[], float]:
    """A candidate for `interleave` from a short function: as many calls in a row as take `seconds`, timed as one.

    It waits for an accelerator once, after the last call, but for a CPU after each call, because a CPU would run
    several calls at a time.
    """

    def total(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            results = function(*arguments)
            if on_cpu:
                jax.block_until_ready(results)
        jax.block_until_ready(results)
        return time.perf_counter() - start

    on_cpu = jax.default_backend() == "cpu"
    total(2)
    count = max(1, round(3 * seconds / total(3)))
    return lambda: 1e3 * total(count) / count


def copy(size: int) -> Callable[[], float]:
    """A candidate that reads and writes `size` bytes in place: the memory's bandwidth, without page faults."""
    increment = jax.jit(lambda values: values + 1, donate_argnums=0)
    values = jax.block_until_ready(increment(jnp.zeros(size // 4)))

    def candidate() -> float:
        nonlocal values
        start = time.perf_counter()
        for _ in range(4):
            values = increment(values)
        jax.block_until_ready(values)
        return 1e3 * (time.perf_counter() - start) / 4

    return candidate


def summary(samples: list[float]) -> dict[str, Any]:
    """Median and quartiles of milliseconds, and their number."""
    low, middle, high = quartiles(samples)
    return {"milliseconds": middle, "quartiles": [low, high], "repeats": len(samples)}


def ratio(samples: Samples, name: str, reference: str) -> dict[str, Any]:
    """Median and quartiles of one candidate's time over another's, round by round."""
    low, middle, high = quartiles([a / b for a, b in zip(samples[name], samples[reference], strict=True)])
    return {"ratio": middle, "ratio_quartiles": [low, high]}


def compared(samples: Samples, name: str, reference: str, ratio_name: str = "ratio_to_ours") -> dict[str, Any]:
    """A candidate's milliseconds, and their ratio to those of another, as entries of a row."""
    found = ratio(samples, name, reference)
    return {**summary(samples[name]), ratio_name: found["ratio"], "ratio_quartiles": found["ratio_quartiles"]}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def compiled(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Compiles ahead of time; returns the executable and the seconds that compiling took."""
    start = time.perf_counter()
    executable = jax.jit(function, **options).lower(*arguments).compile()
    return executable, time.perf_counter() - start


def flops(executable: Any) -> float:
    """XLA's own count, in which the body of a loop counts once."""
    analysis = executable.cost_analysis()
    return float((analysis[0] if isinstance(analysis, list) else analysis)["flops"])


def temporary_bytes(executable: Any) -> int:
    """Peak temporary memory of an executable, without arguments and results."""
    return int(executable.memory_analysis().temp_size_in_bytes)


def operations(program: str) -> Counter[str]:
    """How often each operation occurs in the text of a compiled program."""
    return Counter(re.findall(r"= (?:\([^=]*?\)|\S+) ([a-z][a-z0-9-]*)\(", program))
