"""Array files, from anybody."""

import struct
import zipfile

import numpy as np
import pytest
from data_files import SPLITS, array_bytes, header_of, refused, whole, write_npz

from train import data

IMAGES, LABELS = np.zeros((4, 2, 2, 3), np.uint8), np.arange(4) % 2
ZEROS = np.zeros(4, np.int64)
BOMB = 64 << 20
"""Bytes in a member that a file of a hundredth of that size holds."""


def test_splits_names_and_grayscale(tmp_path):
    path = str(tmp_path / "arrays.npz")
    arrays = {
        "train_images": np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
        "train_labels": np.array([0, 2, 1], np.uint8),
        "test_images": np.zeros((1, 2, 2), np.uint8),
        "test_labels": np.array([0]),
    }
    np.savez(path, **arrays)
    train, test = (data.load(path, split=split) for split in SPLITS)
    assert (train.image_shape, len(test), test.num_classes) == ((2, 2, 1), 1, 3)
    np.testing.assert_array_equal(whole(train)[0][..., 0], arrays["train_images"])
    np.savez_compressed(path, **arrays, class_names=np.array(["a", "b", "c", "d"]))
    assert data.load(path, split="test").class_names == ("a", "b", "c", "d")


@pytest.mark.parametrize("keys", ["{}_images {}_labels", "x_{} y_{}"])
@pytest.mark.parametrize("validation", ["validation", "val", "valid", "dev"])
def test_other_names_of_keys_and_labels_in_a_column(tmp_path, keys, validation):
    path = str(tmp_path / "arrays.npz")
    arrays = {}
    for number, name in enumerate(("train", validation, "test")):
        images, labels = keys.replace("{}", name).split()
        arrays |= {images: IMAGES + np.uint8(number), labels: LABELS[:, None]}
    np.savez(path, **arrays)
    for number, split in enumerate(("train", "validation", "test")):
        source = data.load(path, split=split)
        found, labels = whole(source)
        assert (source.num_classes, found.max(), labels.tolist()) == (2, number, LABELS.tolist())


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES, "labels": LABELS, "x_train": IMAGES, "y_train": LABELS}, ["x_train and images both"]),
        ({"images": IMAGES, "labels": np.stack([LABELS, LABELS], 1)}, ["shape (4, 2)"]),
        ({"images": IMAGES, "labels": LABELS[:3, None]}, ["(3, 1)", "(4,)"]),
        ({"images": IMAGES, "labels": np.int64(3)}, ["shape ()"]),
        ({"images": IMAGES}, ["labels", "expected"]),
        ({"images": IMAGES / 255, "labels": ZEROS}, ["float64", "uint8"]),
        ({"images": IMAGES.transpose(0, 2, 3, 1)[:, :, :2], "labels": ZEROS}, ["channels go"]),
        ({"images": IMAGES[0, 0], "labels": ZEROS[:2]}, ["shape (2, 3)"]),
        ({"images": IMAGES[:0], "labels": ZEROS[:0]}, ["empty"]),
        ({"images": IMAGES, "labels": ZEROS[:3]}, ["(3,)", "(4,)"]),
        ({"images": IMAGES, "labels": ZEROS * 1.0}, ["float64", "integers"]),
        ({"images": IMAGES, "labels": ZEROS - 1}, ["no labels (-1)", "use a labelled split"]),
        ({"images": IMAGES, "labels": ZEROS + 9, "class_names": ["a", "b"]}, ["label 9", "0..1"]),
        ({"images": IMAGES, "labels": ZEROS, "class_names": [1]}, ["class_names"]),
        ({"images": np.array([IMAGES, None], object), "labels": ZEROS}, ["Python objects"]),
        ({"images": np.zeros((9, 99, 99), np.uint8), "labels": np.zeros(9, int)}, ["over the"]),
    ],
)
def test_mistakes_are_named(tmp_path, arrays, words):
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays)
    refused([str(path), *words], str(path), memory_limit=50_000)


def test_damage_and_false_claims_are_named(tmp_path):
    path = tmp_path / "wrong.npz"
    refused([str(path), "no such file"], str(path))
    np.savez(path, images=IMAGES, labels=LABELS)
    good = path.read_bytes()
    path.write_bytes(good[:300])
    refused([str(path), "not a readable"], str(path))
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (("images", IMAGES), ("labels", LABELS)):
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": (10**9, 8, 8)}
                np.lib.format.write_array_header_1_0(file, header)
    refused([str(path), "claims 64000000000 bytes"], str(path), memory_limit=10**12)
    np.savez(path, images=IMAGES, labels=LABELS)
    refused("not resized", str(path), image_size=5)


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


