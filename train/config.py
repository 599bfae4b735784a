"""What a training run is: frozen values, read from the command line, written into the run folder.

Attribute docstrings are the command line's help. A config is data: `from_json` checks every field and never executes
anything.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from train.data.augmentation import Augmentation

try:
    import tyro

    _WITHOUT_PREFIX: Any = tyro.conf.arg(prefix_name=False)
except ImportError:  # The command line needs tyro; a config is data and does not.
    _WITHOUT_PREFIX = None

MethodName = Literal[
    "standard",
    "input-gradient",
    "flow-gradient",
    "adversarial",
    "deformation",
    "flow-gradient+deformation",
    "spatial",
]


_MAX_FILE = 2**20  # bytes


class ConfigError(ValueError):
    """A config that cannot be used; the message is one line with the culprit and the remedy."""


@dataclass(frozen=True)
class Data:
    """Which images."""

    name: str = "mnist5k"
    """`mnist5k` or `digits` (embedded), a prepared TFDS set by name (cifar10, ...), `folder:PATH` with
    train|test/<class>/*, or an .npz file."""
    data_dir: Annotated[str | None, _WITHOUT_PREFIX] = None
    """Where prepared data sets lie; by default $DEFORMREG_DATA, then the user's cache folder."""
    max_corrupt: int = 0
    """Examples of a split that may be unreadable before the run stops: each is named and another takes its place in
    training; evaluation leaves it out. Per process and start."""
    holdout: float = 0.0
    """Fraction of the training images, in [0, 1), kept aside as validation set."""
    image_size: int | None = None
    """Side in pixels to which images of different sizes are resized when they are read."""


@dataclass(frozen=True)
class Model:
    """Which network."""

    name: Literal["small-cnn", "vgg-11", "vgg-13", "vgg-16", "vgg-19", "resnet-18"] = "small-cnn"
    """Architecture; VGG and ResNet in their CIFAR form."""
    width: float = 1.0
    """Multiplier of every channel count."""
    norm: Literal["batch", "group"] = "batch"
    """Normalization layer."""
    synchronize: bool = True
    """Batch statistics over all devices (pmap only; sharded jit always does that)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the network's arithmetic; parameters and penalty stay float32."""
    remat: bool = False
    """Recompute activations in the backward pass, under the exact penalty too: less memory, more time. For
    accelerators: on a CPU the compiler merges what is computed twice."""


@dataclass(frozen=True)
class Method:
    """How the network is made robust."""

    name: MethodName = "standard"
    """standard; input-gradient or flow-gradient (a penalty); adversarial (PGD on pixels); deformation (PGD on flows);
    flow-gradient+deformation (the penalty on deformed images); spatial (the worst of random rotations and
    translations)."""
    weight: float = 0.0
    """Weight of the mean penalty, in pixels squared (flow) or image units squared (input) per unit of the loss."""
    penalty: Literal["exact", "finite-difference"] = "exact"
    """Double backpropagation, or a finite difference along each example's own gradient."""
    difference: float = 0.01
    """Step of the finite difference, in the Euclidean norm over a whole example: pixels (flow) or image units."""
    every: int = 1
    """Take the penalty on every k-th step only, with k times the weight."""
    random_start: float = 0.0
    """Standard deviation of a random deformation before the flow penalty, in pixels (0.155 is the paper's 0.01
    normalized units at 32x32); with the method standard, training on images under Gaussian flow noise, which is what
    certified flows need; 0 for none."""
    statistics: Literal["batch", "running"] = "batch"
    """Batch-normalization statistics seen by penalties and attacks: the batch's (as the released code; examples then
    interact) or the running ones (a true per-image penalty, one more forward pass)."""
    radius: float = 0.0
    """Budget of the training attack per component: pixels (deformation; spatial: of the translation) or image units in
    [0, 1] (adversarial)."""
    steps: int = 7
    """Gradient steps of the training attack."""
    step_size: float = 0.0
    """Step of the training attack, in the budget's unit; 0 is 2.5 * radius / steps."""
    degrees: float = 30.0
    """Largest rotation of spatial training, either way."""
    draws: int = 10
    """Random rotations with translations per image, of which spatial training takes the one of highest loss."""


@dataclass(frozen=True)
class Optimizer:
    """SGD with momentum."""

    learning_rate: float = 0.01
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum, in [0, 1)."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: float = 5e-4
    """Added to the gradient times the parameters, as PyTorch's SGD does; on every parameter."""
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    """How the learning rate falls over the run."""
    decay_epochs: tuple[int, ...] = ()
    """Epochs after which the step schedule multiplies the rate by `decay_factor`."""
    decay_factor: float = 0.1
    """Factor of the step schedule."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from zero."""


@dataclass(frozen=True)
class Evaluation:
    """The multi-step flow attack that closes a run: zero start, sign steps of radius / steps, last iterate."""

    radius: float = 0.675
    """Largest displacement per component in pixels; 0.675 is 0.05 normalized units at 28x28."""
    steps: int = 50
    """Gradient steps."""
    examples: int = 0
    """Test images to attack, from the first; 0 for all."""
    batch_size: int = 250
    """Images attacked at a time."""


@dataclass(frozen=True)
class Config:
    """One training run."""

    data: Data = field(default_factory=Data)
    augmentation: Augmentation = field(default_factory=Augmentation)
    model: Model = field(default_factory=Model)
    method: Method = field(default_factory=Method)
    optimizer: Optimizer = field(default_factory=Optimizer)
    evaluation: Evaluation = field(default_factory=Evaluation)
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step over all devices."""
    accumulate: int = 1
    """Micro-batches into which a step divides its batch, one after the other: less memory, the same loss, penalty and
    gradient. Batch normalization takes its statistics over one micro-batch; group normalization knows no difference."""
    seed: int = 0
    """Seed of parameters, order, augmentation and noise."""
    parallel: Literal["pmap", "jit"] = "pmap"
    """Data parallelism over devices: replicated pmap, or jit over sharded batches."""
    devices: int = 0
    """Devices to use; 0 for all."""
    select: Literal["last", "best"] = "last"
    """Which checkpoint is evaluated: the last, or the one of best clean validation accuracy (the released code's
    choice). Validation images are those of `--data.holdout`, else the set's own validation split, else the test images,
    on which that code selects."""
    checkpoint_every: int = 0
    """Steps between checkpoints beside the one at the end of every epoch; 0 for none."""
    log_every: int = 20
    """Steps between lines of the metric log; every checkpoint ends a line, too."""
    max_rollbacks: int = 0
    """How often a NaN or infinite loss may send the run back to its last checkpoint, to go on without that batch;
    counted over all starts of the run."""


# Beyond these a number is a slip, or a stranger's: memory or time without end, or an overflow far from its cause.
_LARGEST = {
    "--epochs": 10**6,
    "--batch-size": 10**6,
    "--seed": 2**32 - 1,
    "--devices": 10**5,
    "--data.image-size": 4096,
    "--augmentation.resize": 4096,
    "--augmentation.crop": 4096,
    "--augmentation.shift": 512,
    "--method.steps": 10**4,
    "--optimizer.decay-epochs": 10**6,
    "--evaluation.steps": 10**5,
    "--evaluation.batch-size": 10**5,
}


def check(config: Config) -> Config:
    """Returns a config whose numbers make sense, or raises a `ConfigError` that names the option."""
    method, optimizer = config.method, config.optimizer
    for name, value in _numbers(dataclasses.asdict(config), "--"):
        if value != value or abs(value) == math.inf:
            raise ConfigError(f"{name} must be a finite number, got {value}")
    rules = [
        (config.epochs >= 1, "--epochs", config.epochs, "at least 1"),
        (config.batch_size >= 1, "--batch-size", config.batch_size, "at least 1"),
        (config.accumulate >= 1, "--accumulate", config.accumulate, "at least 1"),
        (config.seed >= 0, "--seed", config.seed, "at least 0"),
        (config.max_rollbacks >= 0, "--max-rollbacks", config.max_rollbacks, "at least 0"),
        (config.data.max_corrupt >= 0, "--data.max-corrupt", config.data.max_corrupt, "at least 0"),
        (
            config.data.image_size is None or config.data.image_size >= 1,
            "--data.image-size",
            config.data.image_size,
            "at least 1",
        ),
        (config.augmentation.resize >= 0, "--augmentation.resize", config.augmentation.resize, "at least 0"),
        (config.augmentation.crop >= 0, "--augmentation.crop", config.augmentation.crop, "at least 0"),
        (config.augmentation.shift >= 0, "--augmentation.shift", config.augmentation.shift, "at least 0"),
        (config.devices >= 0, "--devices", config.devices, "at least 0"),
        (config.log_every >= 1, "--log-every", config.log_every, "at least 1"),
        (config.checkpoint_every >= 0, "--checkpoint-every", config.checkpoint_every, "at least 0"),
        (0 <= config.data.holdout < 1, "--data.holdout", config.data.holdout, "in [0, 1)"),
        (0 < config.model.width <= 16, "--model.width", config.model.width, "above 0 and at most 16"),
        (method.weight >= 0, "--method.weight", method.weight, "at least 0"),
        (method.every >= 1, "--method.every", method.every, "at least 1"),
        (method.difference > 0, "--method.difference", method.difference, "above 0"),
        (method.random_start >= 0, "--method.random-start", method.random_start, "at least 0"),
        (method.radius >= 0, "--method.radius", method.radius, "at least 0"),
        (method.step_size >= 0, "--method.step-size", method.step_size, "at least 0"),
        (method.steps >= 1, "--method.steps", method.steps, "at least 1"),
        (method.degrees >= 0, "--method.degrees", method.degrees, "at least 0"),
        (method.draws >= 1, "--method.draws", method.draws, "at least 1"),
        (
            optimizer.learning_rate > 0,
            "--optimizer.learning-rate",
            optimizer.learning_rate,
            "above 0",
        ),
        (0 <= optimizer.momentum < 1, "--optimizer.momentum", optimizer.momentum, "in [0, 1)"),
        (
            optimizer.weight_decay >= 0,
            "--optimizer.weight-decay",
            optimizer.weight_decay,
            "at least 0",
        ),
        (
            config.evaluation.radius > 0,
            "--evaluation.radius",
            config.evaluation.radius,
            "above 0",
        ),
        (config.evaluation.steps >= 1, "--evaluation.steps", config.evaluation.steps, "at least 1"),
        (
            config.evaluation.examples >= 0,
            "--evaluation.examples",
            config.evaluation.examples,
            "at least 0",
        ),
        (
            config.evaluation.batch_size >= 1,
            "--evaluation.batch-size",
            config.evaluation.batch_size,
            "at least 1",
        ),
    ]
    warmup = optimizer.warmup_epochs
    rules.append((0 <= warmup <= config.epochs, "--optimizer.warmup-epochs", warmup, "in 0..--epochs"))
    rules.append((0 < optimizer.decay_factor <= 1, "--optimizer.decay-factor", optimizer.decay_factor, "in (0, 1]"))
    decays = optimizer.decay_epochs
    rules.append((all(epoch >= 1 for epoch in decays), "--optimizer.decay-epochs", decays, "at least 1 each"))
    for holds, option, value, expected in rules:
        if not holds:
            raise ConfigError(f"{option} must be {expected}, got {value!s:.40}")
    for name, value in _numbers(dataclasses.asdict(config), "--"):
        if value > _LARGEST.get(name, 10**9):
            raise ConfigError(f"{name} must be at most {_LARGEST.get(name, 10**9)}, got {value!s:.40}")
    if config.batch_size % config.accumulate:
        raise ConfigError(f"--accumulate must divide --batch-size {config.batch_size}, got {config.accumulate}")
    if config.model.dtype != "float32" and method.penalty == "finite-difference" and "gradient" in method.name:
        # Measured: its gradient points elsewhere (cosine 0.28), the step drowns in the rounding of the images.
        raise ConfigError(f"--method.penalty finite-difference needs --model.dtype float32, got {config.model.dtype}")
    if "gradient" in method.name and method.weight == 0:
        raise ConfigError(f"--method.weight must be above 0 for the method {method.name}, got 0")
    if method.name in (*_ATTACKED, "spatial") and method.radius == 0:
        raise ConfigError(f"--method.radius must be above 0 for the method {method.name}, got 0")
    if method.random_start and not (method.name == "standard" or method.name.startswith("flow-gradient")):
        raise ConfigError(
            f"--method.random-start belongs to standard and the flow-gradient methods, not to {method.name}"
        )
    return config


_ATTACKED = ("adversarial", "deformation", "flow-gradient+deformation")

# Which configs read an option that others do not.
_READ = {
    "method.weight": lambda config: "gradient" in config.method.name,
    "method.penalty": lambda config: "gradient" in config.method.name,
    "method.every": lambda config: "gradient" in config.method.name,
    "method.difference": lambda config: config.method.penalty == "finite-difference",
    "method.statistics": lambda config: config.method.name != "standard",
    "method.radius": lambda config: config.method.name in (*_ATTACKED, "spatial"),
    "method.steps": lambda config: config.method.name in _ATTACKED,
    "method.step_size": lambda config: config.method.name in _ATTACKED,
    "method.degrees": lambda config: config.method.name == "spatial",
    "method.draws": lambda config: config.method.name == "spatial",
    "optimizer.nesterov": lambda config: config.optimizer.momentum > 0,
    "optimizer.decay_epochs": lambda config: config.optimizer.schedule == "step",
    "optimizer.decay_factor": lambda config: config.optimizer.schedule == "step",
    "model.synchronize": lambda config: config.model.norm == "batch" and config.parallel == "pmap",
}


def check_effect(config: Config, default: Config) -> None:
    """Raises a `ConfigError` if an option was changed from its default but is read by nothing in this config."""
    for name in (line.partition(":")[0] for line in differences(default, config)):
        if name in _READ and not _READ[name](config):
            option = name.replace("_", "-")
            because = {
                "method": f"the method {config.method.name}",
                "optimizer": f"the schedule {config.optimizer.schedule} and momentum {config.optimizer.momentum}",
                "model": f"{config.model.norm} normalization under {config.parallel}",
            }[name.partition(".")[0]]
            raise ConfigError(f"--{option} has no effect with {because}: leave it out")


def _numbers(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in tree.items():
        option = f"{prefix}{name.replace('_', '-')}"
        if isinstance(value, dict):
            yield from _numbers(value, f"{option}.")
        else:
            numbers = value if isinstance(value, tuple) else (value,)
            yield from ((option, number) for number in numbers if isinstance(number, (int, float)))


def to_json(config: Config) -> str:
    """The config as JSON text, fields in order."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Reads what `to_json` wrote.

    Raises:
        ConfigError: not JSON, an unknown field (with the nearest known one), or a value of the wrong type.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:  # long numbers and deep nesting, beside what is no JSON
        raise ConfigError(f"the config is not JSON: {error}") from error
    return check(_build(Config, tree, ""))


def from_file(path: Path) -> Config:
    """`from_json` of a file.

    Raises:
        ConfigError: as `from_json`, or it is no text of a config's size; the message names the file.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_FILE:
            raise ConfigError(f"{size} bytes are over the limit of {_MAX_FILE}")
        return from_json(path.read_text(encoding="utf-8"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def differences(ours: Config, theirs: Config) -> list[str]:
    """The fields in which two configs differ, as ``name: ours, theirs``."""
    return _compare(dataclasses.asdict(ours), dataclasses.asdict(theirs), "")


def _compare(ours: Any, theirs: Any, path: str) -> list[str]:
    if isinstance(ours, dict):
        return [line for name in ours for line in _compare(ours[name], theirs[name], f"{path}.{name}".lstrip("."))]
    return [] if ours == theirs else [f"{path}: {ours!r}, {theirs!r}"]


def _build(kind: Any, value: Any, path: str) -> Any:
    """A value of the annotated type from parsed JSON; never coerces, never calls what the text names."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"the config's {path.rstrip('.') or 'root'} must be an object, got {value!r:.80}")
        hints = typing.get_type_hints(kind)
        for name in value:
            if name not in hints:
                near = difflib.get_close_matches(name, hints, 1)
                raise ConfigError(f"the config has no field {path + name!r:.80}" + (f": {near[0]}?" if near else ""))
        return kind(**{name: _build(hints[name], item, f"{path}{name}.") for name, item in value.items()})
    if _fits(kind, value):
        return tuple(value) if isinstance(value, list) else value
    raise ConfigError(f"the config's {path.rstrip('.')} must be of type {kind}, got {value!r:.80}")


def _fits(kind: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(option, value) for option in arguments)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(arguments[0], item) for item in value)
    if kind is float:
        # Not an integer beyond all floats: it would overflow far from here.
        limit = sys.float_info.max
        return isinstance(value, (int, float)) and not isinstance(value, bool) and -limit <= value <= limit
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
