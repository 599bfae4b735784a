"""What the start of a training waits for: said while it lasts, and with its seconds at the first step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from train import processes
from train.errors import say

_PATIENCE = 10.0
"""Seconds after which a line says what is waited for."""


class Start:
    """The parts of a start and their seconds."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Measures a part, and names it if it lasts."""
        began = time.perf_counter()
        timer = threading.Timer(_PATIENCE, say, [f"waiting for {what}"])
        timer.daemon = True
        if processes.is_lead():
            timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._seconds[what] = time.perf_counter() - began

    def first_call(self, step: Callable[..., Any], after: Callable[[], None]) -> Callable[..., Any]:
        """The step, whose first call compiles it, ends the start and is followed by `after`."""
        calls = [self._compile]

        def called(*arguments: Any) -> Any:
            if not calls:
                return step(*arguments)
            result = calls.pop()(step, *arguments)
            after()
            return result

        return called

    def _compile(self, step: Callable[..., Any], *arguments: Any) -> Any:
        with self.waiting_for("compilation"):
            result = step(*arguments)
        if processes.is_lead():
            parts = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in self._seconds.items())
            print(f"first step after {time.perf_counter() - self._began:.1f} s: {parts}", flush=True)
        return result
