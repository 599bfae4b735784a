"""A trace of some steps, for TensorBoard's profiler (xprof) and Perfetto."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from train.errors import ConfigError, say


def parse_steps(text: str) -> range:
    """The steps ``START:STOP``: those after START have been taken, until STOP have.

    Raises:
        ConfigError: the text is none.
    """
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--profile must be START:STOP, two numbers of steps such as 100:110, got {text:.40}")
    return range(int(match[1]), int(match[2]))


def check_steps(steps: range, last: int) -> None:
    """Raises `ConfigError` if a training of so many steps takes none of those to trace."""
    if steps and steps.start >= last:
        raise ConfigError(
            f"--profile {steps.start}:{steps.stop} traces nothing: this training goes from step 0 to step {last}"
        )


@contextmanager
def traced(folder: Path, steps: range) -> Iterator[Callable[[int, Any], None]]:
    """Yields a function to call before every step, with the number of steps taken and the arrays they led to.

    Args:
        folder: for the trace; of several processes, each writes into a folder of its own in it.
        steps: which to trace; of an empty range, none.
    """
    if jax.process_count() > 1:  # JAX takes the trace of another process in the same folder for a damaged one
        folder /= f"process-{jax.process_index()}"
    running = False

    def follow(taken: int, arrays: Any) -> None:
        nonlocal running
        if running == (taken in steps):
            return
        jax.block_until_ready(arrays)  # what was asked for before belongs to one side only
        if running:
            stop()
        else:
            jax.profiler.start_trace(folder, create_perfetto_trace=True)
            running = True

    def stop() -> None:
        nonlocal running
        running = False
        jax.profiler.stop_trace()
        say(f"a trace of the steps {steps.start} to {steps.stop} is in {folder}")

    try:
        yield follow
    finally:
        if running:
            stop()
