"""Untrusted metadata of prepared sets: no code, no path outside the folder, no false size."""

import json
import os
import sys

import numpy as np
import pytest
from data_files import refused, whole

from train import data


def test_features_that_name_a_module_do_not_import_it(copied, tmp_path, monkeypatch):
    (tmp_path / "payload.py").write_text("import os; os.mkdir(os.environ['PAYLOAD'])")
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "ran"))
    monkeypatch.syspath_prepend(tmp_path)
    path = copied / "features.json"
    tree = json.loads(path.read_text())
    hostile = [
        {**tree, "pythonClassName": "payload.Feature"},
        {**tree, "python_class_name": "payload.Feature"},
        {"type": "payload.Feature", "content": {}},
    ]
    inner = json.loads(path.read_text())
    inner["featuresDict"]["features"]["image"]["pythonClassName"] = "payload.Feature"
    deep = json.loads(path.read_text())
    image = deep["featuresDict"]["features"]["image"]
    deep["featuresDict"]["features"]["more"] = {
        "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
        "sequence": {"feature": image},
    }
    for change in (*hostile, inner, deep):
        path.write_text(json.dumps(change))
        refused([str(path), "is not read"], "digits", data_dir=copied.parents[1])
    assert not (tmp_path / "ran").exists()
    assert "payload" not in sys.modules


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda info: info.update(name="../../../secret"), "is no file name"),
        (lambda info: info["splits"][0].update(filepathTemplate="/etc/passwd"), "is no file name"),
        (lambda info: info["splits"][0].update(filepathTemplate="..{DATASET}/{SPLIT}"), "is no file name"),
        (lambda info: [split.update(shardLengths=["1000000000000"]) for split in info["splits"]], "claims 10000000"),
    ],
)
def test_prepared_sets_stay_in_their_folder_and_size(copied, change, match):
    path = copied / "dataset_info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))
    refused([str(copied), match], "digits", data_dir=copied.parents[1])


def test_prepared_sets_claim_no_billions_of_classes(copied, small_memory):
    path = copied / "features.json"
    tree = json.loads(path.read_text())
    tree["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = str(10**12)
    path.write_text(json.dumps(tree))
    (copied / "label.labels.txt").unlink(missing_ok=True)
    refused([str(copied), "classes"], "digits", data_dir=copied.parents[1])


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_prepared_metadata_of_any_shape_is_refused(copied, name):
    for content in (b"[" * 100_000, b"\xff\xfe", b"[]", b"{}", b'{"splits": 3, "name": []}', b"9" * 5000):
        (copied / name).write_bytes(content)
        refused(str(copied), "digits", data_dir=copied.parents[1])


@pytest.mark.parametrize("name", ["val", "dev"])
def test_a_prepared_set_may_call_its_validation_split_otherwise(copied, name):
    expected = whole(data.load("digits", split="test", data_dir=copied.parents[1]))
    path = copied / "dataset_info.json"
    info = json.loads(path.read_text())
    next(split for split in info["splits"] if split["name"] == "test")["name"] = name
    path.write_text(json.dumps(info))
    (shard,) = copied.glob("*-test.array_record*")
    shard.rename(shard.with_name(shard.name.replace("-test.", f"-{name}.")))
    for found, array in zip(
        whole(data.load("digits", split="validation", data_dir=copied.parents[1])), expected, strict=True
    ):
        np.testing.assert_array_equal(found, array)


def test_links_in_prepared_sets_are_refused(copied, tmp_path):
    (shard,) = copied.glob("*-train.array_record*")
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    refused([str(shard), "symbolic link"], "digits", data_dir=copied.parents[1])


def test_pipes_in_prepared_sets_are_refused(copied):
    for path in copied.iterdir():
        if path.is_dir():
            continue
        path.rename(copied.parents[1] / "kept")
        os.mkfifo(path)
        refused([str(path), "not a regular file"], "digits", data_dir=copied.parents[1])
        path.unlink()
        (copied.parents[1] / "kept").rename(path)


@pytest.mark.parametrize("name", ["label.labels.txt", "features.json", "dataset_info.json", "image.image.json"])
def test_prepared_metadata_of_any_size_are_refused_unread(copied, small_memory, name):
    with (copied / name).open("ab") as file:
        file.truncate(1 << 40)  # sparse
    refused([str(copied / name), "over 16777216 bytes"], "digits", data_dir=copied.parents[1])
