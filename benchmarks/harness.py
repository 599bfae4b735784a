"""Timing that can be trusted on a noisy machine: candidates in turn, medians of paired ratios, compilation apart."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from train.runs import environment, write_json

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


def repeated(function: Callable[..., Any], *arguments: Any, seconds: float = 0.02) -> Callable[[], float]:
    """A candidate for `interleave` that is short: as many calls in a row as take `seconds`, timed as one.

    An accelerator is waited for once, after the last call; a CPU after each, since it would run several at a time.
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
    """A candidate that reads and writes `size` bytes in place: what the memory can do, without new pages."""
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


def operations(program: str) -> Counter[str]:
    """How often each operation stands in the text of a compiled program."""
    return Counter(re.findall(r"= (?:\([^=]*?\)|\S+) ([a-z][a-z0-9-]*)\(", program))


def setting(command: list[str]) -> dict[str, Any]:
    """What must stand beside a figure: command, commit, versions, hardware; no paths of the machine."""
    command = [Path(word).name if Path(word).is_absolute() else word for word in command]
    return {"command": "python -m benchmarks " + " ".join(command), "commit": commit(), **environment()}


def write(path: Path, command: list[str], rows: list[dict[str, Any]]) -> None:
    """Writes rows with their setting as JSON."""
    write_json(path, {"environment": setting(command), "rows": rows})


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, without the columns that are lists or the same everywhere."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [
        name
        for name in names
        if not any(isinstance(row.get(name), list) for row in rows)
        and (len(rows) == 1 or len({row.get(name) for row in rows}) > 1 or name == "method")
    ]
    lines = [columns, ["--"] * len(columns), *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:.0f}"
    return str(value)


def commit() -> str | None:
    """The checkout's commit, marked where more than figures and texts has changed; None outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[1]), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!benchmarks/results")
        return git("describe", "--always", "--abbrev=12") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
