"""One process of several: joining the others, agreeing with them, stopping on SIGTERM, leaving after an error."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train.errors import ConfigError, NonFiniteLoss, Preempted, RunError, one_line
from train.rendezvous import meet

PREEMPTED = Preempted.exit_code

TOGETHER = (0, NonFiniteLoss.exit_code, PREEMPTED)
"""Exit codes with which all processes end at the same step, each waiting for the others."""

_HOUR = 3600
_WEEK = 7 * 24 * _HOUR


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: float) -> None:
    """Makes this process one of several. Call it before any other function of JAX.

    Args:
        coordinator: ``HOST:PORT`` of process 0; None takes ``$JAX_COORDINATOR_ADDRESS`` or the cluster's setting.
        num_processes: number of processes; None takes ``$JAX_NUM_PROCESSES`` or the cluster's setting.
        process_id: this process's number, from 0; None takes ``$JAX_PROCESS_ID`` or the cluster's setting.
        seconds: how long to wait for the others, where this process knows all of the above.

    Raises:
        ConfigError: no cluster is detected, or a process of it does not answer.
    """
    num_processes = _from_environment("JAX_NUM_PROCESSES") if num_processes is None else num_processes
    process_id = _from_environment("JAX_PROCESS_ID") if process_id is None else process_id
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ConfigError(f"--coordinator must be HOST:PORT, got {coordinator}")
        if num_processes and process_id is not None:
            meet(host.strip("[]"), int(port), num_processes, process_id, seconds)
    # `stop_on_sigterm` replaces JAX's service: it reacts to a second signal, and works for one process as for several.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        # Process 0 may evaluate for hours while the others wait for it at the end.
        jax.distributed.initialize(coordinator, num_processes, process_id, shutdown_timeout_seconds=_WEEK)
    except (ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"--distributed: {line} Give --coordinator HOST:PORT, --num-processes and --process-id where no cluster "
            "(SLURM, Open MPI, Kubernetes, TPU) is detected"
        ) from error
    with _patient_collectives():
        jax.devices()  # exchanges the devices of all processes now, while all are known to be here
        _connect()


@contextmanager
def _patient_collectives() -> Iterator[None]:
    """Within it, JAX's backend starts, with collectives on CPUs that wait for an hour.

    XLA's own limit of 30 seconds would end a training of which one process compiles or restores longer than another. A
    process that is lost is noticed without it, by the coordination service.
    """
    given = os.environ.get("XLA_FLAGS")
    if "xla_cpu_collective_timeout_seconds" not in (given or ""):
        os.environ["XLA_FLAGS"] = f"--xla_cpu_collective_timeout_seconds={_HOUR} {given or ''}"
    try:
        yield
    finally:
        if given is None:
            os.environ.pop("XLA_FLAGS", None)
        else:
            os.environ["XLA_FLAGS"] = given


def _connect() -> None:
    """Computes something over all processes, and over all devices: what connects them has a limit of its own."""
    barrier("joined")
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
    ones = jax.make_array_from_callback(
        (jax.device_count(),), NamedSharding(mesh, PartitionSpec("all")), lambda index: np.ones(1)
    )
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(ones))


def _from_environment(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None or value.isdigit():
        return None if value is None else int(value)
    raise ConfigError(f"${name} must be a number, got {value!r}")


def is_joined() -> bool:
    """Whether this process is one of several that `join` connected."""
    return bool(jax.distributed.is_initialized())


def check_devices() -> None:
    """Starts JAX's backend.

    Raises:
        ConfigError: it has no devices, for example because ``$JAX_PLATFORMS`` names a platform that is not there.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(
            f"JAX finds no device for JAX_PLATFORMS={wanted!r} ({one_line(error)}): unset it, or install that platform"
        ) from error


def local_devices(count: int) -> list[jax.Device]:
    """The first devices of this process; all for a count of 0.

    Raises:
        ConfigError: there are fewer.
    """
    local: list[jax.Device] = jax.local_devices()
    if count > len(local):
        raise ConfigError(f"--devices must be at most {len(local)}, the devices of this process, got {count}")
    return local[: count or len(local)]


def is_lead() -> bool:
    """Whether this process is process 0, which writes for all."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached this barrier."""
    multihost_utils.sync_global_devices(name)


def from_lead(number: int) -> int:
    """Process 0's number, in every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def from_all(number: int) -> list[int]:
    """The numbers of all processes in their order, in every process."""
    return [int(value) for value in np.atleast_1d(multihost_utils.process_allgather(np.int32(number)))]


_ALIKE = "start all processes with the same options, data, weights, code, versions and settings"


def agree(facts: Mapping[str, str], remedy: str = _ALIKE) -> None:
    """Checks that every process knows the same.

    Args:
        facts: as ``{what: text}``.
        remedy: what to do otherwise, for the error.

    Raises:
        RunError: in every process, if one knows something else.
    """
    for what, text in facts.items():
        digests = from_all(zlib.crc32(text.encode()) & 0x7FFFFFFF)
        other = next((index for index, digest in enumerate(digests) if digest != digests[0]), None)
        if other is not None:
            raise RunError(f"process {other} has other {what} than process 0: {remedy}")


def largest_of_all(numbers: np.ndarray) -> np.ndarray:
    """The largest of each number over all processes, in every process."""
    gathered = np.asarray(multihost_utils.process_allgather(numbers))
    largest: np.ndarray = gathered.reshape(-1, *numbers.shape).max(axis=0)
    return largest


def leave(code: int) -> None:
    """Ends a process that fails alone, at once: an ordinary exit waits for the others, which wait for this one.

    Does nothing in a process that has not joined others.
    """
    if not is_joined():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_lead():
        time.sleep(2)  # the end of process 0 ends the others: those with an error of their own may print it first
    os._exit(code)


@contextmanager
def stop_on_sigterm(saving: str = "saving a checkpoint") -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM has arrived; a second SIGTERM ends the process at once.

    A thread listens, so that the second signal works while the main thread waits for a device or another process.
    Outside the main thread Python handles no signals, and nothing is installed.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while number := os.read(reader, 1):
            if number[0] != signal.SIGTERM:
                continue
            if requested.is_set():
                os._exit(PREEMPTED)
            requested.set()
            print(f"SIGTERM: {saving}; a second one leaves at once", file=sys.stderr, flush=True)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield requested.is_set
    finally:
        # None stands for a handler that JAX's runtime installed, which would ignore the signal.
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        thread.join()
        with suppress(OSError):
            os.close(reader)
