"""Training steps compiled for TPU pods on a host that has none: what a chip computes, moves, keeps and sends.

The ``libtpu`` wheel compiles the real program of any topology it knows. Its own estimate of the time is unusable, so
the times here are rooflines: the larger of the arithmetic over the chip's peak and of the bytes over its memory's
bandwidth, which no program can beat and few reach; communication is added in full, as if nothing overlapped.

References:
    Google Cloud, "TPU v5e", "TPU v6e" and "TPU7x (Ironwood)" documentation, 2025: peaks, memory and interconnect.
    Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures",
    Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from benchmarks import harness
from benchmarks.cost import METHODS
from train.config import Config, Model
from train.models import create_model
from train.optimizers import make_optimizer
from train.parallel import AXIS
from train.steps import init_state, make_step

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COMPARED = ("standard", "flow-gradient", "flow-gradient, finite difference")


class Chip(NamedTuple):
    """Published peaks of a chip.

    Attributes:
        flops: per second, bfloat16.
        memory_bandwidth: bytes per second.
        memory: bytes.
        link_bandwidth: bytes per second that a chip sends over all its links together.
    """

    flops: float
    memory_bandwidth: float
    memory: float
    link_bandwidth: float


CHIPS = {
    "v5e": Chip(197e12, 819e9, 16 * 2**30, 200e9),
    "v6e": Chip(918e12, 1640e9, 32 * 2**30, 400e9),
}


class PodError(ValueError):
    """Nothing can be compiled for that topology; the message is one line with the remedy."""


def topology_devices(name: str) -> list[Any]:
    """The devices of a topology such as ``"v5e:4x4"``.

    Raises:
        PodError: the ``libtpu`` wheel is missing or does not know the topology.
    """
    from jax.experimental import topologies

    # There is no chip to share or to ask: several processes may compile at once, and nobody need be queried.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PodError(
            f"topology {name} is not available ({reason[:120]}): pods needs the libtpu wheel that this jax asks for, "
            "`pip install -e .[pods]`, and a topology it knows, such as v5e:2x2"
        ) from error


class Compiled(NamedTuple):
    """A compiled step of a topology.

    Attributes:
        devices: how many chips.
        parameters: bytes of the network's parameters.
        executable: the compiled program.
        seconds: that compiling took.
    """

    devices: int
    parameters: int
    executable: Any
    seconds: float


def compile_step(
    topology: str, method: str, model: Model, *, batch_size: int, image_size: int = 32, effort: float = 0.0
) -> Compiled:
    """Compiles a whole training step, sharded over the batch.

    Args:
        topology: for example ``"v5e:4x4"``.
        method: of `benchmarks.cost.METHODS`, one without an attack.
        model: the network's options.
        batch_size: images per chip.
        image_size: side in pixels.
        effort: of the compiler's optimization, in [-1, 1]. At -1 it takes a quarter of the time; FLOPs and
            communication come out the same, bytes and memory only roughly.

    Raises:
        PodError: the topology is not available.
    """
    devices = topology_devices(topology)
    config = replace(Config(), model=model, method=METHODS[method])
    network = create_model(
        model.name,
        num_classes=10,
        width=model.width,
        norm=model.norm,
        dtype=jnp.dtype(model.dtype),
        implementation="lax",  # "auto" would see this host
        remat=model.remat,
    )
    optimizer = make_optimizer(config.optimizer, config.optimizer.learning_rate)
    shape = (image_size, image_size, 3)
    state = jax.eval_shape(lambda: init_state(network, optimizer, shape, 0))
    count = batch_size * len(devices)
    batch = {
        "image": jax.ShapeDtypeStruct((count, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32),
        "position": jax.ShapeDtypeStruct((count,), jnp.int32),
    }
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    whole, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    previous = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", effort)
    try:
        executable, seconds = harness.compiled(
            make_step(config, network, optimizer),
            state,
            batch,
            in_shardings=(whole, divided),
            out_shardings=whole,
            donate_argnums=0,
        )
    finally:
        jax.config.update("jax_exec_time_optimization_effort", previous)
    parameters = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    return Compiled(len(devices), parameters, executable, seconds)


def collectives(program: str, *, trips: int = 1) -> list[tuple[str, int]]:
    """The collective operations that a compiled program runs, each with the bytes of its results.

    Args:
        program: its text.
        trips: how often its loops turn; what is in the body of one counts as often.
    """
    found, bodies, computation = [], set(), ""
    for line in program.splitlines():
        if heading := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computation = heading.group(1)
        bodies.update(re.findall(r" while\(.*body=%?([\w.-]+)", line))
        for shape, name in re.findall(rf"= (\(.*?\)|\S+) ({'|'.join(COLLECTIVES)})(?:-start)?\(", line):
            size = sum(_bytes(kind, sizes) for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape))
            found.append((computation, name, size))
    return [(name, size) for computation, name, size in found for _ in range(trips if computation in bodies else 1)]


def _bytes(kind: str, sizes: str) -> int:
    width = 1 if kind == "pred" else int(re.sub(r"\D*(\d+).*", r"\1", kind)) // 8
    return width * int(np.prod([int(size) for size in sizes.split(",") if size], dtype=np.int64))


def measure(
    *,
    topologies: tuple[str, ...] = ("v5e:2x2", "v5e:4x4", "v5e:16x16", "v6e:4x4"),
    models: tuple[str, ...] = ("vgg-16", "resnet-18"),
    methods: tuple[str, ...] = COMPARED,
    batch_size: int = 128,
    image_size: int = 32,
    dtype: str = "bfloat16",
    norm: str = "batch",
    effort: float = 0.0,
    fit: bool = False,
    quick: bool = False,
) -> list[dict[str, Any]]:
    """Compiles the steps of every topology, model and method.

    Args:
        topologies: by the names that libtpu knows them.
        models: networks.
        methods: of `benchmarks.cost.METHODS`, without attacks.
        batch_size: images per chip.
        image_size: side in pixels.
        dtype: of the network's arithmetic.
        norm: ``"batch"`` (statistics over the whole batch) or ``"group"``.
        effort: of the compiler's optimization, see `compile_step`.
        fit: also search the largest batch per chip that the compiler fits into the chip's memory.
        quick: the smallest topology, VGG-11, the least effort.

    Returns:
        A row per topology, model and method.

    Raises:
        PodError: a topology is not available.
    """
    if quick:
        topologies, models, effort = topologies[:1], ("vgg-11",), -1.0
    cases = [(topology, model, method) for topology in topologies for model in models for method in methods]
    rows: list[dict[str, Any]] = []
    for topology, name, method in tqdm(cases, desc="compiling", disable=None, leave=False):
        model = Model(name=name, dtype=dtype, norm=norm)  # type: ignore[arg-type]
        compiled = compile_step(topology, method, model, batch_size=batch_size, image_size=image_size, effort=effort)
        chip = CHIPS[topology.split(":")[0]]
        plain = None
        if method == "flow-gradient, finite difference":  # a loop of two passes, each a standard step's
            plain = compile_step(
                topology, "standard", model, batch_size=batch_size, image_size=image_size, effort=effort
            )
        row = {
            "topology": topology,
            "model": name,
            "method": method,
            "norm": norm,
            "dtype": dtype,
            "batch_size_per_chip": batch_size,
            "image_size": image_size,
            "effort": effort,
            **describe(compiled, chip, plain),
        }
        row["largest_batch_estimate"] = estimate_largest_batch(row, chip)
        if fit:
            row["largest_batch"] = largest_batch(
                topology, method, model, image_size=image_size, effort=effort, start=row["largest_batch_estimate"]
            )
        rows.append(row)
    return rows


def estimate_largest_batch(row: dict[str, Any], chip: Chip) -> int:
    """The batch per chip whose temporary memory, in proportion, would fill what the arguments leave of the chip's."""
    free = chip.memory - row["argument_bytes"]
    return int(free / row["temporary_bytes"] * row["batch_size_per_chip"])


