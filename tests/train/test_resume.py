"""Runs that are continued: by their folder alone, for more epochs, with data that have moved or changed."""

from __future__ import annotations

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from data_files import write_arrays, write_images
from running import command
from settings import TINY, OneLayer

from train import files, loop, manifests, runs, task
from train.config import Data, Model
from train.data import load, places
from train.errors import DataError, RunError
from train.methods.given import Given
from train.optimizers import Muon
from train.options import differences, to_json
from train.restored import open_run
from train.schedules import Constant, Cosine, Linear, Step
from train.state import predict
from train.task import build, open_split


def small(path, **changes):
    return replace(TINY, data=Data(name=str(path)), model=Model(width=0.1, norm="group"), devices=1, **changes)


MAKE_MODEL = task.make_model


@pytest.fixture(scope="module", autouse=True)
def one_layer():
    """Networks that compile in no time: what is stored and resumed does not depend on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "make_model", lambda config, num_classes: OneLayer(num_classes))
        yield


@pytest.fixture
def own_layers(monkeypatch):
    """The networks that configs name, for tests of their layers."""
    monkeypatch.setattr(task, "make_model", MAKE_MODEL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch on an ``.npz`` file beside it."""
    folder = tmp_path_factory.mktemp("trained")
    loop.fit(small(write_arrays(folder / "set.npz")), folder / "run")
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of it, whose config still names the first one's data."""
    return shutil.copytree(trained, tmp_path / "copy")


def last_leaves(run):
    step = max(manifests.steps(run / "checkpoints"))
    return manifests.open_step(run / "checkpoints", step).read()


def test_a_run_continues_by_its_folder_alone_for_more_epochs(folder, capsys):
    """To the bit as if it had been told so from the start."""
    config = runs.load_config(folder / "run")
    loop.fit(replace(config, epochs=2), folder / "whole")
    assert command("fit", "--resume", folder / "run", "--epochs", "2", "--no-evaluate") == 0
    captured = capsys.readouterr()
    assert "continuing after step 2" in captured.out
    assert "epochs: 1, 2" in captured.err
    assert runs.load_config(folder / "run") == replace(config, epochs=2)
    ours, theirs = last_leaves(folder / "run"), last_leaves(folder / "whole")
    assert {path: leaf.tobytes() for path, leaf in ours.items()} == {
        path: leaf.tobytes() for path, leaf in theirs.items()
    }
    assert command("verify", folder / "run") == 0


def test_steps_that_were_taken_before_are_not_traced_and_it_says_so(folder, capsys):
    loop.fit(runs.load_config(folder / "run"), folder / "run", resume=True, profile=range(0, 2))
    assert "--profile 0:2: these steps have been taken; nothing is traced\n" in capsys.readouterr().err
    assert not (folder / "run" / "profile").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("own_layers")
def test_a_network_with_dropout_continues_to_the_bit(trained, tmp_path):
    config = small(trained / "set.npz")
    options = Model(name="resnet-20", width=0.1, norm="group", activation="gelu", dropout=0.3, stochastic_depth=0.3)
    config = replace(config, model=options, epochs=2)
    loop.fit(config, tmp_path / "whole")
    loop.fit(replace(config, epochs=1), tmp_path / "run")
    loop.fit(config, tmp_path / "run", resume=True)
    ours, theirs = last_leaves(tmp_path / "run"), last_leaves(tmp_path / "whole")
    assert int(ours["step"]) == 4
    assert all(leaf.tobytes() == theirs[path].tobytes() for path, leaf in ours.items())


@pytest.mark.slow
@pytest.mark.usefixtures("own_layers")
def test_an_average_and_the_state_of_muon_are_resumed_to_the_bit(tmp_path):
    optimizer = Muon(clip_norm=1.0, decay_all=False)
    config = small(write_arrays(tmp_path / "set.npz"), optimizer=optimizer, average=0.9, epochs=2)
    loop.fit(config, tmp_path / "whole")
    loop.fit(replace(config, epochs=1), tmp_path / "run")
    state = loop.fit(config, tmp_path / "run", resume=True)
    ours, theirs = last_leaves(tmp_path / "run"), last_leaves(tmp_path / "whole")
    assert {path: leaf.tobytes() for path, leaf in ours.items()} == {
        path: leaf.tobytes() for path, leaf in theirs.items()
    }
    opened = open_run(tmp_path / "run")
    params, batch_stats = state.average
    model = build(config, open_split(config, "test")).model
    expected = predict(model, params, batch_stats, opened.images)
    np.testing.assert_array_equal(jax.jit(opened.logits_fn)(opened.images), expected)


