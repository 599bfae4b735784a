"""The training loop: reads batches, takes steps, writes metrics and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from train import checkpoints, checks, manifests, optimizers, overfitting, own, parallel, processes, runs, saving
from train.config import Config
from train.data import Source, device_prefetch, output_shape, places, train_batches
from train.data.kind import user_path
from train.errors import Preempted, say
from train.methods import Method
from train.methods.given import Given
from train.metrics import MetricLog
from train.models import advice
from train.optimizers import Make
from train.options import check, check_recipe, of_networks_here
from train.pace import Pace, forward_flops, peak
from train.progress import progress
from train.schedules import Step
from train.starting import Start
from train.state import State
from train.task import Splits, Task, prepare
from train.tracing import check_steps, traced
from train.validation import validate
from train.watch import Watch
from train.weights import start as weights


def fit(
    config: Config,
    folder: Path | str,
    *,
    method: Method | None = None,
    model: nn.Module | own.Factory | None = None,
    data: Splits | None = None,
    optimizer: Make | None = None,
    resume: bool = False,
    evaluated: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
    write_data: bool = True,
    profile: range = range(0),
) -> State:
    """Trains what a config describes in a run folder, or continues the run from its newest intact checkpoint.

    Args:
        config: what to train.
        folder: the run folder; it is created if need be.
        method: a training method of your own, used instead of the config's.
        model: a Flax Linen module, used instead of the config's and called as
            ``model.apply(variables, images, train=...)`` with images in [0, 1]; or a function that makes it, called
            with ``num_classes=...``. It returns logits and may have a ``batch_stats`` collection.
        data: training and validation images, used instead of the config's.
        optimizer: a function from the learning rate, a schedule, to an Optax transformation, for example
            ``optax.lion``; used instead of the config's optimizer, with the config's learning rate and schedule.
        resume: continue the run in that folder, or start it if there is none.
        evaluated: whether the run will be evaluated afterwards. If so, unusable test images raise an error before
            training.
        stop_requested: called before every step. Once it returns True in any process, all processes save and stop.
        write_data: whether embedded sets and decoded copies may be written into the config's `data_dir`; pass False if
            an untrusted run folder chose it.
        profile: the steps to trace into `profile` in the run folder, counted from 0.

    Returns:
        The trained state.

    Raises:
        ConfigError, DataError, RunError, CheckpointError: the config, data, run folder or checkpoint cannot be used.
        NonFiniteLoss: loss, gradient or parameters were not finite in more steps than `max_skipped`; earlier
            checkpoints remain.
        Preempted: a stop was requested; the last step is saved.
        StorageError: the run folder can no longer be written; earlier checkpoints remain.
    """
    folder, start = Path(folder), Start()
    checks.values(config, method, data, optimizer)
    config = check(_recorded(config, method, model, data, optimizer))
    begins = not (resume and runs.Run(folder).config.exists())
    if begins:
        check_recipe(config)
    config = located(config, folder, resume) if data is None else config
    runs.claim(folder, config, resume=resume)  # raises before the data are read if the folder cannot be used
    engine = parallel.make_engine(
        config.parallel, devices=config.devices, batch_size=config.batch_size, shard_state=config.shard_state
    )
    checks.batch_size(config, engine.devices)
    with start.waiting_for("data"):
        if resume and data is None:
            checks.validation(config, folder)
        task = prepare(
            config, evaluated=evaluated, method=method, model=model, data=data, optimizer=optimizer,
            write_data=write_data,
        )  # fmt: skip
        images, validation = task.splits
        contents = images.fingerprint
    if begins and method is None:
        checks.statistics(config, task.network.shapes)
    total = config.epochs * task.steps_per_epoch
    check_steps(profile, total)
    if jax.process_count() > 1:
        splits = {"training": contents, "validation": validation.fingerprint}
        asked = {"resume": resume, "evaluate": evaluated, "profile": profile}
        runs.check_alike(config, splits, manifests.kinds(task.network.shapes), asked)
    restored = None
    if not resume:  # before the folder is made: weights that cannot be used leave nothing behind
        with start.waiting_for("first weights"):
            state = _initial(config, task)
    run, changes = runs.hold(folder, config, resume=resume)
    runs.check_data(run, len(images), contents)
    if resume:
        with start.waiting_for("checkpoint"):
            restored = checkpoints.resume(run, task.network.shapes, config=config)
            state = restored.state if restored else _initial(config, task)
        if profile and profile.stop <= int(state.step) and processes.is_lead():
            say(f"--profile {profile.start}:{profile.stop}: these steps have been taken; nothing is traced")
    runs.create(run, config, len(images), contents)
    if processes.is_lead():
        announce(config, engine, task, restored, changes)
    log = MetricLog(run, after_step=int(state.step))
    try:
        with saving.open_writer(run, config) as writer, traced(run.profile, profile) as trace:
            return _train(config, task, engine, writer, log, engine.put_state(state), stop_requested, start, trace)
    finally:
        log.close()


def _recorded(
    config: Config,
    method: Method | None,
    model: nn.Module | own.Factory | None,
    data: Splits | None,
    optimizer: Make | None,
) -> Config:
    """The config, which names the values that were passed to `fit` in place of its own parts."""
    if config.init is not None:
        config = replace(config, init=os.path.abspath(user_path(config.init)))
    if method is not None:
        config = replace(config, method=Given(title=method.name))
    if model is not None and not own.is_own(config.model.name):
        given = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "a network")
        config = replace(config, model=replace(config.model, given=given))
    if data is not None:
        config = replace(config, data=replace(config.data, given=data.train.name))
    if optimizer is not None:
        title = getattr(optimizer, "__name__", type(optimizer).__name__)
        rate = config.optimizer.learning_rate
        config = replace(config, optimizer=optimizers.Given(title=title, learning_rate=rate))
    return config


def located(config: Config, folder: Path, resume: bool) -> Config:
    """The config with absolute paths to its data, which may have moved to `data_dir` since the run began.

    Args:
        config: what to train.
        folder: the run folder.
        resume: whether the run there is continued, if there is one.
    """
    data = config.data
    data_dir = None if data.data_dir is None else os.path.abspath(user_path(data.data_dir))
    name = places.absolute(data.name, None if data_dir is None else Path(data_dir))
    if resume and data_dir is not None and runs.Run(folder).config.exists():
        name = places.moved(name, data_dir) or name
    return replace(config, data=replace(data, name=name, data_dir=data_dir))


def _initial(config: Config, task: Task) -> State:
    """The state before the first step."""
    state = task.network.init()
    if config.init is None:
        return state
    state, matched = weights.start(state, task.network.optimizer, Path(config.init), config.model.name)
    if processes.is_lead():
        print(f"started from {config.init}: {len(matched.arrays)} arrays")
        for line in matched.lines():
            say(f"  {line}")
    return state


def announce(
    config: Config,
    engine: parallel.Engine,
    task: Task,
    restored: checkpoints.Restored | None,
    changes: list[str],
) -> None:
    """Prints what runs where, and what has changed since the run was last started."""
    where = f"{engine.devices} {jax.default_backend()} device{'s' * (engine.devices > 1)}"
    if jax.process_count() > 1:
        where += f" of {jax.process_count()} processes"
    text = f"training on {where} by {config.parallel}{', each with its part of the state' * config.shard_state}"
    if jax.tree.leaves(task.network.shapes.batch_stats) and engine.devices > 1:
        text += f", batch statistics {_statistics_over(config)}"
    total = config.epochs * task.steps_per_epoch
    for name in ("weight", "radius"):
        steps = getattr(config.method, f"{name}_ramp_steps", 0)
        end = steps + (getattr(config.method, "first_step", 0) if name == "weight" else 0)
        if steps and end >= total:
            say(f"--method.{name}-ramp-steps: the whole {name} comes at step {end}, and the training has {total} steps")
    if isinstance(config.schedule, Step) and max(config.schedule.decay_epochs, default=0) >= config.epochs:
        after = [epoch for epoch in config.schedule.decay_epochs if epoch >= config.epochs]
        say(f"--schedule.decay-epochs {' '.join(map(str, after))}: the training ends after {config.epochs} epochs")
    validation = task.splits.validation
    side = max(output_shape(config.augmentation, task.splits.train.image_shape)[:2])
    if config.model.given and (ignored := of_networks_here(config.model)):
        say(f"config.model: {', '.join(ignored)} without effect on the network that was passed as model=...")
    if not config.model.given and (better := advice(config.model.name, side)):
        say(better)
    print(f"{text}\nvalidating on {validation.name}: {len(validation)} images")
    if restored is None:
        return
    for step, reason in restored.skipped.items():
        say(f"skipped a damaged checkpoint, now damaged-{step}: {reason}")
    print(f"continuing after step {restored.step}")
    if changes:
        say("changed since (stored, current); hardware, versions and settings of JAX may change the last bits:")
    for line in changes:
        say(f"  {line}")


def _statistics_over(config: Config) -> str:
    """The devices whose images a batch normalization sees, in words."""
    if config.parallel == "pmap" and (own.is_own(config.model.name) or config.model.given):
        return "as the layers of your network say (of each alone, or with axis_name='data' over all of them)"
    return "of each alone" if config.model.norm == "device-batch" else "over all of them"


def _train(
    config: Config,
    task: Task,
    engine: parallel.Engine,
    writer: saving.Writer,
    log: MetricLog,
    state: State,
    stop_requested: Callable[[], bool],
    start: Start,
    trace: Callable[[int, Any], None],
) -> State:
    last = config.epochs * task.steps_per_epoch
    pace = Pace(config.batch_size, _share_of_peak(config, task, engine))
    compiled = start.first_call(engine.compile(task.step), pace.restart)
    watch = Watch(log, config, task.method, step=int(state.step), skipped=int(state.skipped), pace=pace)
    batches = device_batches(config, task.splits.train, engine, watch.step + watch.skipped, stop_requested)
    # No more images at once than a step has: --batch-size and --accumulate bound the memory of both.
    validation, at_once = task.splits.validation, config.batch_size // config.accumulate
    detector = overfitting.detector(
        task.method.watch, task.network, validation, engine, config.augmentation, at_once=at_once,
        before=log.values("attacked_accuracy"),
    )  # fmt: skip

    def is_due(step: int) -> bool:
        saves = config.checkpoint_every and step % config.checkpoint_every == 0
        return step > saved and bool(step % task.steps_per_epoch == 0 or saves or watch.stopping)

    saved, note = watch.step, ""
    with progress(task.method.name, "step", visible=processes.is_lead()) as show:
        show(saved, last)
        while saved < last:
            trace(watch.step, state)
            state, step_metrics = compiled(state, pace.next_of(batches))
            watch.push(step_metrics)
            show(watch.step, last, note=note)
            if not is_due(watch.step):
                continue
            watch.drain()
            if not is_due(watch.step):
                continue  # a step was skipped: the checkpoint is due after the next one
            saved, whole, accuracy = watch.step, engine.whole(state), None
            if saved % task.steps_per_epoch == 0:
                gathered = engine.gather(whole)
                accuracy = validate(
                    task.network.model, gathered, validation, engine, config.augmentation, at_once=at_once
                )
                values = {"validation_accuracy": accuracy, **detector(gathered)}
                del gathered
                log.write(saved, {**values, "seconds": watch.seconds})
                note = f"validation accuracy {accuracy:.1%}, loss {watch.loss:.3f}"
            writer.save(saved, whole, accuracy)
            if watch.stopping and saved < last:
                writer.finish()  # what is said to be saved is on the disk
                raise Preempted(f"saved step {saved} of {last}; --resume continues from there")
    return state


def _share_of_peak(config: Config, task: Task, engine: parallel.Engine) -> float | None:
    """The share of the devices' peak that one step per second would use, if their peak is known."""
    most = peak(jax.devices()[0])
    if most is None:
        return None
    shape = output_shape(config.augmentation, task.splits.train.image_shape)
    flops = forward_flops(task.network.model, task.network.shapes, shape)
    return flops and task.method.passes * flops * config.batch_size / (most * engine.devices)


def device_batches(
    config: Config,
    source: Source,
    engine: parallel.Engine,
    first: int,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Iterator[Any]:
    """The batches from number `first` on, in the form that the compiled step takes."""
    host = train_batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        first=first,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    share = engine.devices // jax.process_count()
    # `stop_requested` is called when a batch is used, not when it is read ahead. Both answers are already on the
    # devices.
    stop = {asked: engine.put_batch({"stop": np.full(share, asked, np.float32)}) for asked in (False, True)}
    for batch in device_prefetch(host, engine.feed):
        yield {**batch, **stop[stop_requested()]}
