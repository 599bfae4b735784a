"""The options by which a process joins others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from train.errors import ConfigError

PLACED = ("--distributed", "--coordinator", "--num-processes", "--process-id")
"""The options that tell a process its place."""


@dataclass(frozen=True)
class Placement:
    """This process among several."""

    distributed: bool = False
    """This process is one of several that work together, on one host or many.
    All need a shared run folder. See docs/distributed.md."""
    coordinator: str | None = None
    """With --distributed: HOST:PORT of process 0.
    By default $JAX_COORDINATOR_ADDRESS, or as detected from SLURM, Open MPI, Kubernetes or a TPU pod."""
    num_processes: int | None = None
    """With --distributed: how many processes there are. By default $JAX_NUM_PROCESSES, or as detected."""
    process_id: int | None = None
    """With --distributed: the number of this process, from 0. By default $JAX_PROCESS_ID, or as detected."""
    join_seconds: Annotated[float, Interval(gt=0, le=86400)] = 300.0
    """With --distributed: seconds to wait for all processes to start.
    Process 0 prints every half minute which are missing."""


def placed(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line that tell its process a place."""
    return [argument for argument in arguments if argument.split("=")[0] in PLACED]


def join(placement: Placement) -> None:
    """Joins the other processes, if there are any, and starts JAX's backend.

    Raises:
        ConfigError: options that do not fit together, no such process, or no device.
    """
    from train import processes

    if placement.distributed:
        place = (placement.coordinator, placement.num_processes, placement.process_id)
        processes.join(*place, placement.join_seconds)
    elif placement != Placement():
        raise ConfigError("--coordinator, --num-processes, --process-id and --join-seconds need --distributed")
    processes.check_devices()
