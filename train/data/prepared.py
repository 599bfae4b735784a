"""Image classification sets that TFDS prepared, read by name and without TensorFlow."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.data.decoded import facts, fingerprint
from train.data.decoding import DECODER, MAX_PIXELS, decode_image, image_header
from train.data.kind import (
    MAX_CLASSES,
    Kind,
    Records,
    Request,
    Shape,
    default_data_dir,
    no_split,
    not_now,
    require,
    stored_split,
    user_path,
)
from train.data.metadata import check_metadata, check_shards
from train.data.unreadable import check_labelled
from train.data.view import View
from train.errors import DataError, one_line
from train.files import may_be_intact

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")


def accepts(name: str, data_dir: Path | None) -> bool:
    """Whether a set of that name, ``NAME[/CONFIG][:VERSION]``, is prepared in one of the folders."""
    return _NAME.fullmatch(name) is not None and any(_versions(root, name) for root in _roots(data_dir))


def usual(name: str) -> Path:
    """The first of the usual folders in which a set of that name is prepared, or of all if it is in none."""
    return next((root for root in _roots(None) if _versions(root, name)), default_data_dir())


def open_split(request: Request) -> Records:
    """Opens one split of the newest, or named, version of a prepared set.

    Raises:
        DataError: not prepared, damaged, of the wrong kind, or without that split.
    """
    name = request.name
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r} is not a data set's name, an existing folder or an .npz file")
    remedy = (
        "prepare it where TensorFlow is installed, with `tfds build "
        f"{name.partition(':')[0]} --file_format=array_record --data_dir DIR`, and copy DIR here"
    )
    for root in _roots(request.data_dir):
        if versions := _versions(root, name):
            return open_folder(request, versions[-1], remedy)
    looked = " and ".join(str(root) for root in _roots(request.data_dir))
    raise DataError(
        f"data set {name!r} is not prepared: looked in {looked}; {remedy}; mnist5k and digits need no preparation"
    )


KIND = Kind(accepts, open_split)


def open_folder(request: Request, folder: Path, remedy: str) -> Records:
    """Opens one split of the set in a folder, with the features ``image`` and ``label``.

    Args:
        request: the split.
        folder: of one version, ``.../NAME[/CONFIG]/VERSION``.
        remedy: ends the errors about a damaged folder.

    Raises:
        DataError: damaged, of the wrong kind, or without that split.
    """
    stored, size, info, examples = _open_examples(request, folder, remedy)
    features = info.features
    height, width, channels = features["image"].shape
    split = _Split(
        f"{folder}, split {request.split}", remedy, size, examples, (height, width, channels or 3), request.view
    )
    split.check_labelled()
    files = [*sorted(folder.glob(f"*-{stored}.*")), folder / "dataset_info.json"]
    made_by = [DECODER] if request.view.size else []
    key = fingerprint([channels or 3, *((file.name, *facts(file.stat())) for file in files), *made_by])
    return Records(
        name=f"{request.name}, split {request.split}",
        size=size,
        class_names=tuple(features["label"].names),
        probe=split.probe,
        decode=split.decode,
        copy=folder / "decoded" / f"{request.split}-{request.view.label}-{key}",
        labels=split.labels,
        shuffled=not info.disable_shuffling,
    )


@dataclass(frozen=True)
class _Split:
    """One split, with random access to its encoded examples.

    Attributes:
        where: names it in errors.
        remedy: ends the error that no image can be decoded.
        size: the number of examples.
        examples: TFDS's data source.
        shape: of all images; None where heights or widths differ.
        view: the part of images that is shown.
    """

    where: str
    remedy: str
    size: int
    examples: Any
    shape: tuple[int | None, int | None, int]
    view: View

    def read(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Reads records: the encoded image and the label."""
        try:
            return list(self.examples.__getitems__(indices.tolist()))
        except Exception as error:
            what = f"{self.where}: records {indices[0]}..{indices[-1]}"
            if may_be_intact(_of_system(error)):
                raise not_now(what, error) from error
            raise DataError(f"{what} cannot be read ({one_line(error)}); copy or prepare the set again") from error

    def check_labelled(self) -> None:
        """Raises `NoSplit` if the first examples have no labels, as in ImageNet's test split."""
        try:
            records = self.read(np.arange(min(self.size, 8)))
        except DataError:
            return  # decoding names and counts it
        check_labelled(np.array([record["label"] for record in records]), self.where)

    def probe(self, max_unreadable: int) -> Shape:
        """The shape of decoded images, of the first readable one where the set does not state it."""
        height, width, channels = self.shape
        if self.view.size is not None:
            return self.view.size, self.view.size, channels
        if height is not None and width is not None:
            return height, width, channels
        for index in range(self.size):
            try:
                image = self.read(np.array([index]))[0]["image"]
                return *image_header(image, f"{self.where}, example {index}")[0], channels
            except DataError:  # decoding names and counts it
                if index >= max_unreadable:
                    raise
        raise DataError(f"{self.where}: no image can be decoded; {self.remedy}")

    def decode(self, indices: np.ndarray, images: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """Decodes examples, as `train.data.kind.Decode` has it."""
        records, shape = self.read(indices), images.shape[1:]
        for position, record in enumerate(records):
            where = f"{self.where}, example {indices[position]}"
            drawn = None if draws is None else draws[position].tolist()
            images[position] = decode_image(record["image"], where, shape=shape, view=self.view, draws=drawn)
        return _labels_of(records)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Reads the labels of the examples at ``indices`` without decoding their images."""
        parts = [_labels_of(self.read(indices[at : at + 256])) for at in range(0, len(indices), 256)]
        return np.concatenate([np.zeros(0, np.int32), *parts])


_NUMBERS = {os.strerror(number): number for number in errno.errorcode}


def _of_system(error: Exception) -> Exception:
    """The system's error that ArrayRecord tells as ``pread() failed: Input/output error; ...``; any other as it is."""
    found = re.match(r"\w+\(\) failed: ([^;]+)", str(error))
    return OSError(_NUMBERS.get(found[1]), found[1]) if found else error


def _labels_of(records: list[dict[str, Any]]) -> np.ndarray:
    labels = np.array([record["label"] for record in records], np.int64)
    # A cast alone could wrap labels outside the range back into it.
    return np.clip(labels, -1, MAX_CLASSES).astype(np.int32)


def _open_examples(request: Request, folder: Path, remedy: str) -> tuple[str, int, Any, Any]:
    """The split's name in the set, the number of examples, the set's info, and random access to encoded examples."""
    tfds = require("tensorflow_datasets", "tensorflow-datasets", f"the data set {request.name}")
    check_metadata(folder)
    try:
        builder = tfds.builder_from_directory(folder)
        splits, features = dict(builder.info.splits), builder.info.features
    except Exception as error:  # the reader raises many kinds on damaged metadata
        raise DataError(f"{folder}: not a TFDS set ({one_line(error)}); {remedy}") from error
    sizes = {key: value.num_examples for key, value in splits.items()}
    usable = [key for key, size in sizes.items() if size]
    stored = stored_split(folder, request.split, usable)
    if stored is None:
        raise no_split(folder, request.split, usable)
    _check_features(tfds, folder, features)
    check_shards(folder, stored, sizes[stored])
    # Only the label is decoded here: other images and compressed tensors may be anything.
    encoded = {key: tfds.decode.SkipDecoding() for key, _ in features.items() if key != "label"}
    try:
        examples = builder.as_data_source(stored, decoders=encoded, file_format="array_record")
    except Exception as error:
        raise DataError(f"{folder}: no random access ({one_line(error)}); {remedy}") from error
    return stored, sizes[stored], builder.info, examples


def _check_features(tfds: Any, folder: Path, features: Any) -> None:
    """Refuses sets that are not 8-bit images with one class label each."""
    by_name = dict(features.items())
    image, label = by_name.get("image"), by_name.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise DataError(
            f"{folder}: needs an image 'image' and a class label 'label', the set has "
            f"{', '.join(features)}; choose a classification set"
        )
    if np.dtype(image.np_dtype) != np.uint8 or image.shape[-1] not in (1, 3, 4, None):
        raise DataError(
            f"{folder}: images of {image.np_dtype.__name__} with shape {image.shape}; "
            "only uint8 with 1, 3 or 4 channels is supported"
        )
    if not all(side is None or 1 <= side <= MAX_PIXELS for side in image.shape[:2]):
        raise DataError(f"{folder}: images of shape {image.shape}; prepare the set again")
    if not 1 <= (label.num_classes or 0) <= MAX_CLASSES:
        raise DataError(f"{folder}: {label.num_classes} classes; the set must have 1 to {MAX_CLASSES}")


def _versions(root: Path, name: str) -> list[Path]:
    """The prepared versions below ``root`` that fit the name, oldest first."""
    match = _NAME.fullmatch(name)
    if match is None:
        return []
    parent = root / match["name"] / (match["config"] or "")
    found = [path.parent for path in parent.glob("*.*.*/dataset_info.json")]
    numbered = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    if match["version"]:
        numbered = [path for path in numbered if path.name == match["version"]]
    return sorted(numbered, key=lambda path: [int(part) for part in path.name.split(".")])


def _roots(data_dir: Path | None) -> list[Path]:
    if data_dir is not None:
        return [data_dir]
    tfds_own = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return [default_data_dir(), user_path(tfds_own)]
