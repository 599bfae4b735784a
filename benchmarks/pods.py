"""Training steps compiled for TPU pods on a host without TPUs: what a chip computes, moves, stores and sends.

The ``libtpu`` wheel compiles the real program for any topology it knows. Its own estimate of the time is unusable, so
the times here are rooflines, lower bounds that few programs reach: the arithmetic at the chip's peak or the bytes at
its memory's bandwidth, whichever takes longer. Communication is added in full, as if nothing overlapped.

References:
    Google Cloud, "TPU v5e", "TPU v6e" and "TPU7x (Ironwood)" documentation, 2025: peaks, memory and interconnect.
    Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures",
    Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from benchmarks import harness
from benchmarks.collectives import collectives
from benchmarks.cost import find, make_training_step, without_loop
from benchmarks.options import BatchSize, Case, Networks, Several, Written
from benchmarks.rows import Rows, commit, read, write
from train.config import ModelName
from train.errors import ConfigError, one_line, say
from train.methods import AnyMethod
from train.methods.penalties import FiniteDifference
from train.methods.standard import Standard
from train.models import MODELS, create_model
from train.parallel import AXIS, on_sharded_state, shardings
from train.ranges import Count
from train.state import init_state

NormName = Literal["batch", "group", "layer"]


@dataclass(frozen=True, kw_only=True)
class Options(Networks, Written):
    """Compiles whole training steps for TPU topologies and states what a chip does in one of them."""

    topology: Several[str] = ("v5e:2x2", "v5e:4x4", "v5e:16x16", "v6e:4x4")
    """Topologies by libtpu's names, of v5e and v6e chips."""
    model: Several[ModelName] = ("vgg-16", "resnet-18")
    """Networks."""
    batch_size: Several[BatchSize] = (128,)
    """Images per chip."""
    norm: Several[NormName] = ("batch",)
    """Normalization: over the whole batch, by groups of channels, or the layer norm of transformers."""
    methods: Several[str] = ("standard", "flow-gradient", "flow-gradient, finite difference")
    """Methods of `cost` without an attack."""
    shard_state: Several[bool] = (False,)
    """Whether the state is sharded over the chips."""
    num_classes: Count = 10
    """Logits of the networks."""
    effort: Annotated[float, Interval(ge=-1, le=1)] = 0.0
    """The compiler's optimization effort. At -1 compiling takes a quarter of the time;
    FLOPs and communication come out the same, bytes and memory only roughly."""
    fit: bool = False
    """Also search for the largest batch per chip that the compiler fits into the chip's memory."""


def run(options: Options) -> Rows:
    """A row per topology, network and method; those that `--json` holds already are kept, and new ones added at once.

    A step that the compiler refuses, for example because it does not fit into the chip's memory, has no row: a line on
    standard error says why.

    Raises:
        ConfigError: a topology is not available, a method is unknown or attacks, or the compiler refuses every step.
    """
    jax.config.update("jax_platforms", "cpu")  # otherwise libtpu looks for a TPU
    methods = {name: find(name) for name in options.methods}
    for name, method in methods.items():
        if without_loop(method)[0] != method:
            raise ConfigError(f"pods cannot count the loop of an attack: leave out {name!r}")
    for model, norm in itertools.product(options.model, options.norm):
        if norm not in MODELS[model].norms:
            raise ConfigError(f"{model} has no {norm} norm: --norm must be {' or '.join(MODELS[model].norms)}")
    targets = [
        Target(topology, norm, case, options.effort, shard_state=shard_state, num_classes=options.num_classes)
        for topology, norm, case, shard_state in itertools.product(
            options.topology, options.norm, options.cases(), options.shard_state
        )
    ]
    file = options.json
    rows = read(file)["rows"] if file is not None and file.exists() else []
    cases = list(itertools.product(targets, methods.items()))
    for target, (name, method) in tqdm(cases, desc="compiling", disable=None, leave=False):
        same = [row for row in rows if case_of(target, name).items() <= row.items()]
        if any(not options.fit or "largest_batch" in row for row in same):
            continue
        standard = next((row for row in rows if case_of(target, "standard").items() <= row.items()), None)
        try:
            found = _measure(target, name, method, options.fit, standard)
        except jax.errors.JaxRuntimeError as error:
            say(f"not compiled: {target.case.model} for {target.topology}, {name}: {one_line(error)}")
            continue
        rows = [*(row for row in rows if row not in same), found]
        if file is not None:
            write(file, sys.argv[1:], rows)
    if not rows:
        raise ConfigError("no step was compiled: the lines above say why")
    return rows


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


def topology_devices(name: str) -> list[Any]:
    """The devices of a topology such as ``"v5e:4x4"``.

    Raises:
        ConfigError: the ``libtpu`` wheel is missing or does not know the topology, or its chip is not in `CHIPS`.
    """
    from jax.experimental import topologies

    # Without a chip there is nothing to lock and no metadata server to query.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        CHIPS[name.split(":")[0]]
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"topology {name} is not available ({reason[:120]}): pods needs the libtpu wheel that this jax asks for, "
            "`pip install -e .[pods]`, and a topology it knows, such as v5e:2x2"
        ) from error


