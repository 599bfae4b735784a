"""Files from strangers: they run no code, take no memory, lead nowhere else, and are refused in one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from train import data, runs
from train.config import Config, ConfigError, from_json, to_json
from train.data import DataError

IMAGES, LABELS = np.zeros((4, 2, 2, 3), np.uint8), np.arange(4) % 2
BOMB = 64 << 20
"""Bytes in a member that a file of a hundredth of that size holds."""


@pytest.fixture
def small_memory():
    """Fails a test in which Python and NumPy together take as much as a bomb holds."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < BOMB // 2


def refused(match, name, **options):
    def read():
        source = data.load(str(name), **options)
        source.read(np.arange(min(len(source), 4)))

    with pytest.raises(DataError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    for word in [match] if isinstance(match, str) else match:
        assert word in message, message


# Arrays.


def header_of(shape, descr="|u1", version=(1, 0), padding=0):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b" " * padding + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text


def array_bytes(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
    return stream.getvalue()


def write_npz(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content if isinstance(content, bytes) else array_bytes(content))
    return path


def write_bomb(path, name, head, count, others):
    """A file with a member of `head` and a number of spaces, compressed as it is written: much in little."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, content in others.items():
            archive.writestr(other, array_bytes(content))
        with archive.open(name, "w", force_zip64=True) as file:
            file.write(head)
            for _ in range(count >> 20):
                file.write(b" " * (1 << 20))
    return path


class Payload:
    def __reduce__(self):
        return os.mkdir, (os.environ["PAYLOAD"],)


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A folder that appears if anything unpickles."""
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "ran"))
    yield pickle.dumps(Payload())
    assert not (tmp_path / "ran").exists()


def test_npz_never_unpickles(tmp_path, trap):
    for name in ("images", "images.npy", "labels.npy", "class_names.npy"):
        members = {"images.npy": IMAGES, "labels.npy": LABELS}
        members.pop(name, None)
        path = write_npz(tmp_path / "a.npz", {name: trap, **members})
        refused(str(path), path)
        path = write_npz(tmp_path / "b.npz", {**members, name: header_of((1,), "|O") + trap})
        refused(str(path), path)
    (tmp_path / "c.npz").write_bytes(trap)
    refused("not a readable .npz", tmp_path / "c.npz")


def test_npz_member_that_shadows_a_checked_one_is_refused(tmp_path):
    path = write_npz(tmp_path / "a.npz", {"images": b"anything", "images.npy": IMAGES, "labels.npy": LABELS})
    refused("is not an array", path)
    path = write_npz(tmp_path / "b.npz", {"images.npy": IMAGES, "labels.npy": LABELS, "labels": array_bytes(LABELS)})
    refused("labels twice", path)


def test_npz_long_header_is_not_read(tmp_path, small_memory):
    # NumPy's own reader looks at a header after it has read it, whatever its length.
    head = b"\x93NUMPY\2\0" + struct.pack("<I", BOMB)
    path = write_bomb(tmp_path / "a.npz", "labels.npy", head, BOMB, {"images.npy": IMAGES})
    assert path.stat().st_size < BOMB >> 6
    refused(["labels", "header of"], path)
    for name in ("images.npy", "class_names.npy", "test_labels.npy"):
        members = {"images.npy": IMAGES, "labels.npy": LABELS, name: head}
        refused([name.removesuffix(".npy"), "header of"], write_npz(tmp_path / "b.npz", members))


def test_npz_labels_and_names_count_towards_the_limit(tmp_path, small_memory):
    images, both = {"images.npy": IMAGES}, {"images.npy": IMAGES, "labels.npy": LABELS}
    count = BOMB // 8
    path = write_bomb(tmp_path / "a.npz", "labels.npy", header_of((count,), "<i8"), BOMB, images)
    refused(["labels", f"({count},)"], path)
    path = write_bomb(tmp_path / "b.npz", "train_labels.npy", header_of((count,), "<i8"), BOMB, both)
    refused("over the limit", path, memory_limit=BOMB // 2)
    path = write_bomb(tmp_path / "c.npz", "class_names.npy", header_of((2,), f"<U{BOMB // 8}"), BOMB, both)
    refused("class_names", path)
    refused("claims", write_npz(tmp_path / "d.npz", {**both, "images.npy": header_of((2**40, 1, 1)) + bytes(8)}))


def test_npz_one_label_does_not_make_billions_of_classes(tmp_path, small_memory):
    for label, dtype in ((2**40, np.int64), (2**63 + 5, np.uint64), (2**31, np.uint32)):
        path = write_npz(tmp_path / "a.npz", {"images.npy": IMAGES, "labels.npy": np.array([0, 1, 0, label], dtype)})
        refused(["classes are over the limit"], path)
        wrapped = {"images.npy": IMAGES, "labels.npy": np.array([0, 1, 0, label], dtype), "class_names.npy": ["a", "b"]}
        refused("label", write_npz(tmp_path / "b.npz", wrapped))


def test_npz_with_a_million_members_is_refused_unread(tmp_path, small_memory):
    name = b"images.npy"
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0)
    directory = (entry + name) * 200_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(directory), 0, 0)
    (tmp_path / "a.npz").write_bytes(directory + end)
    refused("directory of members is too large", tmp_path / "a.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_npz_in_other_compressions_is_refused(tmp_path, compression):
    path = write_npz(tmp_path / "a.npz", {"images.npy": IMAGES, "labels.npy": LABELS}, compression)
    refused("compressed in a way", path)


def test_npz_flipped_bits_are_noticed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    path = write_npz(tmp_path / "a.npz", {"images.npy": images, "labels.npy": LABELS}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(images.tobytes()) + 100] ^= 1
    path.write_bytes(content)
    refused("not a readable .npz", path)


@pytest.mark.parametrize(
    "header",
    [
        header_of((-4, -2, 2, 3)),
        header_of((True, 2, 2)),
        header_of((4, 2, 2, 3)).replace(b"{", b"[" * 900 + b"{"),
        header_of((4,)).replace(b"(4,)", b"(" * 9000 + b")" * 9000),
        header_of((4,)).replace(b"(4,)", b"__import__('os').abort()"),
        b"\x93NUMPY\1\0\0\0",
        b"\x93NUMPY\3\0\1\0\0\0\n",
        b"",
    ],
)
def test_npz_hostile_headers_are_named(tmp_path, header):
    path = write_npz(tmp_path / "a.npz", {"images.npy": header + bytes(48), "labels.npy": LABELS})
    refused(str(path), path)


# Images.


def image_folder(root, count=2):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (5, 4), (index, 0, 0)).save(root / split / name / f"{index}.png")
    return root / "train" / "cat" / "0.png"


