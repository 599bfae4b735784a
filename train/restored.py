"""A finished run opened again: its network as a logits function, and its test images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax import Array

from train import checkpoints, metrics, options, own, processes, runs
from train.config import Config
from train.data import Source, output_shape
from train.data.sample import sample
from train.errors import ConfigError, RunError, UserError, say
from train.optimizers import Make
from train.state import predict
from train.task import build, open_split
from train.views import Images, open_views

LogitsFn = Callable[[Array], Array]

NONE: own.Networks = {}
"""No networks of the user's own."""


class Predictor(NamedTuple):
    """`predict` of one architecture. Equal for equal architectures, so that several runs share compiled programs."""

    model: nn.Module

    def __call__(self, params: Any, batch_stats: Any, images: Array) -> Array:
        return predict(self.model, params, batch_stats, images)


class Trained(NamedTuple):
    """A run read back.

    Attributes:
        config: its config.
        logits_fn: ``float[n, h, w, c] -> logits[n, classes]`` on running statistics.
        images: float[n, h, w, c], the test images as the network sees them; on demand if they are many.
        labels: int32[n].
        contents: a hash of images and labels.
        source: names the data set and split that they are from.
        class_names: one per label.
        step: of the checkpoint.
        train_seconds: time spent training, compilation included.
        place: the run folder that was read.
        sample_seed: with which the images were chosen.
    """

    config: Config
    logits_fn: LogitsFn
    images: Images
    labels: np.ndarray
    contents: str
    source: str
    class_names: tuple[str, ...]
    step: int
    train_seconds: float
    place: Place
    sample_seed: int | None


class Place(NamedTuple):
    """A run folder as it was when its run was read.

    Attributes:
        folder: the folder.
        handles: descriptors of the folder and of its lock file, by path. They stay open to the end of this process, so
            that no other folder and no other file is given their numbers.
    """

    folder: Path
    handles: tuple[tuple[Path, int], ...]


def _look_at(folder: Path) -> Place:
    paths = (folder, runs.Run(folder).lock)
    flags = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK) | os.O_CLOEXEC
    return Place(folder, tuple((path, os.open(path, flags)) for path in paths if path.exists()))


def check_same(run: Trained | Opened) -> None:
    """Makes sure, before results are written into a run folder, that it still holds the run that was read.

    Raises:
        RunError: it was removed, or another run is there now.
    """
    try:
        same = all(os.path.samestat(os.fstat(handle), path.stat()) for path, handle in run.place.handles)
        now = runs.load_config(run.place.folder)
    except (OSError, UserError):
        same = False
    if not same or options.differences(run.config, now).fixed:
        raise RunError(
            f"{run.place.folder} no longer holds the run that was read: it was removed or replaced, so nothing is "
            "written into it; --output chooses another folder"
        )


class Opened(NamedTuple):
    """A run whose test images are not read yet.

    Attributes:
        config: its config.
        test: its test images.
        model: its network.
        variables: ``{"params": ..., "batch_stats": ...}``.
        step: of the checkpoint.
        place: the run folder that was read.
    """

    config: Config
    test: Source
    model: nn.Module
    variables: dict[str, Any]
    step: int
    place: Place

    @property
    def logits_fn(self) -> LogitsFn:
        """``float[n, h, w, c] -> logits[n, classes]`` on running statistics."""
        logits_fn: LogitsFn = jax.tree_util.Partial(
            Predictor(self.model), self.variables["params"], self.variables["batch_stats"]
        )
        return logits_fn


def open_network(
    folder: str | Path,
    *,
    data_dir: str | None = None,
    model: nn.Module | own.Factory | None = None,
    optimizer: Make | None = None,
    test: Source | None = None,
) -> Opened:
    """Restores a run's network; the arguments and errors are those of `open_run`."""
    processes.check_devices()
    folder = Path(folder)
    config = runs.load_config(folder)
    place = _look_at(folder)
    test = open_split(config, "test", data_dir, write=False) if test is None else test
    network = build(config, test, model=model, optimizer=optimizer)
    stored = runs.Run(folder).checkpoints
    step, state, skipped = checkpoints.restore(stored, network.shapes, config=config, select=config.select)
    for other, reason in skipped.items():
        say(f"skipped the damaged checkpoint of step {other}: {reason}")
    params, batch_stats = state.evaluated
    variables = {"params": params, "batch_stats": batch_stats}
    return Opened(config, test, network.model, variables, step, place)


