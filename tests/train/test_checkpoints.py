"""Checkpoints: every kind of damage is found, and what does not belong to the run is refused."""

import errno
import json
import os
import random
import resource
import shutil
import zlib
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from train import checkpoints, manifests, parallel, processes, runs, saving, shards
from train import files as train_files
from train.commands import main
from train.config import Config, Model
from train.errors import CheckpointError, RunError, StorageError
from train.options import from_json, to_json, to_tree

CONFIG = Config(model=Model(width=0.25))


def state(step, width=40):
    """A state with what a real one has: named tuples, scalars, several types; of no structure to a compressor."""
    rng = np.random.default_rng(step)
    weights = {"kernel": rng.normal(size=(width, 30)).astype(np.float32), "bias": np.full(30, -0.0, np.float32)}
    return {
        "step": np.int32(step),
        "params": weights,
        "opt_state": (jax.tree.map(lambda leaf: leaf / 3, weights), ()),
        "key": np.array([1, step], np.uint32),
        "half": rng.normal(size=7).astype(jax.numpy.bfloat16),
    }


def write(folder, accuracies, config=CONFIG, **changes):
    """A run with a checkpoint for every accuracy, after steps 1, 2, ..."""
    run = runs.Run(folder)
    runs.create(run, config, 1500)
    with saving.open_writer(run, config) as writer:
        for step, accuracy in enumerate(accuracies, 1):
            writer.save(step, state(step, **changes), accuracy)
    return run


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("written") / "run", [0.5, 0.75])


@pytest.fixture
def run(written, tmp_path):
    return runs.Run(shutil.copytree(written.folder, tmp_path / "run"))


def restore(run, config=CONFIG, **options):
    return checkpoints.restore(run.checkpoints, state(0), config=config, **options)


def best_first(run):
    return checkpoints.best_first(checkpoints.open_all(run.checkpoints))


def assert_is(restored, step):
    assert restored.step == step
    for ours, theirs in zip(jax.tree.leaves(restored.state), jax.tree.leaves(state(step)), strict=True):
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


def test_what_is_read_is_what_was_written(run):
    assert_is(restore(run), 2)
    assert restore(run).skipped == {}
    assert jax.tree.structure(restore(run).state) == jax.tree.structure(state(0))


def test_the_last_two_and_the_best_are_kept(tmp_path):
    run = write(tmp_path / "run", [0.1, 0.8, 0.3, None, 0.8, 0.2, None])
    assert manifests.steps(run.checkpoints) == [5, 6, 7]
    assert best_first(run) == [5, 6, 7]
    assert best_first(write(tmp_path / "none", [None, None])) == [2, 1]


def test_the_best_is_looked_for_first_and_named_where_it_is_damaged(tmp_path):
    run = write(tmp_path / "run", [0.9, 0.3, 0.8])
    assert best_first(run) == [1, 3, 2]
    flip_a_bit(run.checkpoints / "2" / "manifest")
    assert best_first(run) == [2, 1, 3]  # it may have been the best
    flip_a_bit(run.checkpoints / "1" / "state")
    restored = restore(run, select="best")
    assert_is(restored, 3)
    assert list(restored.skipped) == [2, 1]


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def largest(folder):
    return max(files(folder), key=lambda path: path.stat().st_size)


