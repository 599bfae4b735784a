"""Real training processes for the tests: small, quick to start, and comparable to the bit."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train import manifests
from train.pace import TIMES

ROOT = Path(__file__).parents[2]


class Trainer(NamedTuple):
    """Starts commands of `python -m train`; compiled programs and the data set are shared through `folder`."""

    folder: Path
    started: list[subprocess.Popen[str]]

    def options(self, run: Path, *more: str, epochs: int = 8) -> list[str]:
        """A flow-gradient run of 15 steps an epoch, a checkpoint every 10, with all that is random."""
        return [
            *("fit", "digits-flow", "--run-dir", str(run), "--data-dir", str(self.folder / "data")),
            *("--batch-size", "100", "--epochs", str(epochs), "--model.width", "0.25", "--model.norm", "group"),
            *("--method.random-start", "0.1", "--augmentation.shift", "1", "--log-every", "5", "--no-evaluate"),
            *("--checkpoint-every", "10"),
            *more,
        ]

    def start(
        self, arguments: list[str], *, devices: int = 1, program: tuple[str, ...] = ("-m", "train"), **environment: str
    ) -> subprocess.Popen[str]:
        """Starts a command, or another Python program with these arguments; its output in `communicate`."""
        settings = {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_ENABLE_COMPILATION_CACHE": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONUNBUFFERED": "1",
        }
        process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=ROOT,
            env={**os.environ, **settings, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, arguments: list[str], *, devices: int = 1, code: int = 0) -> tuple[str, str]:
        """Runs a command to its end, which must have the given exit code; returns both outputs."""
        process = self.start(arguments, devices=devices)
        out, err = process.communicate(timeout=900)
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        return out, err


def launch(arguments: list[str], processes: int = 2, devices: int = 1) -> list[str]:
    """The command that runs one in several processes, each with so many devices."""
    return ["launch", "--processes", str(processes), "--devices-per-process", str(devices), *arguments]


def free_address() -> str:
    """Where process 0 of several can listen."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def start_two(trainer: Trainer, arguments: list[str], devices: int = 1, **options) -> list[subprocess.Popen[str]]:
    """Starts a command in two processes without the launcher, so that each can get signals of its own."""
    joined = [*arguments, "--distributed", "--coordinator", free_address(), "--num-processes", "2", "--process-id"]
    return [trainer.start([*joined, str(index)], devices=devices, **options) for index in (0, 1)]


def run_two(trainer: Trainer, arguments: list[str], devices: int = 1, *, code: int = 0) -> list[tuple[str, str]]:
    """Runs a command to its end in two processes, without the launcher; returns both outputs of each."""
    processes = start_two(trainer, arguments, devices)
    outputs = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [code] * 2, outputs
    return outputs


def children_of(process: subprocess.Popen[str]) -> list[str]:
    """The process numbers of a process's children."""
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def wait_for(condition, process, seconds: float = 900.0) -> bool:
    """Whether the condition came true while the process ran."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.002)
    return False


def last_step(run: Path) -> int:
    """The newest completed checkpoint's; 0 for none."""
    return max(manifests.steps(run / "checkpoints"), default=0)


def log(run: Path) -> list[dict]:
    """The metric log without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same_to_the_bit(run: Path, other: Path) -> None:
    """The final states of two runs."""
    step = last_step(run)
    assert step == last_step(other)
    ours, theirs = (manifests.open_step(folder / "checkpoints", step).read() for folder in (run, other))
    assert ours.keys() == theirs.keys()
    for path in ours:
        assert ours[path].tobytes() == theirs[path].tobytes(), path


def largest_difference(run: Path, other: Path) -> float:
    """Over the parameters after the last step."""
    ours, theirs = (manifests.open_step(folder / "checkpoints", last_step(run)).read() for folder in (run, other))
    return max(float(np.max(np.abs(ours[path] - theirs[path]))) for path in ours if path.startswith("params/"))