def describe(compiled: Compiled, chip: Chip, loop_body: Compiled | None = None) -> dict[str, Any]:
    """What one chip does in a step, and how long it takes at least.

    Args:
        compiled: the step.
        chip: what it runs on.
        loop_body: a step that does as much as one turn of the loop in `compiled`, of two turns; the compiler's counts
            take the body once.
    """
    executable = compiled.executable
    memory = executable.memory_analysis()
    analyses = [one.executable.cost_analysis() for one in (compiled, loop_body) if one is not None]
    flops, moved = (sum(analysis[name] for analysis in analyses) for name in ("flops", "bytes accessed"))
    program = executable.as_text()
    sent = collectives(program, trips=1 if loop_body is None else 2)
    sent_bytes = sum(size for _, size in sent)
    compute, movement = flops / chip.flops, moved / chip.memory_bandwidth
    # A ring sends every byte nearly twice: once to be summed, once to be spread.
    communication = 2 * (compiled.devices - 1) / compiled.devices * sent_bytes / chip.link_bandwidth
    operations = harness.operations(program)
    return {
        "chips": compiled.devices,
        "flops": flops,
        "hbm_bytes": moved,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "parameter_bytes": compiled.parameters,
        "collective_operations": len(sent),
        "collective_kinds": sorted({name for name, _ in sent}),
        "collective_bytes": sent_bytes,
        "gathers_and_scatters": operations["gather"] + operations["scatter"],
        "roofline_milliseconds": 1e3 * max(compute, movement),
        "bound": "arithmetic" if compute > movement else "memory",
        "communication_milliseconds": 1e3 * communication,
        "weak_scaling": max(compute, movement) / (max(compute, movement) + communication),
        "compile_seconds": compiled.seconds,
    }


def largest_batch(
    topology: str, method: str, model: Model, *, image_size: int = 32, effort: float = 0.0, start: int = 4096
) -> int:
    """The largest batch per chip that the compiler fits into the chip's memory, to an eighth, searched from `start`.

    The compiler recomputes activations of its own accord before it refuses.
    """

    def fits(batch_size: int) -> bool:
        try:
            compile_step(topology, method, model, batch_size=batch_size, image_size=image_size, effort=effort)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return False
        return True

    step = max(start // 8, 1)
    batch_size = max(start // step, 1) * step
    if fits(batch_size):
        while fits(batch_size + step):
            batch_size += step
        return batch_size
    while batch_size > step and not fits(batch_size - step):
        batch_size -= step
    return batch_size - step