def test_never_unpickles(tmp_path, trap):
    for name in ("images", "images.npy", "labels.npy", "class_names.npy"):
        members = {"images.npy": IMAGES, "labels.npy": LABELS}
        members.pop(name, None)
        path = write_npz(tmp_path / "a.npz", {name: trap, **members})
        refused(str(path), path)
        path = write_npz(tmp_path / "b.npz", {**members, name: header_of((1,), "|O") + trap})
        refused(str(path), path)
    (tmp_path / "c.npz").write_bytes(trap)
    refused("not a readable .npz", tmp_path / "c.npz")


def test_member_that_shadows_a_checked_one_is_refused(tmp_path):
    path = write_npz(tmp_path / "a.npz", {"images": b"anything", "images.npy": IMAGES, "labels.npy": LABELS})
    refused("is not an array", path)
    path = write_npz(tmp_path / "b.npz", {"images.npy": IMAGES, "labels.npy": LABELS, "labels": array_bytes(LABELS)})
    refused("labels twice", path)


def test_long_header_is_not_read(tmp_path, small_memory):
    # NumPy's own reader looks at a header after it has read it, whatever its length.
    head = b"\x93NUMPY\2\0" + struct.pack("<I", BOMB)
    path = write_bomb(tmp_path / "a.npz", "labels.npy", head, BOMB, {"images.npy": IMAGES})
    assert path.stat().st_size < BOMB >> 6
    refused(["labels", "header of"], path)
    for name in ("images.npy", "class_names.npy", "test_labels.npy"):
        members = {"images.npy": IMAGES, "labels.npy": LABELS, name: head}
        refused([name.removesuffix(".npy"), "header of"], write_npz(tmp_path / "b.npz", members))


def test_labels_and_names_count_towards_the_limit(tmp_path, small_memory):
    images, both = {"images.npy": IMAGES}, {"images.npy": IMAGES, "labels.npy": LABELS}
    count = BOMB // 8
    path = write_bomb(tmp_path / "a.npz", "labels.npy", header_of((count,), "<i8"), BOMB, images)
    refused(["labels", f"({count},)"], path)
    path = write_bomb(tmp_path / "b.npz", "train_labels.npy", header_of((count,), "<i8"), BOMB, both)
    refused("over the limit", path, memory_limit=BOMB // 2)
    path = write_bomb(tmp_path / "c.npz", "class_names.npy", header_of((2,), f"<U{BOMB // 8}"), BOMB, both)
    refused("class_names", path)
    refused("claims", write_npz(tmp_path / "d.npz", {**both, "images.npy": header_of((2**40, 1, 1)) + bytes(8)}))


def test_one_label_does_not_make_billions_of_classes(tmp_path, small_memory):
    for label, dtype in ((2**40, np.int64), (2**63 + 5, np.uint64), (2**31, np.uint32)):
        path = write_npz(tmp_path / "a.npz", {"images.npy": IMAGES, "labels.npy": np.array([0, 1, 0, label], dtype)})
        refused(["classes are over the limit"], path)
        wrapped = {"images.npy": IMAGES, "labels.npy": np.array([0, 1, 0, label], dtype), "class_names.npy": ["a", "b"]}
        refused("label", write_npz(tmp_path / "b.npz", wrapped))


def test_with_a_million_members_is_refused_unread(tmp_path, small_memory):
    name = b"images.npy"
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0)
    directory = (entry + name) * 200_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(directory), 0, 0)
    (tmp_path / "a.npz").write_bytes(directory + end)
    refused("directory of members is too large", tmp_path / "a.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_in_other_compressions_is_refused(tmp_path, compression):
    path = write_npz(tmp_path / "a.npz", {"images.npy": IMAGES, "labels.npy": LABELS}, compression)
    refused("compressed in a way", path)


def test_flipped_bits_are_noticed(tmp_path):
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
def test_hostile_headers_are_named(tmp_path, header):
    path = write_npz(tmp_path / "a.npz", {"images.npy": header + bytes(48), "labels.npy": LABELS})
    refused(str(path), path)
