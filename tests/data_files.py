"""Files of data sets, and what opening them must say."""

import io
import itertools
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from train import data
from train.data import DataError

SPLITS = ("train", "test")


def whole(source):
    return source.read(np.arange(len(source)))


def refused(match, name, **options):
    """Loads and reads everything, and expects one line of ``DataError`` that contains all words."""
    with pytest.raises(DataError) as caught:
        whole(data.load(str(name), **options))
    message = str(caught.value)
    assert "\n" not in message
    for word in [match] if isinstance(match, str) else match:
        assert word in message, message


def write_folder(root, sizes=((4, 5),), mode="RGB", classes=("cat", "dog"), splits=SPLITS):
    """Writes one image for each size and class; returns the pixels by path below the root."""
    pixels = {}
    rng = np.random.default_rng(3)
    for split, name, (number, size) in itertools.product(splits, classes, enumerate(sizes)):
        path = root / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = size if mode == "L" else (*size, 3)
        pixels[f"{split}/{name}/{number}"] = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels[f"{split}/{name}/{number}"]).save(path)
    return pixels


def write_images(root, count=12, damaged=(), split="train"):
    """Images of two classes whose pixels tell their index; some cut off."""
    for index in range(count):
        path = root / split / ("cat", "dog")[index * 2 // count] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (index, index, index)).save(path)
        if index in damaged:
            path.write_bytes(path.read_bytes()[:40])


def indices_of(images):
    return images[:, 0, 0, 0].tolist()


def header_of(shape, descr="|u1", version=(1, 0), padding=0):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b" " * padding + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text


def array_bytes(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
    return stream.getvalue()


def write_arrays(path, splits=SPLITS, *, count=32, classes=2, seed=0):
    """An ``.npz`` file of random 8x8 images, the same in every split; a seed tells files apart."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), np.uint8)
    labels = np.arange(count) % classes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{f"{split}_images": images for split in splits}, **{f"{split}_labels": labels for split in splits})
    return path


def write_npz(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content if isinstance(content, bytes) else array_bytes(content))
    return path
