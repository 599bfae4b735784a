"""Reading the weights that a training starts from. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from train import checkpoints, files, runs
from train.errors import CheckpointError, ConfigError, one_line, say
from train.weights.matching import OWN

Arrays = dict[str, np.ndarray]

LARGEST = 1 << 38
"""Bytes of a file of weights: 256 GiB."""

_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".tar")


def read(place: Path) -> Arrays:
    """The weights of a run, or those in a safetensors file.

    Args:
        place: a run folder or a file.

    Returns:
        Arrays by name. Those of a run are the parameters and running statistics that `evaluate` takes.

    Raises:
        ConfigError, RunError, CheckpointError: there are none that can be read.
    """
    if place.is_dir():
        return _of_run(place)
    if place.suffix in _PICKLES:
        raise ConfigError(
            f"--init {place}: reading a pickle may run code that is in it: write the weights with "
            "safetensors.torch.save_file"
        )
    # Imported here: it is needed for this alone.
    from safetensors import SafetensorError, safe_open

    try:
        files.open_regular(place, limit=LARGEST).close()
        with safe_open(place, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"--init {place}: not a run folder or a safetensors file ({one_line(error)})") from error


def _evaluated(leaves: Arrays) -> Arrays:
    """The parameters and running statistics of a state that are evaluated: the averages if they are kept."""
    kept = {"average/0/": "params/", "average/1/": "batch_stats/"}
    averages = {
        path.replace(start, name, 1): leaf
        for start, name in kept.items()
        for path, leaf in leaves.items()
        if path.startswith(start)
    }
    return averages or {path: leaf for path, leaf in leaves.items() if path.startswith(OWN)}


def _of_run(folder: Path) -> Arrays:
    config = runs.load_config(folder)
    try:
        found = checkpoints.read(runs.Run(folder).checkpoints, select=config.select)
    except CheckpointError as error:
        raise CheckpointError(f"--init {error}; `python -m train verify {folder}` reads them all") from error
    for step, reason in found.skipped.items():
        say(f"--init {folder}: skipped step {step}: {reason}")
    return _evaluated(found.state)
