"""The training loop: batches in, steps, metrics and checkpoints out."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from train import checkpoints, logs, parallel, processes, rollbacks, runs
from train.config import Config, ConfigError
from train.data import (
    Augmentation,
    NoSplit,
    Source,
    center_view,
    device_prefetch,
    eval_batches,
    load,
    output_shape,
    train_batches,
)
from train.models import create_model
from train.optimizers import learning_rate, make_optimizer
from train.steps import State, init_state, make_step, predict


class NonFiniteLoss(processes.Stopped):
    """The loss became NaN or infinite; the message names the step.

    Args:
        message: one line.
        step: the step whose loss it was, from 1.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Network(NamedTuple):
    """A config's network and everything that trains it.

    Attributes:
        model: the Flax module.
        shapes: the state's shapes and types (``jax.ShapeDtypeStruct``s), all that restoring one needs.
        init: makes the state before the first step.
        step: the training step, not compiled; its metrics hold the learning rate as well.
    """

    model: nn.Module
    shapes: State
    init: Callable[[], State]
    step: Callable[..., Any]


class Task(NamedTuple):
    """A config made concrete.

    Attributes:
        train: training images.
        validation: held-out images, else the set's own validation split, else the test images.
        network: what is trained.
        steps_per_epoch: optimizer steps.
        skipped: numbers of the batches left out after rollbacks.
    """

    train: Source
    validation: Source
    network: Network
    steps_per_epoch: int
    skipped: tuple[int, ...] = ()


def prepare(config: Config, *, evaluated: bool = False) -> Task:
    """Opens the data and builds the network.

    Args:
        config: what to train.
        evaluated: whether the test images will be wanted; then they are looked at now, not after the training.

    Raises:
        DataError: the data cannot be used.
        ConfigError: network or batch do not fit the data.
    """
    train = open_split(config, "train")
    test = open_split(config, "test") if evaluated else None
    try:
        validation = open_split(config, "validation")
    except NoSplit:
        validation = test or open_split(config, "test")
    if config.batch_size > len(train):
        raise ConfigError(f"--batch-size must be at most {len(train)}, the training images, got {config.batch_size}")
    steps_per_epoch = len(train) // config.batch_size
    if config.epochs * steps_per_epoch >= 2**31:
        raise ConfigError(f"--epochs must be at most {2**31 // steps_per_epoch}: steps are counted in 32 bits")
    network = build(config, train, steps_per_epoch)
    for source in (validation, test or validation):
        _check_agreement(config, train, source)
    return Task(train, validation, network, steps_per_epoch)


def _check_agreement(config: Config, train: Source, other: Source) -> None:
    """Raises `ConfigError` if a network for the images of one source cannot take those of another."""
    try:
        ours, theirs = (output_shape(config.augmentation, source.image_shape) for source in (train, other))
    except ValueError as error:
        raise ConfigError(f"{other.name}: {error}") from error
    if ours != theirs:
        raise ConfigError(
            f"{other.name} has images of shape {theirs}, {train.name} of {ours}: make them alike, for example by "
            "--augmentation.resize"
        )


def open_split(config: Config, split: str, data_dir: str | None = None) -> Source:
    """A split of a config's data, which may have moved to `data_dir`.

    Raises:
        DataError: it cannot be used; a `NoSplit` if there is none.
    """
    data = config.data
    return load(
        data.name,
        split=split,
        data_dir=data_dir or data.data_dir,
        image_size=data.image_size,
        holdout=data.holdout,
        max_unreadable=data.max_corrupt,
    )


def build(config: Config, source: Source, steps_per_epoch: int = 1) -> Network:
    """The network of a config for the images of a source.

    Raises:
        ConfigError: network, augmentation and images do not fit together.
    """
    rate = learning_rate(config.optimizer, epochs=config.epochs, steps_per_epoch=steps_per_epoch)
    optimizer = make_optimizer(config.optimizer, rate)
    model = make_model(config, source.num_classes)
    try:
        init = partial(init_state, model, optimizer, output_shape(config.augmentation, source.image_shape), config.seed)
        shapes = jax.eval_shape(init)
    except ValueError as error:
        raise ConfigError(f"{config.model.name} on {source.name}: {error}") from error
    # It runs once: on a CPU, optimizing it takes longer than all the rest.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
    step = _with_rate(make_step(config, model, optimizer), rate)
    return Network(model, shapes, jax.jit(init, compiler_options=options), step)


def _with_rate(step: Callable[..., Any], rate: Callable[[Array], Any]) -> Callable[..., Any]:
    """A step whose metrics hold its learning rate: computed beside the step, nobody waits for it."""

    def rated_step(state: State, batch: dict[str, Array], **options: Any) -> tuple[State, dict[str, Array]]:
        after, metrics = step(state, batch, **options)
        return after, {**metrics, "learning_rate": jnp.asarray(rate(state.step), jnp.float32)}

    return rated_step


