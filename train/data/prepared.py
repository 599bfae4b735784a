"""Image classification sets that TFDS prepared, read by name and without TensorFlow."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from train.data.errors import DataError, no_split, one_line, require, user_path
from train.data.images import MAX_PIXELS, decode_image, image_header
from train.data.metadata import MAX_CLASSES, check_metadata, check_shards
from train.data.records import Records, default_data_dir
from train.data.storage import Arrays, fingerprint

EMBEDDED = ("mnist5k", "digits")
"""Sets that this package prepares itself, from a Python package that contains them."""

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")


def tfds_records(name: str, split: str, *, data_dir: Path | None, image_size: int | None) -> Records:
    """Opens one split of a prepared set with the features ``image`` and ``label``.

    Args:
        name: ``NAME[/CONFIG][:VERSION]``; the newest version where none is given.
        split: one of the set's splits.
        data_dir: the folder that contains ``NAME/``; None looks in the default folders.
        image_size: resizes to this height and width in pixels.

    Raises:
        DataError: not prepared, damaged, of the wrong kind, or without that split.
    """
    tfds = require("tensorflow_datasets", "tensorflow-datasets", f"the data set {name}")
    folder = _prepared_folder(name, data_dir)
    size, features, source = _open_split(tfds, name, folder, split)
    shape, where = features["image"].shape, f"{folder}, split {split}"
    channels = shape[-1] or 3

    def read(indices: np.ndarray) -> list[dict]:
        try:
            return source.__getitems__(indices.tolist())
        except Exception as error:
            raise DataError(
                f"{where}: records {indices[0]}..{indices[-1]} cannot be read ({one_line(error)}); "
                f"copy or prepare the set again"
            ) from error

    def probe(max_corrupt: int) -> tuple[int, int, int]:
        if image_size is not None:
            return image_size, image_size, channels
        if None not in shape[:2]:
            return *shape[:2], channels
        for index in range(size):
            try:
                first, _ = image_header(read(np.array([index]))[0]["image"], f"{where}, example {index}")
            except DataError:  # decoding will name it
                if index >= max_corrupt:
                    raise
            else:
                return *first, channels
        raise DataError(f"{where}: no image can be decoded; {_how(name)}")

    def decode(indices: np.ndarray, shape: tuple[int, int, int]) -> Arrays:
        return _decode(read(indices), indices, where, shape, image_size)

    files = [*sorted(folder.glob(f"*-{split}.*")), folder / "dataset_info.json"]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return Records(
        name=f"{name}, split {split}",
        size=size,
        class_names=tuple(features["label"].names),
        probe=probe,
        decode=decode,
        cache=folder / "decoded" / f"{split}-{image_size or 'original'}-{fingerprint([channels, *stats])}",
    )


def is_known(name: str, data_dir: Path | None) -> bool:
    """Whether the name is an embedded set's, or one's that is prepared where it would be sought."""
    match = _NAME.fullmatch(name)
    if match is None:
        return False
    return match["name"] in EMBEDDED or any(_versions(root, match) for root in _roots(data_dir))


def _open_split(tfds, name: str, folder: Path, split: str):
    """The number of examples, the features, and random access to the examples with encoded images."""
    check_metadata(folder)
    try:
        builder = tfds.builder_from_directory(folder)
        splits, features = dict(builder.info.splits), builder.info.features
    except Exception as error:  # the reader raises many kinds on damaged metadata
        raise DataError(f"{folder}: not a TFDS set ({one_line(error)}); {_how(name)}") from error
    sizes = {key: value.num_examples for key, value in splits.items()}
    if not sizes.get(split):
        raise no_split(folder, split, [key for key, size in sizes.items() if size])
    _check_features(tfds, folder, features)
    check_shards(folder, split, sizes[split])
    # Nothing but the label is decoded here: other images and compressed tensors may be anything.
    skipped = {key: tfds.decode.SkipDecoding() for key, _ in features.items() if key != "label"}
    try:
        source = builder.as_data_source(split, decoders=skipped, file_format="array_record")
    except Exception as error:
        raise DataError(f"{folder}: no random access ({one_line(error)}); {_how(name)}") from error
    return sizes[split], features, source


def _decode(records, indices, where, shape, image_size) -> Arrays:
    """Decodes the images of TFDS examples that carry them as bytes."""
    images = np.empty((len(records), *shape), np.uint8)
    for position, record in enumerate(records):
        example = f"{where}, example {indices[position]}"
        image = decode_image(record["image"], example, channels=shape[-1], image_size=image_size)
        if image.shape != shape:
            raise DataError(
                f"{example}: {image.shape[0]} x {image.shape[1]} pixels, others have {shape[0]} x "
                f"{shape[1]}; give an image size to resize to"
            )
        images[position] = image
    labels = np.array([record["label"] for record in records], np.int64)
    return images, np.clip(labels, -1, MAX_CLASSES).astype(np.int32)


def _check_features(tfds, folder: Path, features) -> None:
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


def _prepared_folder(name: str, data_dir: Path | None) -> Path:
    """The folder of a set's newest, or named, version; embedded sets are prepared first."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise DataError(f"{name!r} is not a data set's name, an existing folder or an .npz file")
    if name in EMBEDDED:
        # First in words of its own: the builders import it where they are defined.
        require("tensorflow_datasets", "tensorflow-datasets", f"the data set {name}")
        from train.data.builders import prepare

        return prepare(name, data_dir or default_data_dir())
    for root in _roots(data_dir):
        if versions := _versions(root, match):
            return versions[-1]
    looked = " and ".join(str(root) for root in _roots(data_dir))
    raise DataError(f"data set {name!r} is not prepared: looked in {looked}; {_how(name)}")


def _versions(root: Path, match: re.Match) -> list[Path]:
    """The prepared versions of a set below ``root`` that fit the name, oldest first."""
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


def _how(name: str) -> str:
    """How to get a set that is not one of the embedded ones."""
    if name in EMBEDDED:
        return "remove that folder, and it is prepared again"
    return (
        "prepare it where TensorFlow is installed, with `tfds build "
        f"{name.partition(':')[0]} --file_format=array_record --data_dir DIR`, and copy DIR here; "
        f"without any preparation: {', '.join(EMBEDDED)}"
    )