def flip_a_bit(folder):
    """In the middle of the largest file."""
    path = largest(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def placed(tree, devices):
    """A state that so many devices keep in parts."""
    return parallel.make_engine("jit", devices=devices, batch_size=devices, shard_state=True).put_state(tree)


@pytest.fixture
def small_splits(monkeypatch):
    """Arrays of the tests' state are split, although they are small."""
    monkeypatch.setattr(parallel, "SMALLEST_SHARDED", 32)


def write_one(folder, saved):
    """A run with a checkpoint of this state, after step 1."""
    run = runs.Run(folder)
    runs.create(run, CONFIG, 1500)
    with saving.open_writer(run, CONFIG) as writer:
        writer.save(1, saved, 0.5)
    return run


@pytest.mark.slow
def test_a_state_in_parts_moves_from_eight_devices_to_two_and_back(tmp_path, small_splits):
    saved = state(1)
    for number, devices in enumerate((8, 2, 8)):
        split = placed(saved, devices)
        assert len(split["params"]["kernel"].addressable_shards) == devices
        assert split["params"]["kernel"].addressable_shards[0].data.shape == (40 // devices, 30)
        run = write_one(tmp_path / str(number), split)
        restored = restore(run)
        assert_is(restored, 1)
        leaves = manifests.open_step(run.checkpoints, 1).leaves
        assert {len(leaf.crcs) for leaf in leaves.values()} == {1, devices}
        saved = restored.state


@pytest.mark.slow
def test_a_flipped_bit_in_any_part_is_found_and_the_part_is_named(tmp_path, small_splits):
    """The arrays of another checkpoint, which Orbax reads without an error, under the manifest of this one."""
    run = write_one(tmp_path / "run", placed(state(1), 8))
    for part in range(8):
        flipped = state(1)
        flipped["params"]["kernel"].view(np.uint32)[5 * part + part % 5, 4 * part % 30] ^= 1 << (4 * part)
        other = write_one(tmp_path / f"other-{part}", placed(flipped, 8))
        shutil.rmtree(run.checkpoints / "1" / "state")
        shutil.copytree(other.checkpoints / "1" / "state", run.checkpoints / "1" / "state")
        with pytest.raises(CheckpointError, match=rf"the checksum of part {part + 1} of 8 of params/kernel does not"):
            restore(run)


def test_what_a_save_holds_does_not_change_with_the_next_step(small_splits):
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    split = manifests.flat(placed(state(1), 8))
    copies = shards.copied(split)
    summaries = shards.summarize(copies)
    jax.block_until_ready(step(split))
    for path, leaf in manifests.flat(state(1)).items():
        assert summaries[path].damage(np.asarray(copies[path])) is None
        np.testing.assert_array_equal(copies[path], leaf)
    assert not copies["params/kernel"].is_fully_replicated  # it is copied where it lies


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_flips_and_truncations_are_found_or_harmless(pytestconfig, tmp_path, devices, small_splits):
    """One checkpoint with one flipped bit, or one file cut short: never a wrong state, step, config or accuracy."""
    flips = pytestconfig.getoption("flips")
    run = write_one(tmp_path / "run", placed(state(1), devices))
    rng, outcomes = random.Random(flips), {"found": 0, "harmless": 0}
    paths = files(run.checkpoints)
    for index in range(flips + flips // 5):
        path = paths[index % len(paths)]  # in turn: their names, and so their order, differ from run to run
        before = path.read_bytes()
        damaged = bytearray(before)
        if index < flips and damaged:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        elif damaged:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        restored = None
        with suppress(CheckpointError):
            restored = restore(run)
        outcomes["found" if restored is None else "harmless"] += 1
        if restored is not None:
            assert path.relative_to(run.checkpoints) != Path("1/manifest/metadata")  # its own checksum covers all of it
            assert_is(restored, 1)
            assert manifests.open_step(run.checkpoints, 1).accuracy == 0.5
        path.write_bytes(before)
    print(f"{flips} flipped bits, {flips // 5} truncations: {outcomes}")
    assert_is(restore(run), 1)
    assert outcomes["found"]  # how many differs from run to run: Orbax leaves copies of arrays that nothing reads


@pytest.mark.parametrize("part", ["state", "manifest"])
def test_damage_falls_back_and_is_set_aside(run, part):
    flip_a_bit(run.checkpoints / "2" / part)
    assert [bool(damage) for _, damage in checkpoints.verify(run.checkpoints, CONFIG)] == [False, True]
    restored = checkpoints.resume(run, state(0), config=CONFIG)
    assert_is(restored, 1)
    assert list(restored.skipped) == [2]
    # The run comes to step 2 again, and its checkpoint takes the damaged one's place.
    with saving.open_writer(run, CONFIG) as writer:
        writer.save(2, state(2))
    assert_is(restore(run), 2)
    assert (run.checkpoints / "damaged-2").is_dir()


def test_no_intact_checkpoint_is_an_error_and_changes_nothing(run):
    for step in (1, 2):
        (run.checkpoints / str(step) / "manifest" / "metadata").write_text("{}")
    before = {path: path.read_bytes() for path in files(run.folder)}
    with pytest.raises(CheckpointError, match=r"no intact checkpoint \(step 2: .*; step 1: "):
        checkpoints.resume(run, state(0), config=CONFIG)
    assert {path: path.read_bytes() for path in files(run.folder)} == before


@pytest.fixture
def at_once(monkeypatch):
    """Later tries without the pauses between them."""
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["state", "manifest"])
def test_a_file_that_the_disk_does_not_give_is_no_damage(run, at_once, part):
    """The memory of this process, whose first byte nobody can read, in place of the file: an input/output error."""
    file = largest(run.checkpoints / "2" / part)
    file.unlink()
    file.symlink_to("/proc/self/mem")
    before = files(run.folder)
    with pytest.raises(StorageError, match=r"checkpoints/2 cannot be read now .*Input/output error") as caught:
        checkpoints.resume(run, state(0), config=CONFIG)
    assert "\n" not in str(caught.value)
    assert files(run.folder) == before
    found = dict(checkpoints.verify(run.checkpoints, CONFIG))
    assert found[1] is None
    assert "cannot be read now" in found[2]
    if part == "manifest":  # the accuracies in it say what to keep
        with pytest.raises(StorageError, match="cannot be read now"):
            write_more(run)


def test_errors_that_pass_are_tried_again(run, at_once, monkeypatch):
    original, errors = train_files.open_regular, [errno.ESTALE, errno.EIO]

    def open_regular(path, *, limit):
        if errors:
            raise OSError(errors.pop(), "not now")
        return original(path, limit=limit)

    monkeypatch.setattr(train_files, "open_regular", open_regular)
    assert_is(checkpoints.resume(run, state(0), config=CONFIG), 2)
    assert not errors


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        PermissionError(errno.EACCES, "Permission denied"),
        ValueError("RESOURCE_EXHAUSTED: Failed to open: Too many open files"),
    ],
)
def test_what_orbax_says_of_the_system_is_no_damage(run, at_once, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ocp.Checkpointer, "restore", fail)
    with pytest.raises(StorageError, match="cannot be read now"):
        checkpoints.resume(run, state(0), config=CONFIG)
    assert manifests.steps(run.checkpoints) == [1, 2]


