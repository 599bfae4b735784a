"""Reads the metrics of steps, writes them to the log, and stops a training whose steps are not finite."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from typing import Protocol

import jax
import numpy as np

from train import processes
from train.config import Config
from train.errors import NonFiniteLoss
from train.methods import Method
from train.pace import Pace
from train.step import Metrics


class Log(Protocol):
    """Where metrics go: `MetricLog`."""

    seconds: float

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends the values of a step."""


class Watch:
    """Reads metrics a few steps late, so that the device never waits, and raises after too many non-finite steps.

    A line of the log holds means over the steps since the last line; the mean penalty is over the steps with a penalty.
    A `drain` also ends a line. There is a `drain` before every checkpoint, and a resumed run starts from a checkpoint,
    so the log does not depend on where a run was killed.

    Attributes:
        skipped: batches left out so far.
        loss: of the last step read.
        stopping: whether a process was asked to stop.
    """

    def __init__(
        self, log: Log, config: Config, method: Method, *, step: int, skipped: int, pace: Pace | None = None
    ) -> None:
        self._log, self._config, self._method = log, config, method
        self._pace = Pace(config.batch_size) if pace is None else pace
        self._began = time.perf_counter() - log.seconds
        self._pending: deque[Metrics] = deque()
        self._window: dict[int, dict[str, float]] = {}
        self._read_step = step
        self.skipped = skipped
        self.loss = math.nan
        self.stopping = False

    @property
    def step(self) -> int:
        """Steps taken, if none of those whose metrics are not read yet was skipped."""
        return self._read_step + len(self._pending)

    @property
    def seconds(self) -> float:
        """Seconds spent training, over all starts of the run."""
        return time.perf_counter() - self._began

    def push(self, metrics: Metrics) -> None:
        """Takes the metrics of the next step."""
        self._pending.append(metrics)
        while len(self._pending) > 2:
            self._read()

    def drain(self) -> None:
        """Reads all pending metrics and ends a line of the log."""
        while self._pending:
            self._read()
        self._write()
        self._pace.pause()

    def _read(self) -> None:
        values = {name: float(value) for name, value in jax.device_get(self._pending.popleft()).items()}
        self._pace.count()
        step, skipped = int(values.pop("step")), int(values.pop("skipped"))
        self.stopping |= values.pop("stop") > 0
        self._read_step = step
        if skipped > self.skipped:
            self.skipped = skipped
            self._name_skipped(step + 1, values)
            return
        self.loss = values["loss"]
        self._window[step] = values
        if step % self._config.log_every == 0:
            self._write()

    def _name_skipped(self, step: int, values: dict[str, float]) -> None:
        what = ", ".join(
            f"{name.replace('_', ' ')} {values[name]}" for name in ("loss", "gradient_norm", "parameter_norm")
        )
        what = f"step {step}: {what}"
        allowed = self._config.max_skipped
        if self.skipped > allowed:
            raise NonFiniteLoss(
                f"{what}; earlier checkpoints are kept. Train in another --run-dir with a lower "
                f"{' or '.join(self._remedies())}, or raise --max-skipped"
            )
        batch = step + self.skipped - 2
        self._log.write(step, {"skipped_batch": batch, "skipped": self.skipped, "seconds": self.seconds})
        if processes.is_lead():
            print(f"skipped batch {batch} ({self.skipped} of at most {allowed}): {what}", file=sys.stderr)

    def _remedies(self) -> list[str]:
        weights = (name for name in ("weight", "beta") if hasattr(self._config.method, name))
        return ["--optimizer.learning-rate", *(f"--method.{name}" for name in weights)]

    def _write(self) -> None:
        if not self._window:
            return
        step, last = next(reversed(self._window.items()))
        means = {name: np.mean([values[name] for values in self._window.values()]).item() for name in last}
        # The metrics of a step have the number of steps that were taken with it.
        penalties = [values["penalty"] for number, values in self._window.items() if self._method.is_due(number - 1)]
        if penalties:
            means["penalty"] = np.mean(penalties).item()
        else:
            del means["penalty"]
        times = {"seconds": self.seconds, **self._pace.values()}
        self._log.write(step, {**means, "learning_rate": last["learning_rate"], **times})
        self._window.clear()