def make_model(config: Config, num_classes: int) -> nn.Module:
    """The network of a config."""
    mapped = config.parallel == "pmap" and config.model.synchronize
    return create_model(
        config.model.name,
        num_classes=num_classes,
        width=config.model.width,
        norm=config.model.norm,
        dtype=jnp.dtype(config.model.dtype),
        axis_name=parallel.AXIS if mapped else None,
        remat=config.model.remat,
    )


def fit(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    evaluated: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
) -> State:
    """Trains a config in a run folder, or continues it from its newest intact checkpoint.

    Args:
        config: what to train.
        folder: the run folder, created.
        resume: continue a run that is there.
        evaluated: whether the run will be evaluated; then test images that cannot be used are an error now.
        stop_requested: asked before every step; where it says yes in any process, all of them save and stop.

    Returns:
        The trained state.

    Raises:
        ConfigError, DataError, RunError, CheckpointError: something cannot be used; one line says what.
        NonFiniteLoss: the loss became NaN or infinite, once more than rollbacks are allowed; checkpoints from before
            remain.
        Preempted: a stop was requested; the last step is saved.
        StorageError: the run folder cannot be written any more; checkpoints from before remain.
    """
    if config.max_rollbacks and jax.process_count() > 1:
        raise ConfigError(f"--max-rollbacks needs a single process, got {jax.process_count()}: leave it out")
    while True:
        try:
            return _fit(config, folder, resume, evaluated, stop_requested)
        except NonFiniteLoss as error:
            skipped, resume = rollbacks.read(folder), True
            rollbacks.skip(folder, skipped, error.step - 1, error, config.max_rollbacks)


def _fit(
    config: Config,
    folder: Path,
    resume: bool,
    evaluated: bool,
    stop_requested: Callable[[], bool],
) -> State:
    """`fit` up to the first non-finite loss."""
    runs.claim(folder, config, resume=resume)  # says what is wrong before the data are read
    engine = parallel.make_engine(config.parallel, devices=config.devices, batch_size=config.batch_size)
    if config.batch_size % (engine.devices * config.accumulate):
        raise ConfigError(
            f"--batch-size must be a multiple of {engine.devices} devices times --accumulate {config.accumulate}, "
            f"got {config.batch_size}"
        )
    task = prepare(config, evaluated=evaluated)
    run, changes = runs.hold(folder, config, resume=resume)
    runs.check_data(run, len(task.train))
    task = task._replace(skipped=rollbacks.read(folder))
    restored = checkpoints.resume(run.checkpoints, task.network.shapes, config=config) if resume else None
    runs.create(run, config, len(task.train))
    if processes.is_lead():
        announce(config, engine, task.validation, restored, changes)
    state = restored.state if restored else task.network.init()
    log = logs.MetricLog(run, after_step=int(state.step))
    try:
        with checkpoints.open_writer(run, config) as writer:
            return _train(config, task, engine, writer, log, engine.put_state(state), stop_requested)
    finally:
        log.close()


def announce(
    config: Config,
    engine: parallel.Engine,
    validation: Source,
    restored: checkpoints.Restored | None,
    changes: list[str],
) -> None:
    """Says what runs where, and what is not as it was when the run was last continued."""
    where = f"{engine.devices} {jax.default_backend()} device{'s' * (engine.devices > 1)}"
    if jax.process_count() > 1:
        where += f" of {jax.process_count()} processes"
    text = f"training on {where} by {config.parallel}"
    if config.model.norm == "batch" and engine.devices > 1:
        synchronized = config.model.synchronize or config.parallel == "jit"
        text += f", batch statistics {'over all of them' if synchronized else 'of each alone'}"
    print(f"{text}\nvalidating on {validation.name}: {len(validation)} images")
    if restored is None:
        return
    for step, reason in restored.skipped.items():
        print(f"skipped a damaged checkpoint, now damaged-{step}: {reason}", file=sys.stderr)
    print(f"continuing after step {restored.step}")
    if changes:
        print("changed since (there, here); devices, processes and versions may change the last bits:", file=sys.stderr)
    for line in changes:
        print(f"  {line}", file=sys.stderr)