def change_manifest(run, step, **changes):
    """Writes a manifest of other content, with a checksum that is right."""
    path = run.checkpoints / str(step) / "manifest" / "metadata"
    content = {**json.loads(path.read_text()), **changes}
    del content["crc32"]
    path.write_text(json.dumps({**content, "crc32": zlib.crc32(json.dumps(content, sort_keys=True).encode())}))


@pytest.mark.parametrize(
    "changes",
    [
        {"leaves": []},
        {"leaves": {"step": ["int32[]"]}},
        {"leaves": {"step": [4, "int32[]"]}},
        {"leaves": {"step": {}}},
        {"leaves": {"step": ["int32[]", 0, 1]}},
        {"accuracy": "0.5"},
        {"accuracy": [0.5]},
    ],
)
def test_manifests_of_any_form_are_damage(run, changes):
    change_manifest(run, 2, **changes)
    restored = checkpoints.restore(run.checkpoints, state(0), config=CONFIG)
    assert_is(restored, 1)
    assert restored.skipped == {2: "not a deformreg checkpoint manifest"}
    with saving.open_writer(run, CONFIG):
        pass  # the accuracies say what to keep
    assert [bool(damage) for _, damage in checkpoints.verify(run.checkpoints, CONFIG)] == [False, True]


def test_a_manifest_nested_without_end_is_damage(run):
    (run.checkpoints / "2" / "manifest" / "metadata").write_text("[" * 100_000)
    assert_is(restore(run), 1)


def test_a_checkpoint_of_another_version_is_named_and_verify_goes_on(run, written, capsys):
    change_manifest(run, 2, config={**to_tree(CONFIG), "later": 1})
    with pytest.raises(CheckpointError, match=r"checkpoints/2: the config has no field 'later'"):
        restore(run)
    assert main(["verify", str(run.folder), str(written.folder)]) == 1
    out = capsys.readouterr().out
    assert f"{run.folder}: step 2: the config has no field 'later'" in out
    assert out.count("intact") == 3


