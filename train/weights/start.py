"""The state before the first step, of a training that starts from weights."""

from __future__ import annotations

import zlib
from pathlib import Path

import jax
import numpy as np
import optax

from train import manifests, processes
from train.errors import ConfigError
from train.state import State
from train.weights.matching import OWN, Matched, match
from train.weights.source import Arrays, read


def start(state: State, optimizer: optax.GradientTransformation, place: Path, name: str) -> tuple[State, Matched]:
    """A state whose parameters and running statistics are those of a run or a file, as far as they fit.

    Args:
        state: with initial values, which the others keep.
        optimizer: whose own state begins anew.
        place: a run folder or a safetensors file.
        name: of the network, for errors.

    Returns:
        The state, and what did not fit.

    Raises:
        ConfigError: nothing fits, or the weights cannot be read.
        RunError: another process reads other weights.
    """
    leaves = manifests.flat(state)
    network = {path: leaf for path, leaf in leaves.items() if path.startswith(OWN)}
    stored = read(place)
    processes.agree({f"weights of --init {place.name}": _digest(stored)})
    matched = match(network, stored)
    if not matched.arrays:
        raise ConfigError(f"--init {place}: none of its {len(stored)} arrays fits {name} by name and shape")
    new = [matched.arrays.get(path, leaf) for path, leaf in leaves.items()]
    state = jax.tree.unflatten(jax.tree.structure(state), map(jax.numpy.asarray, new))
    if state.average is not None:  # copies: a step donates the buffers of the state, and none may be donated twice
        state = state._replace(average=jax.tree.map(jax.numpy.copy, (state.params, state.batch_stats)))
    return state._replace(opt_state=optimizer.init(state.params)), matched


def _digest(arrays: Arrays) -> str:
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), zlib.crc32(name.encode(), found))
    return str(found)
