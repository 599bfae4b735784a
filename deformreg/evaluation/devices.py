"""The devices of an evaluation: the rows of a batch are divided over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deformreg import _checks
from deformreg._programs import jitted

Function = TypeVar("Function", bound=Callable[..., Any])

AXIS = "rows"
"""The mesh axis over which the rows of a batch are divided."""

ROWS, WHOLE = P(AXIS), P()
"""How an argument or a result is placed: divided by rows, or whole on every device."""


@dataclass(frozen=True)
class Devices:
    """Where batches are computed.

    Attributes:
        mesh: the devices; None for JAX's default device alone.
    """

    mesh: Mesh | None = None

    @property
    def count(self) -> int:
        """How many devices there are."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def axis(self) -> str | None:
        """The mesh axis of the rows inside a compiled function."""
        return None if self.mesh is None else AXIS

    def jit(self, function: Function, arguments: tuple[P, ...], results: Any) -> Callable[[], Any]:
        """Jits a function of a batch. On several devices each runs it on its own rows.

        Args:
            function: of a batch; `jax.lax` collectives over `axis` connect the devices.
            arguments: `ROWS` or `WHOLE` for each argument.
            results: the same for the result or its parts.

        Returns:
            As `jitted`: a function without arguments that returns the jitted function.
        """
        if self.mesh is None:
            return jitted(function)
        placed = tuple(NamedSharding(self.mesh, spec) for spec in arguments)
        mapped = jitted(jax.shard_map(function, mesh=self.mesh, in_specs=arguments, out_specs=results, check_vma=False))
        return lambda: _Placed(mapped(), placed)

    def put(self, tree: Any) -> Any:
        """Copies a pytree to every device, whichever devices it lies on."""
        return tree if self.mesh is None else jax.device_put(tree, NamedSharding(self.mesh, WHOLE))


class _Placed(NamedTuple):
    """A jitted function that takes arrays from anywhere. With several processes `jit` divides no NumPy arrays."""

    function: Any
    shardings: tuple[NamedSharding, ...]

    def __call__(self, *arguments: Any) -> Any:
        placed = (jax.device_put(*each) for each in zip(arguments, self.shardings, strict=True))
        return self.function(*placed)

    @property
    def eval_shape(self) -> Any:
        return self.function.eval_shape


def devices_of(devices: Sequence[jax.Device] | None) -> Devices:
    """The devices that a user lists; None is JAX's default device."""
    if devices is None:
        return Devices()
    listed = list(devices)
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(f"devices must be one or more different ones, got {listed}")
    for device in listed:
        _checks.instance("devices", device, jax.Device, "jax.local_devices()")
    if any(device.process_index != jax.process_index() for device in listed):
        raise ValueError("devices must be of this process, for example jax.local_devices(): each evaluates its share")
    return Devices(Mesh(np.array(listed), (AXIS,), axis_types=(AxisType.Auto,)))