def open_run(
    folder: str | Path,
    *,
    data_dir: str | None = None,
    examples: int = 0,
    sample_seed: int | None = None,
    model: nn.Module | own.Factory | None = None,
    optimizer: Make | None = None,
    test: Source | None = None,
) -> Trained:
    """Restores a run's network and opens its test images.

    Args:
        folder: the run folder.
        data_dir: where the data is now; None for where it was in training.
        examples: number of test images; 0 for the config's choice.
        sample_seed: of the sample of these, see `train.data.sample`.
        model: the network in place of the config's, as it was given to `train.fit`. What the config of a run names is
            never imported.
        optimizer: as it was given to `train.fit`, if it was: the checkpoints hold its state.
        test: test images in place of the config's.

    Raises:
        RunError, ConfigError, CheckpointError, DataError: something cannot be used.
    """
    folder = Path(folder)
    opened = open_network(folder, data_dir=data_dir, model=model, optimizer=optimizer, test=test)
    config, test = opened.config, opened.test
    indices = sample(test, examples or config.evaluation.examples, sample_seed)
    views = open_views(test, indices, config.augmentation, tolerant=config.data.max_unreadable > 0)
    seconds = metrics.train_seconds(metrics.read_metrics(runs.Run(folder)))
    logits_fn, step, place = opened.logits_fn, opened.step, opened.place
    return Trained(config, logits_fn, *views, test.name, test.class_names, step, seconds, place, sample_seed)


def open_runs(
    folders: Sequence[Path],
    *,
    data_dir: str | None = None,
    examples: int = 0,
    sample_seed: int | None = None,
    networks: own.Networks = NONE,
) -> list[Trained]:
    """Restores runs to be compared: each one once, on the same test images.

    Args:
        folders: the run folders.
        data_dir, examples, sample_seed: as in `open_run`.
        networks: of the user's own, by the names that the configs of the runs have for them.

    Raises:
        RunError: one is named twice, or sees other test images than the first.
        ConfigError, CheckpointError, DataError: as `open_run`.
    """
    check_each_once(folders)
    opened: list[Trained] = []
    for folder in folders:
        model = network_of(folder, networks)
        run = open_run(folder, data_dir=data_dir, examples=examples, sample_seed=sample_seed, model=model)
        opened.append(run)
        if not _comparable(run, opened[0]):
            raise RunError(
                f"{folder} does not compare with {folders[0]}: their test images differ ({_tested_on(run)}; "
                f"{_tested_on(opened[0])}): evaluate each alone, or give the same number of images by --examples"
            )
    return opened


def open_sources(
    folders: Sequence[Path], evaluated: Trained, *, data_dir: str | None = None, networks: own.Networks = NONE
) -> tuple[tuple[str, LogitsFn], ...]:
    """Restores the networks that transferred images are made on, as names and logits functions.

    Args:
        folders: their run folders.
        evaluated: a run that the images will be shown to.
        data_dir: where the data is now; None for where it was in training.
        networks: as in `open_runs`.

    Raises:
        RunError: one is named twice, or takes images of another shape or knows other classes than `evaluated`.
        ConfigError, CheckpointError, DataError: as `open_run`.
    """
    check_each_once(folders)
    ours = evaluated.images.shape[1:], len(evaluated.class_names)
    sources = []
    for name, folder in zip(runs.short_names(folders), folders, strict=True):
        opened = open_network(folder, data_dir=data_dir, model=network_of(folder, networks))
        theirs = output_shape(opened.config.augmentation, opened.test.image_shape), opened.test.num_classes
        if ours != theirs:
            raise RunError(
                f"nothing transfers from {folder}: its network takes images {theirs[0]} of {theirs[1]} classes, "
                f"the evaluated one {ours[0]} of {ours[1]}"
            )
        sources.append((name, opened.logits_fn))
    return tuple(sources)


def load_networks(names: Sequence[str], folders: Sequence[Path]) -> own.Networks:
    """Imports the user's own networks that a command line names for its runs.

    Args:
        names: as ``package.module:factory``.
        folders: all run folders of the command.

    Raises:
        ConfigError: there is no such module or function, or no run names the network.
        RunError: a folder holds no run.
    """
    networks = own.load(names)
    wanted = {runs.load_config(folder).model.name for folder in folders} if networks else set()
    for name in networks:
        if name not in wanted:
            raise ConfigError(f"--model.name {name}: no run names this network")
    return networks


def network_of(folder: Path, networks: own.Networks) -> own.Factory | None:
    """The user's own network that a run's config names, if it is among those given."""
    return networks.get(runs.load_config(folder).model.name)


def check_each_once(folders: Sequence[Path]) -> None:
    """Raises `RunError` if a folder is named twice."""
    places = [os.path.abspath(folder) for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise RunError(f"{folder} is named twice: leave one out")


def _comparable(run: Trained, other: Trained) -> bool:
    return run.class_names == other.class_names and run.contents == other.contents


def _tested_on(run: Trained) -> str:
    count, *shape = run.images.shape
    return f"{count} of {run.config.data.name}, {' x '.join(map(str, shape))}, {len(run.class_names)} classes"