def test_an_image_is_what_its_bytes_say_not_its_name(tmp_path):
    # PIL hands PostScript to Ghostscript, and has dozens of decoders that nobody needs here.
    path = image_folder(tmp_path)
    for format_ in ("EPS", "TIFF", "PDF", "ICO", "GIF", "PPM", "TGA"):
        Image.new("RGB", (5, 4)).save(path.with_suffix(".tmp"), format=format_)
        path.with_suffix(".tmp").rename(path)
        refused([str(path), "none of PNG, JPEG, BMP, WEBP"], tmp_path, data_dir=tmp_path / "cache")


def test_a_huge_file_is_not_read(tmp_path, small_memory):
    path = image_folder(tmp_path)
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    refused([str(path), "bytes are over the limit"], tmp_path, data_dir=tmp_path / "cache")


def png_of(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    scanline = zlib.compress(bytes((width + 1) * 64), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)) + chunk(
        b"IDAT", scanline
    ) + chunk(b"IEND", b"")  # fmt: skip


def test_a_batch_of_large_images_is_refused_before_it_is_decoded(tmp_path, small_memory):
    image_folder(tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(png_of(5000, 6000))
    source = data.load(str(tmp_path), data_dir=tmp_path / "cache", memory_limit=1 << 20)
    with pytest.raises(DataError, match=r"128 images of 6000 x 5000 at once take .*--data\.image-size"):
        source.read(np.zeros(128, np.int64))


# Prepared sets.


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    data.load("digits", data_dir=folder, memory_limit=1)
    return folder


@pytest.fixture
def copied(digits, tmp_path):
    shutil.copytree(digits, tmp_path / "sets")
    return tmp_path / "sets" / "digits" / "1.0.0"


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


def test_links_in_prepared_sets_are_refused(copied, tmp_path):
    (shard,) = copied.glob("*-train.array_record*")
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    refused([str(shard), "symbolic link"], "digits", data_dir=copied.parents[1])


@pytest.mark.parametrize("content", ["header", "pickle", "zip", "shape"])
def test_a_decoded_copy_from_a_stranger_is_only_a_copy(copied, trap, content):
    folder = copied.parents[1]
    expected = data.load("digits", data_dir=folder).read(np.arange(9))
    (copy,) = (copied / "decoded").glob("train-*")
    hostile = {
        "header": header_of((1500,), "<i4", version=(2, 0), padding=1 << 16),
        "pickle": header_of((1500,), "|O") + trap,
        "zip": (write_npz(folder / "z", {"labels.npy": LABELS})).read_bytes(),
        "shape": header_of((2**40,), "<i4") + bytes(6000),
    }[content]
    (copy / "labels.npy").write_bytes(hostile)
    for found, array in zip(data.load("digits", data_dir=folder).read(np.arange(9)), expected, strict=True):
        np.testing.assert_array_equal(found, array)


def test_nothing_is_written_through_a_link(copied, tmp_path):
    shutil.rmtree(copied / "decoded", ignore_errors=True)
    (tmp_path / "elsewhere").mkdir()
    (copied / "decoded").symlink_to(tmp_path / "elsewhere")
    refused("symbolic link", "digits", data_dir=copied.parents[1])
    assert not list((tmp_path / "elsewhere").iterdir())


# Configs.


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
        "NaN",
        "null",
        '"text"',
        '{"epochs": 1e400}',
        '{"method": {"weight": NaN}}',
        '{"method": {"weight": 1' + "0" * 400 + "}}",
        '{"epochs": 1' + "0" * 30 + "}",
        '{"seed": 18446744073709551616}',
        '{"__class__": "os.system"}',
        '{"model": {"name": ["vgg-11"]}}',
        '{"optimizer": {"decay_epochs": [[1]]}}',
        '{"model": {"__init__": 3}}',
        "",
    ],
)
def test_configs_are_data(text):
    with pytest.raises(ConfigError) as caught:
        from_json(text)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400


def test_config_files_of_any_bytes_are_named(tmp_path):
    for content in (b"\xff\xfe\x00", b"\x80abc", b"{" + b" " * (2 << 20) + b"}"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises((ConfigError, runs.RunError), match=r"config\.json"):
            runs.load_config(tmp_path)
    assert from_json(to_json(Config())) == Config()