def _train(
    config: Config,
    task: Task,
    engine: parallel.Engine,
    writer: checkpoints.Writer,
    log: logs.MetricLog,
    state: State,
    stop_requested: Callable[[], bool],
) -> State:
    first, last = int(state.step), config.epochs * task.steps_per_epoch
    compiled = engine.compile(parallel.stoppable(task.network.step))
    share = engine.devices // jax.process_count()
    stop = {asked: engine.put_batch({"stop": np.full(share, asked, np.float32)}) for asked in (False, True)}
    count_right = jax.jit(correct, static_argnums=(0, 3))
    began = time.perf_counter() - log.seconds
    watch = _Watch(log, config.log_every, config.method.every, began)
    batches = device_batches(config, task, engine, first)
    hidden = not (processes.is_lead() and sys.stderr.isatty())
    progress = tqdm(total=last, initial=first, desc=f"{config.method.name}", unit="step", disable=hidden)
    for step in range(first + 1, last + 1):
        state, metrics = compiled(state, {**next(batches), **stop[stop_requested()]})
        watch.push(step, metrics)
        progress.update()
        epoch_ends = step % task.steps_per_epoch == 0
        due = epoch_ends or (config.checkpoint_every and step % config.checkpoint_every == 0)
        if not (due or watch.stopping):
            continue
        watch.drain()
        whole, accuracy = engine.whole(state), None
        if epoch_ends:
            accuracy = validate(config, task, engine, whole, count_right)
            log.write(step, {"validation_accuracy": accuracy, "seconds": time.perf_counter() - began})
            progress.set_postfix(accuracy=f"{accuracy:.3f}", loss=f"{watch.loss:.3f}")
        writer.save(step, whole, accuracy)
        if watch.stopping and step < last:
            raise processes.Preempted(f"saved step {step} of {last}; --resume continues from there")
    progress.close()
    return state


class _Watch:
    """Reads metrics a few steps late, so that the device never waits, and stops at the first non-finite loss.

    A line of the log is the mean over the steps since the last one (the penalty's, over those that took it); `drain`
    ends one too. So the log does not depend on where a run was killed: it goes on from a checkpoint, and before each
    of those there was a `drain`.
    """

    def __init__(self, log: logs.MetricLog, interval: int, every: int, began: float) -> None:
        self.log, self.interval, self.every, self.began = log, interval, every, began
        self.pending: deque[tuple[int, dict[str, Array]]] = deque()
        self.window: dict[int, dict[str, float]] = {}
        self.loss = math.nan
        self.stopping = False

    def push(self, step: int, metrics: dict[str, Array]) -> None:
        self.pending.append((step, metrics))
        while len(self.pending) > 2:
            self._read()

    def drain(self) -> None:
        while self.pending:
            self._read()
        self._write()

    def _read(self) -> None:
        step, metrics = self.pending.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        # The parameters too: a step of finite loss can leave some that no checkpoint must hold.
        if not all(math.isfinite(values[name]) for name in ("loss", "gradient_norm", "parameter_norm")):
            raise NonFiniteLoss(
                f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']}; the checkpoints from "
                "before are kept. Lower --optimizer.learning-rate or --method.weight, or allow --max-rollbacks",
                step,
            )
        self.stopping |= values.pop("stop") > 0
        self.loss = values["loss"]
        self.window[step] = values
        if step % self.interval == 0:
            self._write()

    def _write(self) -> None:
        if not self.window:
            return
        step, last = next(reversed(self.window.items()))
        means = {name: np.mean([values[name] for values in self.window.values()]).item() for name in last}
        penalties = [values["penalty"] for number, values in self.window.items() if (number - 1) % self.every == 0]
        if penalties:
            means["penalty"] = np.mean(penalties).item()
        else:
            del means["penalty"]
        seconds = time.perf_counter() - self.began
        self.log.write(step, {**means, "learning_rate": last["learning_rate"], "seconds": seconds})
        self.window.clear()


def device_batches(config: Config, task: Task, engine: parallel.Engine, first: int) -> Iterator[Any]:
    """The batches of the steps from `first` on, counted from 0, as the compiled step takes them."""
    host = train_batches(
        task.train,
        batch_size=config.batch_size,
        seed=config.seed,
        first=first,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return device_prefetch(host, engine.feed)


def correct(model: nn.Module, state: State, batch: dict[str, Array], options: Augmentation) -> Array:
    """How many valid examples of a batch are classified right, clean, and how many there are: ``int[2]``."""
    logits = predict(model, state.params, state.batch_stats, center_view(batch["image"], options))
    right = (jnp.argmax(logits, axis=-1) == batch["label"]) & batch["valid"]
    return jnp.stack([jnp.sum(right), jnp.sum(batch["valid"])])


def validate(
    config: Config, task: Task, engine: parallel.Engine, state: State, count_right: Callable[..., Array]
) -> float:
    """Clean accuracy on the validation images that can be read, divided over the devices of all processes."""
    size = min(len(task.validation), 500)
    batches = eval_batches(
        task.validation,
        batch_size=-(-size // engine.devices) * engine.devices,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    counts = [count_right(task.network.model, state, engine.divide(batch), config.augmentation) for batch in batches]
    right, examples = np.sum([np.asarray(count) for count in counts], axis=0)
    return float(right) / float(examples)
