"""A config made concrete: its data and its network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.errors import FlaxError

from train import own
from train.config import Config
from train.data import NoSplit, Source, embedded, load, output_shape
from train.data.kind import say_once, stored_name, user_path
from train.data.parts import parse
from train.data.places import find_moved, path_of
from train.errors import ConfigError, DataError, one_line
from train.methods import Method
from train.models import create_model
from train.models.standardized import Standardized
from train.optimizers import Make
from train.parallel import AXIS
from train.state import State, init_state, predict
from train.step import Step, make_step


class Network(NamedTuple):
    """A config's network and optimizer.

    Attributes:
        model: the Flax module.
        shapes: the state's shapes and types (``jax.ShapeDtypeStruct``s), all that restoring one needs.
        init: makes the state before the first step.
        optimizer: an Optax transformation.
        rate: the learning rate as a function of the step.
    """

    model: nn.Module
    shapes: State
    init: Callable[[], State]
    optimizer: optax.GradientTransformation
    rate: optax.Schedule


class Splits(NamedTuple):
    """The images of a training: to train on, and to validate on."""

    train: Source
    validation: Source


class Task(NamedTuple):
    """A config made concrete.

    Attributes:
        splits: the images.
        network: what is trained.
        method: how.
        step: the training step, not compiled.
        steps_per_epoch: optimizer steps.
    """

    splits: Splits
    network: Network
    method: Method
    step: Step
    steps_per_epoch: int


def prepare(
    config: Config,
    *,
    evaluated: bool = False,
    method: Method | None = None,
    model: nn.Module | own.Factory | None = None,
    data: Splits | None = None,
    optimizer: Make | None = None,
    write_data: bool = True,
) -> Task:
    """Opens the data and builds the network.

    Args:
        config: what to train.
        evaluated: whether the test images will be wanted; then they are looked at now, not after the training.
        method, model, data, optimizer: values in place of those that the config describes.
        write_data: whether something may be written into the config's `data_dir`.

    Raises:
        DataError: the data cannot be used.
        ConfigError: network or batch do not fit the data, or the training ends before the method's first penalty.
    """
    splits = _open_splits(config, evaluated, write_data) if data is None else data
    train, validation = splits
    if train.num_classes < 2:
        raise DataError(f"{train.name}: there is only one class; a classifier needs two or more")
    if config.batch_size > len(train):
        raise ConfigError(f"--batch-size must be at most {len(train)}, the training images, got {config.batch_size}")
    weights = len(config.labels.weights)
    if weights not in (0, train.num_classes):
        raise ConfigError(f"--labels.weights must be {train.num_classes} numbers, one per class, got {weights}")
    steps_per_epoch = len(train) // config.batch_size
    total = config.epochs * steps_per_epoch
    if total >= 2**31:
        raise ConfigError(f"--epochs must be at most {2**31 // steps_per_epoch}: steps are counted in 32 bits")
    network = build(config, train, steps_per_epoch, model=model, optimizer=optimizer)
    _check_agreement(config, train, validation)
    method = config.method.make() if method is None else method
    if method.first_step and not any(map(method.is_due, range(method.first_step, total))):
        raise ConfigError(
            f"--method.first-step {method.first_step}: the training ends after {total} steps, none of which takes the "
            "penalty"
        )
    step = make_step(
        method,
        network.model,
        network.optimizer,
        rate=network.rate,
        augmentation=config.augmentation,
        labels=config.labels,
        num_classes=train.num_classes,
        accumulate=config.accumulate,
        average=config.average,
    )
    return Task(splits, network, method, step, steps_per_epoch)


def _open_splits(config: Config, evaluated: bool, write: bool) -> Splits:
    """Training images, and for validation those held out, else the set's own validation split, else the test images."""
    train = open_split(config, "train", write=write)
    _check_apart(config, train)
    test = open_split(config, "test", write=write) if evaluated else None
    if test is not None:
        _check_agreement(config, train, test)
    try:
        validation = open_split(config, "validation", write=write)
    except NoSplit:
        validation = test or open_split(config, "test", write=write)
    return Splits(train, validation)


def _check_apart(config: Config, train: Source) -> None:
    """Raises `ConfigError` if a network would be validated or evaluated on images that it is trained on."""
    data, trained = config.data, parse(config.data.train_split)
    for split, text in (("validation", data.validation_split), ("test", data.test_split)):
        if split == "validation" and data.holdout:
            continue  # cut off the images to train on
        part = parse(text or split)
        if stored_name(part.name) != stored_name(trained.name):
            continue
        shared = set(part.rows(train.whole)) & set(trained.rows(train.whole))
        if shared:
            raise ConfigError(
                f"--data.{split}-split {text or split} and --data.train-split {data.train_split} share {len(shared)} "
                f"images: leave them out of one, for example by --data.train-split {trained.name}[:90%] and "
                f"--data.{split}-split {trained.name}[90%:]"
            )


def _check_agreement(config: Config, train: Source, other: Source) -> None:
    """Raises `ConfigError` if a network for the images of one source cannot take those of another."""
    try:
        expected, found = (output_shape(config.augmentation, source.image_shape) for source in (train, other))
    except ValueError as error:
        raise ConfigError(f"{other.name}: {error}") from error
    if expected != found:
        raise ConfigError(
            f"{other.name} has images of shape {found}, {train.name} of {expected}: make them alike, for example by "
            "--augmentation.resize"
        )


