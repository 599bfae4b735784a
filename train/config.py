"""What a training is: frozen values, read from the command line, written into the run folder.

The docstring of a field is its help text, its annotation its range (`train.ranges`). `train.options` reads, checks
and compares configs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from annotated_types import Interval
from pydantic import Field

from train.data import Augmentation
from train.methods import AnyMethod
from train.methods.standard import Standard
from train.models import MODELS
from train.optimizers import AnyOptimizer, Sgd
from train.ranges import FREE, HIDDEN, Count, CountOrNone, Fraction, Positive, Seed
from train.schedules import AnySchedule, Cosine

if TYPE_CHECKING:
    ModelName = str
else:
    ModelName = Literal[tuple(MODELS)]

_KIND = Field(discriminator="name")


@dataclass(frozen=True)
class Data:
    """Which images."""

    name: str = "mnist5k"
    """`mnist5k` or `digits` (embedded), a prepared TFDS set by name (cifar10, ...),
    `folder:PATH` with train|test/<class>/*, or an .npz file."""
    data_dir: Annotated[str | None, tyro.conf.arg(prefix_name=False), FREE] = None
    """Where prepared data sets lie; by default $DEFORMREG_DATA, then the user's cache folder."""
    max_unreadable: Annotated[CountOrNone, FREE] = 0
    """Examples of a split that may be unreadable before the training stops:
    each is named and another takes its place in training; evaluation leaves it out. Per process and start."""
    holdout: Fraction = 0.0
    """Fraction of the training images, in [0, 1), kept aside as validation set."""
    image_size: Annotated[int, Interval(ge=1, le=4096)] | None = None
    """Side in pixels to which images of different sizes are resized when they are read."""
    given: Annotated[str, HIDDEN] = ""
    """The name of images that were passed to `fit`; they take the place of `name`."""


@dataclass(frozen=True)
class Model:
    """Which network."""

    name: ModelName = "small-cnn"
    """Architecture; VGG and ResNet in their CIFAR form."""
    given: Annotated[str, HIDDEN] = ""
    """The class of a network that was passed to `fit`; it takes the place of `name`."""
    width: Annotated[float, Interval(gt=0, le=16)] = 1.0
    """Multiplier of every channel count."""
    norm: Literal["batch", "device-batch", "group"] = "batch"
    """Normalization: batch normalization with statistics over the whole batch,
    or over each device's part of it (pmap only), or group normalization."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the network's arithmetic; parameters and penalty stay float32."""
    remat: Annotated[bool, FREE] = False
    """Recompute activations in the backward pass: less memory, more time;
    under a gradient penalty take --rule forward-over-reverse too.
    For accelerators: on a CPU the compiler merges what is computed twice."""


@dataclass(frozen=True)
class Evaluation:
    """The flow attacks that close a run: the released multi-step attack (zero start, sign steps of radius / steps, last
    iterate), and one of which any iterate counts."""

    radius: Positive = 0.675
    """Largest displacement per component in pixels; 0.675 is 0.05 normalized units at 28x28."""
    steps: Annotated[int, Interval(ge=1, le=10**5)] = 50
    """Gradient steps."""
    examples: CountOrNone = 0
    """Test images to attack, from the first; 0 for all."""
    batch_size: Annotated[int, Interval(ge=1, le=10**5)] = 250
    """Images attacked at a time."""


@dataclass(frozen=True)
class Config:
    """One training."""

    data: Data = field(default_factory=Data)
    augmentation: Augmentation = field(default_factory=Augmentation)
    model: Model = field(default_factory=Model)
    method: Annotated[AnyMethod, _KIND] = field(default_factory=Standard)
    optimizer: Annotated[AnyOptimizer, _KIND] = field(default_factory=Sgd)
    schedule: Annotated[AnySchedule, _KIND] = field(default_factory=Cosine)
    evaluation: Annotated[Evaluation, FREE] = field(default_factory=Evaluation)
    epochs: Annotated[int, Interval(ge=1, le=10**6)] = 10
    """Passes over the training images."""
    batch_size: Annotated[int, Interval(ge=1, le=10**6)] = 128
    """Images per step over all devices."""
    accumulate: Count = 1
    """Parts into which a step divides its batch, one after the other: less memory, the same loss, penalty and gradient.
    Batch normalization takes its statistics over one part; group normalization knows no difference."""
    seed: Seed = 0
    """Seed of parameters, order, augmentation and noise."""
    parallel: Annotated[Literal["pmap", "jit"], FREE] = "pmap"
    """Data parallelism over devices: replicated pmap, or jit over sharded batches."""
    devices: Annotated[int, Interval(ge=0, le=10**5), FREE] = 0
    """Devices to use; 0 for all."""
    select: Annotated[Literal["last", "best"], FREE] = "last"
    """Which checkpoint is evaluated: the last, or the one of best clean accuracy on the validation images.
    These are the images of `--data.holdout`, else the set's own validation split, else the test images.
    The released code selects the best on the test images."""
    checkpoint_every: Annotated[CountOrNone, FREE] = 0
    """Steps between checkpoints beside the one at the end of every epoch; 0 for none."""
    log_every: Annotated[Count, FREE] = 20
    """Steps between lines of the metric log; every checkpoint ends a line, too."""
    max_skipped: Annotated[CountOrNone, FREE] = 0
    """Batches that may be left out because their loss, gradient or parameters are not finite, over all starts.
    One more stops the training."""