@pytest.mark.parametrize(
    ("schedule", "epochs", "said"),
    [
        (Constant(), 4, None),
        (Step(), 4, None),
        (Cosine(), 4, r"may grow under --schedule constant or step, but cosine ends .* train 4 epochs in another"),
        (Constant(), 2, r"epochs: 3, 2; --epochs may only grow: leave it at 3"),
    ],
)
def test_epochs_may_grow_where_the_schedule_does_not_end(tmp_path, schedule, epochs, said):
    stored = replace(TINY, schedule=schedule, epochs=3)
    runs.create(runs.Run(tmp_path), stored, 100)
    wanted = replace(stored, epochs=epochs)
    if said is None:
        assert runs.claim(tmp_path, wanted, resume=True)[1] == ["epochs: 3, 4"]
    else:
        with pytest.raises(RunError, match=said):
            runs.claim(tmp_path, wanted, resume=True)


@pytest.mark.parametrize(
    "schedule", [Constant(warmup_epochs=0.5), Step(decay_epochs=(1, 2)), Cosine(), Linear(warmup_epochs=1.0)]
)
def test_a_schedule_says_whether_it_ends(schedule):
    """The law behind it: the rates of the first epochs, told how many there are."""
    short, long = (schedule.make(0.1, epochs, 10) for epochs in (3, 5))
    assert schedule.ends == any(float(short(step)) != float(long(step)) for step in range(30))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--resume"], "fit needs a preset, or --resume and the folder of a run"),
        (["--resume", "--epochs", "3"], "fit needs a preset, or --resume and the folder of a run"),
        (["--epochs", "3"], "fit needs a preset, or --resume and the folder of a run"),
        (["--resume", "nowhere"], "nowhere holds no run"),
        (["--resume", "RUN", "--run-dir", "other"], "--resume names the run folder here"),
        (["--resume", "RUN", "--seed", "5"], "seed: 0, 5"),
    ],
)
def test_what_cannot_be_continued_is_named(folder, capsys, arguments, said):
    arguments = [str(folder / "run") if word == "RUN" else word for word in arguments]
    assert command("fit", *arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_run_of_a_script_is_continued_there(tmp_path, capsys):
    runs.create(runs.Run(tmp_path), replace(TINY, method=Given("mine")), 100)
    assert command("fit", "--resume", tmp_path) == 2
    assert "the method 'mine' comes from a script" in capsys.readouterr().err


def test_paths_are_stored_absolute(tmp_path, monkeypatch):
    """Else another file of that name would be taken, wherever a later command starts."""
    monkeypatch.chdir(write_arrays(tmp_path / "set.npz").parent)
    config = small("set.npz")
    loop.fit(replace(config, data=replace(config.data, data_dir="cache")), "run")
    stored = runs.load_config(tmp_path / "run")
    assert (stored.data.name, stored.data.data_dir) == (str(tmp_path / "set.npz"), str(tmp_path / "cache"))
    monkeypatch.chdir(write_arrays(tmp_path / "elsewhere" / "set.npz", seed=1).parent)
    first = load(str(tmp_path / "set.npz"), split="test").read(np.arange(32))[0]
    np.testing.assert_array_equal(open_split(stored, "test").read(np.arange(32))[0], first)


def test_names_are_made_absolute_by_kind(tmp_path, monkeypatch):
    write_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    expected = {
        "folder:images": f"folder:{tmp_path}/images",
        "images": f"{tmp_path}/images",
        "sub/../set.npz": f"{tmp_path}/set.npz",
        "digits": "digits",
        "cifar10": "cifar10",
    }
    assert {name: places.absolute(name) for name in expected} == expected
    assert all(places.absolute(name) == name for name in expected.values())
    assert [places.path_of(name) is None for name in expected.values()] == [False, False, False, True, True]


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_data_that_have_moved_are_found(tmp_path, kind):
    """By the place itself, or the folder that it was moved into; nowhere else, and never silently."""
    old, new = tmp_path / "old" / "set", tmp_path / "new" / "set"
    if kind == "npz":
        old, new = (write_arrays(path.with_suffix(".npz")) for path in (old, new))
        name = str(old)
    else:
        for path in (old, new):
            write_images(path)
            write_images(path, split="test")
        name = f"folder:{old}"
    config = replace(TINY, data=Data(name=name, data_dir=str(tmp_path / "cache")))
    for place in (new, new.parent):
        assert open_split(config, "test", str(place)).name == f"{new}, split test"
    with pytest.raises(DataError, match=r"cache is not .*old/set\S*, nor holds it: say by --data-dir"):
        open_split(config, "test", str(tmp_path / "cache"))
    assert open_split(config, "test").name == f"{old}, split test"


def test_a_run_continues_with_data_that_have_moved(folder, trained, capsys):
    """As `--data-dir` or `--data.name` say, while others of that name are still at the old place."""
    moved = folder / "moved" / "set.npz"
    moved.parent.mkdir()
    (folder / "set.npz").rename(moved)
    old = runs.load_config(folder / "run").data.name
    assert command("fit", "--resume", folder / "run", "--data-dir", moved.parent, "--no-evaluate") == 0
    assert f"data.name: '{old}', '{moved}'" in capsys.readouterr().err
    assert runs.load_config(folder / "run").data.name == str(moved)
    assert open_run(folder / "run").images.shape == (32, 8, 8, 1)
    config = runs.load_config(folder / "run")
    again = replace(config, data=replace(config.data, name=str(moved.rename(folder / "third.npz")), data_dir=None))
    loop.fit(again, folder / "run", resume=True)
    assert runs.load_config(folder / "run").data.name == str(folder / "third.npz")


def test_another_kind_of_data_is_no_move():
    stored, other = (replace(TINY, data=Data(name=name)) for name in ("/a/set.npz", "digits"))
    assert differences(stored, other).fixed == ["data.name: '/a/set.npz', 'digits'"]
    assert differences(stored, replace(TINY, data=Data(name="/b/set.npz"))).fixed == []


def test_other_contents_are_refused(tmp_path):
    run = runs.Run(tmp_path)
    runs.create(run, TINY, 100, "crc:1")
    runs.check_data(run, 100, "crc:1")
    runs.check_data(run, 100)
    with pytest.raises(RunError, match="was trained on other images than there are now, as many of them"):
        runs.check_data(run, 100, "crc:2")
    runs.create(run, TINY, 100)
    assert files.read_json(run.environment, limit=1 << 20)["data"] == "crc:1"
    files.write_json(run.environment, {"training_images": 100})
    runs.check_data(run, 100, "crc:2")  # of an older version


def test_a_file_of_other_images_in_the_place_of_the_first_is_refused(folder, capsys):
    """As many, of the same shape and classes."""
    write_arrays(folder / "set.npz", seed=1)
    arguments = ("fit", "--resume", folder / "run", "--data-dir", folder, "--epochs", "2", "--no-evaluate")
    assert command(*arguments) == 2
    assert "was trained on other images than there are now" in capsys.readouterr().err
    write_arrays(folder / "set.npz")
    assert command(*arguments) == 0


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_a_config_that_names_a_place_makes_nothing_there(folder, tmp_path, monkeypatch, name):
    """Neither an embedded set nor decoded copies: only a command line says where to write."""
    monkeypatch.setenv("DEFORMREG_DATA", str(tmp_path / "default"))
    place = tmp_path / "place"
    if name == "folder":
        write_images(tmp_path / "images", split="train")
        write_images(tmp_path / "images", split="test")
        name = f"folder:{tmp_path / 'images'}"
    config = replace(runs.load_config(folder / "run"), data=Data(name=name, data_dir=str(place)))
    (folder / "run" / "config.json").write_text(to_json(config))
    for arguments in (
        ("evaluate", folder / "run"),
        ("certify", folder / "run"),
        ("fit", "--resume", folder / "run"),
        ("evaluate", folder / "run", "--transfer-from", folder / "run"),
    ):
        assert command(*arguments) == 2
        assert not place.exists()
    if name == "digits":  # from its package, in the default place
        assert open_split(config, "test", write=False).name == "digits, split test"
        assert (tmp_path / "default" / "digits").is_dir()


@pytest.mark.parametrize(
    ("command_name", "name"),
    [("evaluate", "digits"), ("certify", "mnist5k"), ("export", "digits"), ("evaluate", "cifar10")],
)
def test_a_place_without_the_set_is_named_and_not_made(folder, tmp_path, capsys, name, command_name):
    config = replace(runs.load_config(folder / "run"), data=Data(name=name))
    (folder / "run" / "config.json").write_text(to_json(config))
    assert command(command_name, folder / "run", "--data-dir", tmp_path / "missing") == 2
    _, err = capsys.readouterr()
    assert (err.count("\n"), str(tmp_path / "missing") in err, name in err) == (1, True, True)
    assert not (tmp_path / "missing").exists()