class Target(NamedTuple):
    """What a step is compiled for.

    Attributes:
        topology: for example ``"v5e:4x4"``.
        norm: the network's normalization.
        case: network and images per chip.
        effort: of the compiler, in [-1, 1].
        width: of the network.
        shard_state: whether the state is sharded over the chips.
        num_classes: logits of the network.
    """

    topology: str
    norm: NormName
    case: Case
    effort: float = 0.0
    width: float = 1.0
    shard_state: bool = False
    num_classes: int = 10

    @property
    def chip(self) -> Chip:
        return CHIPS[self.topology.split(":")[0]]


class Compiled(NamedTuple):
    """A compiled step of a topology.

    Attributes:
        devices: the number of chips.
        parameters: bytes of the network's parameters.
        executable: the compiled program.
        seconds: what compiling took.
    """

    devices: int
    parameters: int
    executable: Any
    seconds: float


def compile_step(method: AnyMethod, target: Target) -> Compiled:
    """Compiles a whole training step, sharded over the batch.

    Raises:
        ConfigError: the topology is not available.
    """
    devices, case = topology_devices(target.topology), target.case
    network = create_model(
        case.model,
        num_classes=target.num_classes,
        width=target.width,
        norm=target.norm,
        dtype=jnp.dtype(case.dtype),
        implementation="lax",  # "auto" would choose for this host
    )
    step, optimizer = make_training_step(method.make(), network)
    shape, count = (case.image_size, case.image_size, 3), case.batch_size * len(devices)
    state = jax.eval_shape(lambda: init_state(network, optimizer, shape, 0))
    batch = {
        "image": jax.ShapeDtypeStruct((count, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32),
        "position": jax.ShapeDtypeStruct((count,), jnp.int32),
    }
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    whole, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    place: Any = whole
    if target.shard_state:
        step, place = on_sharded_state(step, mesh), shardings(state, mesh)
    options = {"in_shardings": (place, divided), "out_shardings": (place, whole), "donate_argnums": 0}
    # At effort -1 the compiler takes a quarter of the time and counts the same arithmetic and communication; bytes and
    # memory come out up to tens of per cent higher.
    previous = jax.config.jax_exec_time_optimization_effort  # type: ignore[attr-defined]
    jax.config.update("jax_exec_time_optimization_effort", target.effort)
    try:
        executable, seconds = harness.compiled(step, state, batch, **options)
    finally:
        jax.config.update("jax_exec_time_optimization_effort", previous)
    parameters = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    return Compiled(len(devices), parameters, executable, seconds)


def case_of(target: Target, method: str) -> dict[str, Any]:
    """The columns that say what was compiled."""
    return {
        "topology": target.topology,
        "model": target.case.model,
        "method": method,
        "norm": target.norm,
        "dtype": target.case.dtype,
        "batch_size_per_chip": target.case.batch_size,
        "image_size": target.case.image_size,
        "effort": target.effort,
        "shard_state": target.shard_state,
        "num_classes": target.num_classes,
    }


def _measure(
    target: Target, name: str, method: AnyMethod, fit: bool, standard: dict[str, Any] | None
) -> dict[str, Any]:
    compiled, turn = compile_step(method, target), None
    if isinstance(getattr(method, "rule", None), FiniteDifference):
        # Its loop has two turns, each with the passes of a standard step.
        turn = standard or describe(compile_step(Standard(), target), target.chip)
    row = {**case_of(target, name), "commit": commit(), **describe(compiled, target.chip, turn)}
    # The batch whose temporary memory, in proportion, fills what the arguments leave of the chip's.
    free = target.chip.memory - row["argument_bytes"]
    row["largest_batch_estimate"] = int(free / row["temporary_bytes"] * target.case.batch_size)
    if fit:
        row["largest_batch"] = largest_batch(method, target, start=row["largest_batch_estimate"])
    return row


def describe(compiled: Compiled, chip: Chip, turn: dict[str, Any] | None = None) -> dict[str, Any]:
    """What one chip does in a step, and how long that takes at least.

    Args:
        compiled: the step.
        chip: what it runs on.
        turn: for a step with a loop of two turns, the row of one that does as much as one turn: the compiler counts
            the body once.
    """
    executable = compiled.executable
    memory = executable.memory_analysis()
    counted, twice = executable.cost_analysis(), turn or {"flops": 0, "hbm_bytes": 0}
    flops, moved = counted["flops"] + twice["flops"], counted["bytes accessed"] + twice["hbm_bytes"]
    program = executable.as_text()
    sent = collectives(program, trips=1 if turn is None else 2)
    sent_bytes = sum(size for _, size in sent)
    compute, movement = flops / chip.flops, moved / chip.memory_bandwidth
    # A ring sends every byte of a sum nearly twice, once to add and once to distribute; a half of that nearly once.
    turns = sum((2 if name == "all-reduce" else 1) * size for name, size in sent)
    communication = (compiled.devices - 1) / compiled.devices * turns / chip.link_bandwidth
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


def largest_batch(method: AnyMethod, target: Target, *, start: int) -> int:
    """The largest batch per chip that the compiler fits into the chip's memory, to an eighth of `start`.

    The compiler recomputes activations of its own accord before it refuses.
    """

    def fits(batch_size: int) -> bool:
        try:
            compile_step(method, target._replace(case=target.case._replace(batch_size=batch_size)))
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