def open_split(config: Config, split: str, data_dir: str | None = None, *, write: bool = True) -> Source:
    """A split of a config's data.

    Args:
        config: names the data.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        data_dir: where the data is now, if it has moved.
        write: whether something may be written into the config's `data_dir`.

    Raises:
        DataError: it cannot be used; a `NoSplit` if there is none.
        ConfigError: the images were passed to `fit` and are not known here, or the set comes with a package and is not
            in `data_dir`.
    """
    data = config.data
    if data.given:
        raise ConfigError(f"the images {data.given!r} of this run come from a script: pass them there, as data=...")
    name, place = data.name, data.data_dir
    if data_dir is not None and path_of(name):
        name, place = find_moved(name, data_dir), None
    elif data_dir is not None:
        _check_there(name, user_path(data_dir))
        place = data_dir
    named = {"validation": data.validation_split, "test": data.test_split}.get(split)
    if split == "validation" and named and data.holdout:
        raise ConfigError("--data.validation-split and --data.holdout both choose the validation images: give one")

    def opened(split: str, holdout: float = data.holdout) -> Source:
        return load(
            name,
            split=split,
            train_split=data.train_split,
            data_dir=place,
            image_size=data.image_size,
            center_crop=data.center_crop,
            random_crop=data.random_crop if split == "train" else 1.0,
            holdout=holdout,
            max_unreadable=data.max_unreadable,
            write=write or place != data.data_dir or place is None,
        )

    try:
        # A name that the config gives is that of a stored split: alone, "train" and "validation" are parts of the data
        # to train on.
        return opened(split if named is None else named if "[" in named else f"{named}[:]")
    except NoSplit as error:
        if split != "test" or named:
            raise
        try:
            validation = opened("validation", holdout=0.0)
        except NoSplit:
            raise error from None
        if stored_name(parse(data.train_split).name) == "validation":
            raise error from None  # it is trained on
        say_once(f"{error}; the validation split is evaluated instead")
        return validation


def _check_there(name: str, data_dir: Path) -> None:
    """Raises `ConfigError` if a folder is named for a set that a package contains, and that is not in it."""
    if embedded.accepts(name, data_dir) and not embedded.holds(data_dir, name):
        raise ConfigError(
            f"--data-dir {data_dir} does not hold {name}, which comes with a package and needs no folder: leave the "
            "option out, or name the --data-dir of the training"
        )


def build(
    config: Config,
    source: Source,
    steps_per_epoch: int = 1,
    *,
    model: nn.Module | own.Factory | None = None,
    optimizer: Make | None = None,
) -> Network:
    """The network of a config for the images of a source.

    Args:
        config: what to train.
        source: any split: its image shape and classes count.
        steps_per_epoch: for the schedule of the learning rate.
        model: the network in place of the one that the config describes, or a factory of it.
        optimizer: makes the optimizer in place of the config's.

    Raises:
        ConfigError: network, augmentation and images do not fit together.
    """
    classes = source.num_classes
    network = make_model(config, classes) if model is None else own.make(model, classes)
    rate = config.schedule.make(config.optimizer.learning_rate, config.epochs, steps_per_epoch)
    transformation = config.optimizer.make(rate) if optimizer is None else optimizer(rate)
    try:
        shape = output_shape(config.augmentation, source.image_shape)
        init = partial(init_state, network, transformation, shape, config.seed, average=config.average > 0)
        shapes = jax.eval_shape(init)
        images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        logits = jax.eval_shape(partial(predict, network), shapes.params, shapes.batch_stats, images)
    except (ValueError, TypeError, FlaxError) as error:
        name = config.model.given or config.model.name
        raise ConfigError(f"{name} on {source.name}: {one_line(error)}") from error
    if logits.shape != (2, classes):
        name = config.model.given or config.model.name
        raise ConfigError(f"{name} must return logits [n, {classes}] of images [n, ...], got {list(logits.shape)}")
    if not jax.tree.leaves(shapes.params):
        raise ConfigError(f"{config.model.given or config.model.name} has no parameters to train")
    # It runs once: on a CPU, optimizing it takes longer than all the rest.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
    return Network(network, shapes, jax.jit(init, compiler_options=options), transformation, rate)


def make_model(config: Config, num_classes: int) -> nn.Module:
    """The network of a config.

    Raises:
        ConfigError: the network is not part of this program.
    """
    options = config.model
    if options.given:
        raise ConfigError(f"the network {options.given} of this run comes from a script: pass it there, as model=...")
    if own.is_own(options.name):
        raise ConfigError(
            f"the network {options.name} of this run is not part of this program, and a run folder may name anything: "
            "to import it, say --model.name again (from Python: model=...)"
        )
    try:
        network = create_model(
            options.name,
            num_classes=num_classes,
            width=options.width,
            norm="batch" if options.norm == "device-batch" else options.norm,
            activation=options.activation,
            dropout=options.dropout,
            stochastic_depth=options.stochastic_depth,
            dtype=jnp.dtype(options.dtype),
            axis_name=AXIS if options.norm != "device-batch" and config.parallel == "pmap" else None,
            remat=options.remat,
        )
    except ValueError as error:
        raise ConfigError(f"--model.name {options.name}: {error}") from error
    return Standardized(network, options.mean, options.std) if options.mean or options.std else network