def test_arrays_that_claim_more_than_the_manifest_are_not_read(run, tmp_path, monkeypatch):
    larger = write(tmp_path / "larger", [0.5], width=400)
    shutil.rmtree(run.checkpoints / "2" / "state")
    shutil.copytree(larger.checkpoints / "1" / "state", run.checkpoints / "2" / "state")
    monkeypatch.setattr(ocp.Checkpointer, "restore", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(manifests.Damaged, match=r"kernel is float32\[400, 30\], its manifest has float32\[40, 30\]"):
        manifests.open_step(run.checkpoints, 2).read()


def test_nothing_there_is_none(tmp_path):
    assert checkpoints.resume(runs.Run(tmp_path / "none"), state(0), config=CONFIG) is None
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        checkpoints.restore(tmp_path / "none", state(0), config=CONFIG)


def test_other_processes_follow_what_process_0_found(run, monkeypatch):
    def told(*numbers):
        sent = iter(numbers)
        monkeypatch.setattr(processes, "is_lead", lambda: False)
        monkeypatch.setattr(processes, "from_lead", lambda _: next(sent))
        return checkpoints.resume(run, state(0), config=CONFIG)

    outcomes = checkpoints._Outcome
    assert told(outcomes.NOTHING) is None
    assert_is(told(outcomes.FOUND, 1), 1)
    with pytest.raises(CheckpointError, match="process 0 finds no checkpoint to continue from"):
        told(outcomes.UNUSABLE)
    with pytest.raises(StorageError, match="process 0 cannot read the newest checkpoint now"):
        told(outcomes.UNREADABLE)
    assert manifests.steps(run.checkpoints) == [1, 2]
    shutil.rmtree(run.folder)  # as where a host has lost its mount
    with pytest.raises(RunError, match=r"process 0 does not see .*/checkpoints/2, which .* on the same file system"):
        told(outcomes.FOUND, 2)


@pytest.mark.parametrize(("select", "step", "expected"), [("last", 3, [3]), ("best", 1, [1, 2, 3])])
def test_each_manifest_is_read_once(tmp_path, monkeypatch, select, step, expected):
    run, read = write(tmp_path / "run", [0.9, 0.3, 0.8]), []
    open_step = manifests.open_step
    monkeypatch.setattr(manifests, "open_step", lambda folder, step: read.append(step) or open_step(folder, step))
    assert_is(restore(run, select=select), step)
    assert read == expected


def test_another_config_is_refused_by_field(run):
    other = replace(CONFIG, seed=7, model=Model(width=0.5), devices=3)
    expected = r"of another config \(stored, current\): model.width: 0.25, 0.5; seed: 0, 7$"
    with pytest.raises(CheckpointError, match=expected):
        restore(run, config=other)


def test_another_network_is_refused_by_array(tmp_path):
    run = write(tmp_path / "run", [0.5], width=20)
    expected = r"of another network.*params/kernel: float32\[20, 30\], float32\[40, 30\]"
    with pytest.raises(CheckpointError, match=expected):
        restore(run)


def test_verify_names_every_step_and_fails_on_damage(run, capsys, tmp_path):
    assert main(["verify", str(run.folder), "--json", str(tmp_path / "intact.json")]) == 0
    assert capsys.readouterr().out == "".join(f"{run.folder}: step {step}: intact\n" for step in (1, 2))
    assert json.loads((tmp_path / "intact.json").read_text()) == {str(run.folder): {"1": None, "2": None}}
    manifest = run.checkpoints / "1" / "manifest" / "metadata"
    manifest.write_text(manifest.read_text().replace("0.5", "0.9"))
    assert main(["verify", str(run.folder)]) == 1
    assert "step 1: the checksum of its manifest does not match" in capsys.readouterr().out


def test_verify_notices_a_changed_config(run, capsys):
    run.config.write_text(to_json(replace(from_json(run.config.read_text()), seed=1)))
    assert main(["verify", str(run.folder)]) == 1
    assert capsys.readouterr().out.count("of another config (stored, current): seed: 0, 1") == 2


def test_a_vanished_folder_is_named(run):
    with saving.open_writer(run, CONFIG) as writer:
        shutil.rmtree(run.folder)
        with pytest.raises(StorageError, match="has vanished"):
            writer.save(3, state(3))
    assert not run.config.exists()


def test_a_full_disk_is_one_line_and_spares_earlier_checkpoints(run):
    """Files may not grow beyond a kilobyte: what a full disk does to the threads that write."""
    with pytest.raises(StorageError, match="a checkpoint cannot be written") as caught, files_limited_to(1024):
        write_more(run)
    assert "\n" not in str(caught.value)
    assert_is(restore(run), 2)
    write_more(run)
    assert_is(restore(run), 4)


@contextmanager
def files_limited_to(size):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def write_more(run):
    with saving.open_writer(run, CONFIG) as writer:
        writer.save(3, state(3))
        writer.save(4, state(4))


def test_checkpoints_that_cannot_be_opened_are_one_line(run):
    shutil.rmtree(run.checkpoints)
    run.checkpoints.write_text("not a folder")
    with pytest.raises(StorageError, match="Not a directory"):
        write_more(run)


@pytest.mark.parametrize(
    ("old", "new", "step", "skipped"),
    [
        ("2", "4", 1, {4: "it holds step 2: its folder was renamed"}),
        ("1", "4", 2, {4: "it holds step 1: its folder was renamed"}),
        ("2", "step_2", 1, {}),
    ],
)
def test_a_renamed_step_is_not_taken_for_what_its_name_says(run, old, new, step, skipped):
    (run.checkpoints / old).rename(run.checkpoints / new)
    restored = checkpoints.resume(run, state(0), config=CONFIG)
    assert restored.skipped == skipped
    assert_is(restored, step)
    write_more(run)
    assert_is(restore(run), 4)


def test_what_orbax_would_take_for_a_step_is_named(run):
    (run.checkpoints / "2").rename(run.checkpoints / "02")
    with pytest.raises(CheckpointError, match=r"checkpoints/02 is not the folder of a step: rename it"):
        checkpoints.resume(run, state(0), config=CONFIG)
    (run.checkpoints / "02").rename(run.checkpoints / "2")
    (run.checkpoints / "4").write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"checkpoints/4 is not the folder of a step: .* or move it away"):
        checkpoints.resume(run, state(0), config=CONFIG)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "manifest/metadata", "state/_METADATA", "state/pipe", "link"])
