"""A stand-in for ImageNet: its names, features, label conventions and sizes, with generated images."""

import contextlib
import io

import numpy as np
from PIL import Image

CLASS_NAMES = tuple(f"n{1_440_764 + 7_919 * number:08}" for number in range(1000))


def jpeg(number):
    """One JPEG of 400 to 600 pixels a side: smooth colours with an edge, all drawn from its number."""
    rng = np.random.default_rng([224, number])
    width, height = (int(side) for side in rng.integers(400, 601, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    left, top = int(rng.integers(0, width - 200)), int(rng.integers(0, height - 200))
    image.paste(tuple(rng.integers(0, 256, 3).tolist()), (left, top, left + 200, top + 200))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def examples(count):
    """The splits as lists of number and label: seven of eight images are in train, all test labels are -1.

    Every other image is of one class, so that few steps teach a network answers that attacks can break.
    """
    held = count // 8
    labels = [0 if number % 2 else number // 2 % 1000 for number in range(count - held)]
    numbered = list(enumerate(labels))
    validation = [(count + number, label) for number, label in numbered[:held]]
    return {"train": numbered, "validation": validation, "test": [(2 * count + number, -1) for number in range(8)]}


def file_name(split, number, label):
    if split == "train":
        return f"{CLASS_NAMES[label]}_{number}.JPEG"
    return f"ILSVRC2012_{split.removesuffix('idation')}_{number:08}.JPEG"


def write_folder(root, count):
    """As the archives unpack: train/CLASS/ and val/CLASS/, without a class for the test images."""
    splits = examples(count)
    for split, name in (("train", "train"), ("validation", "val")):
        for number, label in splits[split]:
            path = root / name / CLASS_NAMES[label] / file_name(split, number, label)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number))


def write_records(data_dir, count):
    """As TFDS prepares ``imagenet2012``, in ArrayRecord."""
    import tensorflow_datasets as tfds

    class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The features and splits of ``tfds.image_classification.Imagenet2012``."""

        name = "imagenet2012"
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=CLASS_NAMES),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split, rows) for split, rows in examples(count).items()}

        def _generate_examples(self, split, rows):
            for number, label in rows:
                name = file_name(split, number, label)
                yield name, {"image": io.BytesIO(jpeg(number)), "label": label, "file_name": name}

    with contextlib.redirect_stdout(io.StringIO()):
        Imagenet2012(data_dir=data_dir, file_format="array_record").download_and_prepare()
