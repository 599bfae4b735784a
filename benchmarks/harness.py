"""Timing that can be trusted on a noisy machine: candidates in turn, medians of paired ratios, compilation apart."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from train.runs import environment

Samples = dict[str, list[float]]


def interleave(
    candidates: Mapping[str, Callable[[], Any]], *, rounds: int, budget_seconds: float | None = None
) -> Samples:
    """Times candidates in turn, A B A B: drift of the machine's speed hits all alike.

    Args:
        candidates: functions of nothing that do one unit of work and wait for it; a returned number is taken for the
            milliseconds that the candidate measured itself.
        rounds: timed rounds after two that are not counted.
        budget_seconds: stop after the round in which this time is used up, three rounds at least.

    Returns:
        Milliseconds by candidate, one a round.
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


def summary(samples: list[float]) -> dict[str, Any]:
    """Median and quartiles of milliseconds, and how many there were."""
    low, middle, high = quartiles(samples)
    return {"milliseconds": middle, "quartiles": [low, high], "repeats": len(samples)}


def ratio(samples: Samples, name: str, reference: str) -> dict[str, Any]:
    """Median and quartiles of one candidate's time over another's, round by round."""
    low, middle, high = quartiles([a / b for a, b in zip(samples[name], samples[reference], strict=True)])
    return {"ratio": middle, "ratio_quartiles": [low, high]}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def compiled(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Compiles ahead of time: the executable, and the seconds it took."""
    start = time.perf_counter()
    executable = jax.jit(function, **options).lower(*arguments).compile()
    return executable, time.perf_counter() - start


def flops(executable: Any) -> float:
    """XLA's own count; bodies of loops are counted once."""
    analysis = executable.cost_analysis()
    return float((analysis[0] if isinstance(analysis, list) else analysis)["flops"])


def temporary_bytes(executable: Any) -> int:
    """Peak temporary memory of an executable, arguments and results not counted."""
    return int(executable.memory_analysis().temp_size_in_bytes)


def setting(command: list[str]) -> dict[str, Any]:
    """What must stand beside a figure: command, commit, versions, hardware; no paths of the machine."""
    command = [Path(word).name if Path(word).is_absolute() else word for word in command]
    return {"command": "python -m benchmarks " + " ".join(command), "commit": commit(), **environment()}


def commit() -> str | None:
    """The checkout's commit, marked where the tree has changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        words = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
