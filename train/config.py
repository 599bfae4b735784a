"""The config of a run: frozen values, read from the command line, written into the run folder.

The docstring of a field is its help text, and its annotation holds its range (`train.ranges`). `train.options` reads,
checks and compares configs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from annotated_types import Interval
from pydantic import Field

from train.data import Augmentation, Labels
from train.methods import AnyMethod
from train.methods.standard import Standard
from train.models import MODELS
from train.optimizers import AnyOptimizer, Sgd
from train.ranges import FREE, HIDDEN, Count, CountOrNone, Fraction, Positive, Seed, Share
from train.schedules import AnySchedule, Cosine

if TYPE_CHECKING:
    ModelName = str
else:
    ModelName = Literal[tuple(MODELS)]

_NAMES = "{" + ",".join(MODELS) + ",package.module:factory}"
_KIND = Field(discriminator="name")


@dataclass(frozen=True)
class Data:
    """Which images."""

    name: str = "mnist5k"
    """`mnist5k` or `digits` (no download), the name of a prepared TFDS set (cifar10, ...),
    `folder:PATH` with train|test/<class>/*, or an .npz file with the arrays train_images (uint8[n, h, w] or
    [n, h, w, c]), train_labels (integers from 0), test_images and test_labels."""
    data_dir: Annotated[str | None, tyro.conf.arg(prefix_name=False), FREE] = None
    """The folder of prepared data sets.
    By default $DEFORMREG_DATA, or else ~/.cache/deformreg/data, and after that TFDS's own folder."""
    max_unreadable: Annotated[CountOrNone, FREE] = 0
    """How many unreadable examples of a split to tolerate, per process and start.
    Each is named. In training another one takes its place; evaluation leaves it out."""
    train_split: str = "train"
    """The split to train on, or a part of it: train[:98%], train[:-5000]."""
    validation_split: str | None = None
    """The split to validate on, or a part of one such as train[98%:].
    By default the images of `--data.holdout`, else the set's own validation split, else the test images."""
    test_split: Annotated[str | None, FREE] = None
    """The split to evaluate on, or a part of one.
    By default the set's test split; if there is none, or it has no labels, its validation split."""
    holdout: Fraction = 0.0
    """Fraction of the training images, in [0, 1), that becomes the validation set."""
    image_size: Annotated[int, Interval(ge=1, le=4096)] | None = None
    """Height and width, in pixels, to which images are resized when they are read; needed if their sizes differ."""
    center_crop: Share | None = None
    """Cuts the square in the centre of every image, then resizes it to `image_size`: the square's side as a share of
    the image's shorter side. 0.875 is ImageNet's evaluation (resize to 256, crop of 224).
    By default the whole image is stretched."""
    random_crop: Share = 1.0
    """Smallest share of an image file's area that a random crop shows in training, of an aspect ratio from 3/4 to 4/3,
    resized to `image_size`; 1 for no such crop. ImageNet's recipe takes 0.08.
    It is cut when the file is decoded, and so sharper than the crops of `--augmentation.min-area`."""
    given: Annotated[str, HIDDEN] = ""
    """The name of images that were passed to `fit`; they take the place of `name`."""


@dataclass(frozen=True)
class Model:
    """Which network."""

    name: Annotated[str, tyro.conf.arg(metavar=_NAMES)] = "small-cnn"
    """Architecture. VGG and residual networks are in their CIFAR form, those for ImageNet say so.
    `package.module:factory` is a network of your own: factory(num_classes=...) returns a Flax Linen module."""
    given: Annotated[str, HIDDEN] = ""
    """The class of a network that was passed to `fit`; it takes the place of `name`."""
    width: Annotated[float, Interval(gt=0, le=16)] = 1.0
    """Multiplier of every channel count."""
    mean: tuple[Annotated[float, Interval(ge=-1e6, le=1e6)], ...] = ()
    """Mean of every channel, which the network subtracts from images in [0, 1]; none for 0."""
    std: tuple[Positive, ...] = ()
    """Standard deviation of every channel, by which the network divides; none for 1."""
    norm: Literal["batch", "device-batch", "group"] | None = None
    """Normalization: batch normalization with statistics over the whole batch,
    or over each device's part of it (pmap only), or group normalization.
    By default the network's own."""
    activation: Literal["relu", "gelu", "silu", "softplus"] | None = None
    """Nonlinearity. By default the network's own."""
    dropout: Fraction = 0.0
    """Probability, in [0, 1), with which a feature before the last linear layer is dropped in training."""
    stochastic_depth: Fraction = 0.0
    """Probability, in [0, 1), with which the last residual branch is dropped in training.
    It grows linearly from 0 at the first branch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the network's arithmetic; parameters and penalty stay float32."""
    remat: Annotated[bool, FREE] = False
    """Recompute activations in the backward pass: less memory, more time;
    with a gradient penalty, add --rule forward-over-reverse.
    It helps on accelerators only: on CPUs the compiler merges the recomputation with the first computation."""


@dataclass(frozen=True)
class Evaluation:
    """The flow attacks at the end of `fit`: the multi-step attack of the released code (from zero, sign steps of
    radius / steps, last iterate), and one of 15 steps of which any iterate counts."""

    radius: Positive = 0.675
    """Largest displacement per component in pixels; 0.675 is 0.05 normalized units at 28x28."""
    steps: Annotated[int, Interval(ge=1, le=10**5)] = 50
    """Gradient steps."""
    examples: CountOrNone = 0
    """Test images to attack; 0 for all. They are a random sample with every class in its proportion;
    of a set that is stored in random order, as TFDS stores sets, they are the first."""
    batch_size: Annotated[int, Interval(ge=1, le=10**5)] = 250
    """Images per batch of the attack."""


@dataclass(frozen=True)
class Config:
    """One training."""

    data: Data = field(default_factory=Data)
    augmentation: Augmentation = field(default_factory=Augmentation)
    labels: Labels = field(default_factory=Labels)
    model: Model = field(default_factory=Model)
    method: Annotated[AnyMethod, _KIND] = field(default_factory=Standard)
    optimizer: Annotated[AnyOptimizer, _KIND] = field(default_factory=Sgd)
    schedule: Annotated[AnySchedule, _KIND] = field(default_factory=Cosine)
    evaluation: Annotated[Evaluation, FREE] = field(default_factory=Evaluation)
    init: str | None = None
    """Start from the weights of a run folder, or of a .safetensors file in this program's or PyTorch's layout.
    A head for another number of classes is left out, and what does not fit is listed."""
    epochs: Annotated[int, Interval(ge=1, le=10**6)] = 10
    """How often training goes through all training images."""
    batch_size: Annotated[int, Interval(ge=1, le=10**6)] = 128
    """Images per step over all devices."""
    accumulate: Count = 1
    """Parts into which a step divides its batch, one after the other, to save memory.
    Loss, penalty and gradient stay the same, but batch normalization takes its statistics over one part."""
    average: Fraction = 0.0
    """Decay per step, in [0, 1), of a moving average of weights and batch statistics, for example 0.999; 0 for none.
    The average is validated and evaluated instead of the weights; checkpoints hold both.
    In the first steps the decay is smaller, at most (1 + step) / (10 + step)."""
    seed: Seed = 0
    """Seed of the parameters, the order of examples, augmentation and noise."""
    parallel: Annotated[Literal["pmap", "jit"], FREE] = "pmap"
    """How steps are spread over devices: pmap with replicated parameters, or jit over sharded batches."""
    shard_state: Annotated[bool, FREE] = False
    """Shard parameters, optimizer state and their averages over the devices, which also write them in parts;
    --parallel jit only. Less memory per device, and the same results up to rounding."""
    devices: Annotated[int, Interval(ge=0, le=10**5), FREE] = 0
    """Number of devices to use; 0 for all."""
    select: Annotated[Literal["last", "best"], FREE] = "last"
    """Which checkpoint is evaluated: the last, or the one of best clean accuracy on the validation images.
    These are the images of `--data.holdout`, else the set's own validation split, else the test images.
    The released code selects the best on the test images."""
    checkpoint_every: Annotated[CountOrNone, FREE] = 0
    """Also write a checkpoint every so many steps, not only at the end of every epoch; 0 for only at the end."""
    log_every: Annotated[Count, FREE] = 20
    """Steps per line of the metric log; a checkpoint also ends a line."""
    max_skipped: Annotated[CountOrNone, FREE] = 0
    """Largest number of batches to skip because loss, gradient or parameters are not finite, over all starts of the
    run. One more stops training."""