def test_what_is_no_file_is_never_opened(run, name, step):
    """A pipe would block for ever, in this program or in Orbax; a link to a folder would lead anywhere."""
    path = run.checkpoints / str(step) / name
    path.unlink(missing_ok=True)
    if name == "link":
        path.symlink_to(run.checkpoints)
    else:
        os.mkfifo(path)
    found = dict(checkpoints.verify(run.checkpoints, CONFIG))
    assert "not a regular file" in found[step]
    assert found[3 - step] is None
    restored = checkpoints.resume(run, state(0), config=CONFIG)
    assert list(restored.skipped) == [step]
    assert "is not a regular file" in restored.skipped[step]
    assert_is(restored, 3 - step)
    write_more(run)
    assert_is(restore(run), 4)
    assert (run.checkpoints / f"damaged-{step}").is_dir()


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "manifest/metadata", "state/_METADATA"])
def test_files_too_large_for_memory_are_not_read(run, name):
    """Three gigabytes that take no room."""
    os.truncate(run.checkpoints / "2" / name, 3 << 30)
    assert dict(checkpoints.verify(run.checkpoints, CONFIG))[2]
    assert_is(checkpoints.resume(run, state(0), config=CONFIG), 1)


@pytest.fixture
def removing(monkeypatch):
    """A function that makes a training remove a step at the moment when somebody reads its arrays."""

    def remove(run, *steps):
        original, left = manifests._read_state, list(steps)

        def read(folder, *arguments):
            if folder.parent.name in map(str, left):
                left.remove(int(folder.parent.name))
                shutil.rmtree(folder.parent)
            return original(folder, *arguments)

        monkeypatch.setattr(manifests, "_read_state", read)

    return remove


def test_a_step_that_a_training_removes_meanwhile_is_no_damage(run, removing, capsys):
    removing(run, 1)
    assert main(["verify", str(run.folder)]) == 0
    assert capsys.readouterr().out == f"{run.folder}: step 2: intact\n"


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_newer_step_is_read_in_place_of_one_removed_meanwhile(run, removing, select):
    removing(run, 2)
    restored = restore(run, select=select)
    assert_is(restored, 1)
    assert restored.skipped == {}


def test_steps_vanish_whole_and_leave_nothing(run, monkeypatch):
    """Removed file by file, they would look damaged to a reader; killed meanwhile, a training would leave a part."""
    with monkeypatch.context() as patched:
        patched.setattr(saving, "_purge", lambda _: None)
        write_more(run)
        assert_is(checkpoints.restore(run.checkpoints / ".removed", state(0), config=CONFIG), 1)
    (run.checkpoints / "9.orbax-checkpoint-tmp-1").mkdir()
    with saving.open_writer(run, CONFIG) as writer:
        for step in (5, 6):
            writer.save(step, state(step))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["2", "5", "6"]
