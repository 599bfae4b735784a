"""Data: sources of labelled 8-bit images, batches of them, and augmentation inside the step."""

from train.data.augment import (
    Augmentation,
    augment,
    center_view,
    example_keys,
    output_shape,
    to_float,
)
from train.data.errors import DataError, NoSplit
from train.data.order import batch_number
from train.data.pipeline import device_prefetch, eval_batches, train_batches
from train.data.sources import MEMORY_LIMIT, Source, hold_out, load

__all__ = [
    "MEMORY_LIMIT",
    "Augmentation",
    "DataError",
    "NoSplit",
    "Source",
    "augment",
    "batch_number",
    "center_view",
    "device_prefetch",
    "eval_batches",
    "example_keys",
    "hold_out",
    "load",
    "output_shape",
    "to_float",
    "train_batches",
]
