"""Sets that TFDS prepared."""

import contextlib
import io
import sys

import numpy as np
import pytest
from data_files import refused
from PIL import Image

from train import data
from train.data import DataError
from train.data import prepared as prepared_kind
from train.data.view import View
from train.errors import StorageError


def test_a_prepared_set_reads_like_tfds_does_without_tensorflow(prepared):
    import tensorflow_datasets as tfds

    version = prepared / "digits" / "1.0.0"
    reference = tfds.builder_from_directory(version).as_data_source("test")
    images, labels = data.load("digits:1.0.0", data_dir=prepared, split="test").read(np.arange(20))
    np.testing.assert_array_equal(images, np.stack([reference[i]["image"] for i in range(20)]))
    assert labels.tolist() == [reference[i]["label"] for i in range(20)]
    assert "tensorflow" not in sys.modules


def test_damaged_prepared_files_are_named(copied):
    (records,) = copied.glob("*-test.array_record*")
    records.write_bytes(records.read_bytes()[:5000])
    refused([str(copied)], "digits", data_dir=copied.parents[1], split="test")
    (copied / "dataset_info.json").write_text("{")
    refused([str(copied), "not a TFDS set"], "digits", data_dir=copied.parents[1])


def test_an_unreadable_record_is_named(tmp_path):
    import tensorflow_datasets as tfds

    class Broken(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """One good and one broken image."""

        name = "broken"
        VERSION = tfds.core.Version("1.2.3")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(2, 2, 3)),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"image": Image.new("RGB", (2, 2)), "label": 1}
            yield 1, {"image": b"\x89PNG but not really", "label": 0}

    with contextlib.redirect_stdout(io.StringIO()):
        Broken(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    refused(["broken", "example 1", "cannot be decoded"], "broken", data_dir=tmp_path)
    source = data.load("broken", data_dir=tmp_path, memory_limit=1)
    assert source.read(np.array([0]))[1].tolist() == [1]
    with pytest.raises(DataError, match="example 1"):
        next(data.train_batches(source, batch_size=4, seed=0))


def test_a_flipped_bit_in_an_array_record_costs_its_examples_only(tmp_path):
    source = data.load("digits", data_dir=tmp_path, split="test", memory_limit=1)
    images, labels = source.read(np.arange(297))
    (path,) = (tmp_path / "digits" / "1.0.0").glob("*-test.array_record*")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"records .* cannot be read"):
        data.load("digits", data_dir=tmp_path, split="test")
    source = data.load("digits", data_dir=tmp_path, split="test", max_unreadable=5)
    found, kept = source.read(np.arange(297))
    lost = source.unreadable(np.arange(297))
    assert 0 < lost.sum() <= 5
    np.testing.assert_array_equal(found[~lost], images[~lost])
    np.testing.assert_array_equal(kept[~lost], labels[~lost])


@pytest.mark.parametrize(
    ("said", "damaged"),
    [
        ("pread() failed: Input/output error; reading a.array_record; at byte 2374", False),
        ("open() failed: Too many open files; opening a.array_record", False),
        ("open() failed: No such file or directory; opening a.array_record", True),
        ("Corrupted chunk at byte 17", True),
    ],
)
def test_what_array_record_cannot_read_now_is_no_damage(said, damaged):
    """It tells the system's errors as text."""

    class Records:
        def __getitems__(self, indices):
            raise RuntimeError(said)

    split = prepared_kind._Split("set, split train", "", 9, Records(), (8, 8, 1), View())
    with pytest.raises(DataError if damaged else StorageError, match=r"set, split train: records 3..4 cannot be read"):
        split.read(np.array([3, 4]))
