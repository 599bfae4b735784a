"""A stand-in for ImageNet, with its names, sizes and splits, from the data to the report."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from training import assert_same_to_the_bit, last_step, wait_for

TRAIN, VALIDATION, TEST = 96, 16, 8
SMALL = (
    *("--data.image-size", "32", "--model.width", "0.0625", "--batch-size", "16", "--epochs", "2"),
    *("--schedule.warmup-epochs", "0", "--evaluation.steps", "2", "--evaluation.examples", "8"),
)


def photographs(count, seed):
    """JPEGs of 400 to 600 pixels, each with another smooth pattern."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        height, width = rng.integers(400, 601, 2)
        coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((int(width), int(height))).save(stream, "JPEG", quality=60)
        yield stream.getvalue()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The set as TFDS prepares it: 1,000 classes, no labels of the test split."""
    import tensorflow_datasets as tfds

    class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Train, validation and test."""

        name = "imagenet2012"
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=[f"n{number:08}" for number in range(1000)]),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(TRAIN, 0),
                "validation": self._generate_examples(VALIDATION, 1),
                "test": self._generate_examples(TEST, None),
            }

        def _generate_examples(self, count, seed):
            for index, image in enumerate(photographs(count, seed)):
                label = -1 if seed is None else 10 * index
                yield index, {"image": image, "label": label, "file_name": f"{index}.JPEG"}

    folder = tmp_path_factory.mktemp("imagenet")
    with contextlib.redirect_stdout(io.StringIO()):
        Imagenet2012(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_from_the_data_to_the_report_and_killed_and_resumed_to_the_bit(trainer, imagenet, tmp_path):
    def options(name, *more):
        return ["fit", "imagenet-resnet50-flow", *SMALL, "--data-dir", str(imagenet), "--run-dir", name, *more]

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _, err = trainer.run(options(str(whole)))
    assert "the validation split is evaluated instead" in err
    report = json.loads((whole / "evaluation.json").read_text())
    assert report["examples"] == 8
    arguments = options(str(cut), "--no-evaluate", "--checkpoint-every", "2")
    process = trainer.start(arguments)
    assert wait_for(lambda: last_step(cut) >= 4, process)
    process.kill()
    process.communicate()
    assert 4 <= last_step(cut) < 12
    trainer.run([*arguments, "--resume"])
    assert_same_to_the_bit(whole, cut)


def test_a_folder_of_photographs_trains_in_two_processes_of_two_devices(trainer, tmp_path):
    for split, count in (("train", TRAIN), ("val", VALIDATION)):
        for index, image in enumerate(photographs(count, split == "val")):
            path = tmp_path / "photos" / split / f"n{10 * (index % 8):08}" / f"{index}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
    command = ["fit", "imagenet100-resnet18-flow", *SMALL, "--data.name", f"folder:{tmp_path / 'photos'}"]
    placed = ["--run-dir", str(tmp_path / "run"), "--data-dir", str(tmp_path / "data"), "--parallel", "jit"]
    together = ["launch", "--processes", "2", "--devices-per-process", "2", *command, *placed, "--no-evaluate"]
    out, _ = trainer.run(together)
    assert "training on 4 cpu devices of 2 processes by jit" in out
    assert last_step(tmp_path / "run") == 12
