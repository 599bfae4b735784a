"""The order of examples, batches of them, and transfers ahead."""

import itertools
import threading
from dataclasses import replace

import jax
import numpy as np
import pytest

from train import data
from train.data import DataError
from train.data.order import batch_indices, permutation


def take(batches, count):
    return list(itertools.islice(batches, count))


def labels_of(batches):
    return [batch["label"].tolist() for batch in batches]


FROZEN_ORDER = [3, 2, 1, 6, 0, 7, 4, 5]


def test_the_order_is_frozen():
    # Resuming with other versions of NumPy and Grain must find the same order.
    assert permutation(8, 0, 0).tolist() == FROZEN_ORDER
    assert batch_indices(1, size=8, batch_size=5, seed=0)[:3].tolist() == FROZEN_ORDER[5:]


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
    (whole,) = take(data.train_batches(numbered, batch_size=8, seed=5, first=3), 1)
    assert (whole["position"].tolist(), whole["position"].dtype) == (list(range(8)), np.int32)
    options = {"batch_size": 8, "seed": 5, "first": 3, "process_count": count}
    parts = [next(data.train_batches(numbered, process_index=index, **options)) for index in range(count)]
    for name, expected in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected)


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
