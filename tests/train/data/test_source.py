"""`load`: names, splits, memory, held-out examples, labels."""

import json
import shutil
import tracemalloc

import numpy as np
import pytest
from data_files import refused, whole, write_folder
from PIL import Image
from running import python

from train import data
from train.data import DataError, source
from train.data.kind import InMemory, Kind


def test_the_import_is_light():
    heavy = ["tensorflow", "tensorflow_datasets", "grain", "PIL", "mlxtend", "sklearn", "tqdm"]
    code = f"import train.data, sys; print([m for m in {heavy} if m in sys.modules])"
    assert python(code) == "[]\n"


def test_the_default_folder_follows_the_environment(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("DEFORMREG_DATA", str(prepared))
    assert len(data.load("digits", split="test")) == 297
    monkeypatch.setenv("DEFORMREG_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    refused([str(tmp_path / "nothing"), str(tmp_path / "tfds"), "tfds build cifar10"], "cifar10")


def test_too_large_for_memory_decodes_per_batch_to_the_same(prepared):
    kept = data.load("digits", data_dir=prepared, image_size=9)
    streamed = data.load("digits", data_dir=prepared, image_size=10, memory_limit=1000)
    assert (kept.in_memory, streamed.in_memory) == (True, False)
    again = data.load("digits", data_dir=prepared, image_size=10)
    assert (kept.image_shape, streamed.image_shape) == ((9, 9, 1), (10, 10, 1))
    indices = np.random.default_rng(1).integers(0, 1500, 37)
    for left, right in zip(streamed.read(indices), again.read(indices), strict=True):
        np.testing.assert_array_equal(left, right)


def test_unprepared_and_unknown_sets_say_what_to_do(tmp_path):
    refused(["'mnist' is not prepared", str(tmp_path), "tfds build mnist"], "mnist", data_dir=tmp_path)
    refused("folder", "no such/thing.zip", data_dir=tmp_path)
    refused(["'validation'", "train, test", "holdout"], "digits", data_dir=tmp_path, split="validation")


def test_a_name_that_is_known_wins_over_a_folder_of_that_name(prepared, tmp_path, monkeypatch):
    write_folder(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert data.load("digits", data_dir=prepared).num_classes == 10
    assert data.load("folder:digits", data_dir=tmp_path / "cache").num_classes == 2


def test_a_new_kind_of_set_is_one_value_in_the_registry(monkeypatch):
    images, labels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1), np.array([0, 1, 0], np.int32)
    kind = Kind(lambda name, data_dir: name == "mine", lambda request: InMemory("mine", ("a", "b"), (images, labels)))
    monkeypatch.setattr(source, "KINDS", (*source.KINDS, kind))
    np.testing.assert_array_equal(whole(data.load("mine"))[0], images)


@pytest.mark.parametrize("memory_limit", [data.MEMORY_LIMIT, 1])
def test_labels_outside_the_classes_are_named_or_replaced(copied, memory_limit):
    features = copied / "features.json"
    tree = json.loads(features.read_text())
    tree["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "9"
    features.write_text(json.dumps(tree))
    (copied / "label.labels.txt").unlink(missing_ok=True)
    options = {"split": "test", "data_dir": copied.parents[1], "memory_limit": memory_limit}
    refused(["digits, split test: label 9 of example", "not in 0..8"], "digits", **options)
    opened = data.load("digits", max_unreadable=297, **options)
    labels = whole(opened)[1]
    assert labels.max() == 8
    assert opened.unreadable(np.arange(297)).sum() > 10


@pytest.mark.parametrize(
    ("options", "copied"),
    [({"train_split": "train[:2]"}, True), ({"split": "validation", "holdout": 0.2}, True), ({"holdout": 0.2}, False)],
)
def test_a_small_part_does_not_keep_the_rest_in_memory(tmp_path, options, copied):
    image = 256 * 256 * 3
    np.savez(tmp_path / "set.npz", images=np.zeros((12, 256, 256, 3), np.uint8), labels=np.arange(12) % 2)
    tracemalloc.start()
    part = data.load(str(tmp_path / "set.npz"), **options)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept - (len(part) if copied else 12) * image in range(image)


def test_holdout_cuts_the_same_disjoint_part_every_time(numbered, tmp_path):
    path = str(tmp_path / "numbered.npz")
    rest, cut = (data.load(path, split=s, holdout=0.3) for s in ("train", "validation"))
    assert (len(rest), len(cut)) == (7, 3)
    both = np.concatenate([whole(rest)[1], whole(cut)[1]])
    assert sorted(both) == list(range(10))
    assert whole(data.load(path, split="validation", holdout=0.3))[1].tolist() == both[7:].tolist()
    np.testing.assert_array_equal(whole(cut)[0][:, 0, 0, 0], whole(cut)[1])
    for fraction in (0.01, 0.99, 1.0, -0.1):
        with pytest.raises(DataError):
            data.load(path, holdout=fraction)


def test_the_fingerprint_changes_with_any_example_and_not_with_the_place(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 3, 2, 3), np.uint8), np.arange(40) % 4

    def fingerprint(images, labels, **options):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        np.savez(path, images=images, labels=labels)
        return data.load(str(path), **options).fingerprint

    expected = fingerprint(images, labels)
    assert fingerprint(images, labels) == expected
    other, turned = images.copy(), labels.copy()
    other[labels == 2] = 255 - other[labels == 2]
    turned[17] = 0
    found = [fingerprint(other, labels), fingerprint(images, turned), fingerprint(images[:39], labels[:39])]
    held = [fingerprint(images, labels, holdout=0.25, split=split) for split in ("train", "validation")]
    assert len({expected, *found, *held}) == 6


def test_the_fingerprint_of_files_that_are_decoded_later_covers_every_file(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_SAMPLE_DECODED", 2)

    def fingerprint(folder):
        return data.load(str(folder), data_dir=tmp_path / "cache", memory_limit=1).fingerprint

    write_folder(tmp_path / "set", sizes=[(9, 9)] * 5)
    shutil.copytree(tmp_path / "set", tmp_path / "moved")
    expected = fingerprint(tmp_path / "set")
    assert fingerprint(tmp_path / "moved") == expected
    Image.new("RGB", (9, 9)).save(tmp_path / "set" / "train" / "cat" / "2.png")
    assert fingerprint(tmp_path / "set") != expected
