"""Data: sources of labelled 8-bit images, batches of them, and augmentation inside the step."""

from train.data.augmentation import Augmentation, augment, center_view, example_keys, output_shape, to_float
from train.data.batches import device_prefetch, eval_batches, train_batches
from train.data.labels import Labels
from train.data.source import MEMORY_LIMIT, Source, hold_out, load, subset
from train.errors import DataError, NoSplit

__all__ = [
    "MEMORY_LIMIT",
    "Augmentation",
    "DataError",
    "Labels",
    "NoSplit",
    "Source",
    "augment",
    "center_view",
    "device_prefetch",
    "eval_batches",
    "example_keys",
    "hold_out",
    "load",
    "output_shape",
    "subset",
    "to_float",
    "train_batches",
]
