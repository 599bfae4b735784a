"""Networks of a user's own: named on the command line or passed to `fit`, and never imported for a stranger."""

from __future__ import annotations

import sys
from dataclasses import replace

import flax.linen as nn
import numpy as np
import pytest
from data_files import write_arrays
from running import command
from settings import TINY, OneLayer

from train import loop, own, runs
from train.config import Data, Model
from train.errors import ConfigError
from train.options import check, to_json
from train.restored import open_run

MODULE = """
import flax.linen as nn
import jax.numpy as jnp

class Net(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        features = nn.Dense(16)(images.reshape(len(images), -1))
        return nn.Dense(self.num_classes)(nn.Dropout(0.5, deterministic=not train)(nn.gelu(features)))

class Counting(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        if train and not self.is_initializing():
            count.value += 1
        temperature = self.param("temperature", nn.initializers.ones, ())
        return temperature * nn.Dense(self.num_classes)(images.reshape(len(images), -1))

class Flat(nn.Module):
    def __call__(self, images, train=False):
        return images.reshape(len(images), -1)

def flat(num_classes):
    return Flat()

def text(num_classes):
    return "no module"

def strict(classes):
    return Net(classes)

class Deep(nn.Module):
    widths: list

def listed(num_classes):
    return Deep([16, num_classes])

number = 3
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a module of networks, and a data set."""
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "__init__.py").write_text("")
    (tmp_path / "stranger" / "nets.py").write_text(MODULE)
    write_arrays(tmp_path / "set.npz")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("stranger", "stranger.nets"):
        sys.modules.pop(name, None)


def fit(place, name, *arguments):
    options = (
        "--data.name",
        place / "set.npz",
        "--batch-size",
        "8",
        "--epochs",
        "1",
        "--no-evaluate",
        "--devices",
        "1",
    )
    return command("fit", "digits-standard", "--run-dir", place / "run", "--model.name", name, *options, *arguments)


@pytest.mark.slow
def test_a_network_of_ones_own_trains_and_is_opened_only_when_named_again(place, capsys):
    assert fit(place, "stranger.nets:Net", "--schedule", "constant") == 0
    assert runs.load_config(place / "run").model == Model(name="stranger.nets:Net")
    for name in ("stranger", "stranger.nets"):
        sys.modules.pop(name)
    capsys.readouterr()
    for arguments in (
        ("evaluate", place / "run"),
        ("certify", place / "run"),
        ("export", place / "run"),
        ("fit", "--resume", place / "run", "--epochs", "2"),
        ("evaluate", place / "run", "--model.name", "stranger:other"),
    ):
        assert command(*arguments) == 2, arguments
        err = capsys.readouterr().err
        assert "say --model.name" in err or "no function or class other" in err
        assert err.count("\n") == 1
        assert "stranger.nets" not in sys.modules
    with pytest.raises(ConfigError, match=r"say --model.name again \(from Python: model=\.\.\.\)"):
        open_run(place / "run")
    assert "stranger.nets" not in sys.modules
    again = ("--model.name", "stranger.nets:Net")
    assert command("fit", "--resume", place / "run", "--epochs", "2", *again, "--no-evaluate") == 0
    assert "continuing after step 4" in capsys.readouterr().out
    from stranger.nets import Net

    assert open_run(place / "run", model=Net).logits_fn(np.zeros((3, 8, 8, 1), np.float32)).shape == (3, 2)


@pytest.mark.slow
def test_counts_and_scalars_of_ones_own_network_are_kept(place):
    name = "stranger.nets:Counting"
    assert fit(place, name, "--accumulate", "2") == 0
    from stranger.nets import Counting

    config = replace(runs.load_config(place / "run"), init=str(place / "run"))
    started = loop.fit(config, place / "started", model=Counting)
    count, temperature = started.batch_stats["count"], started.params["temperature"]
    assert (count.dtype, count.shape, int(count)) == (np.int32, (), 8)  # 4 steps of each
    assert temperature.shape == ()
    assert open_run(place / "started", model=Counting).logits_fn(np.zeros((3, 8, 8, 1), np.float32)).shape == (3, 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.nets:Net", "nowhere.nets cannot be imported (ModuleNotFoundError: No module named 'nowhere')"),
        ("stranger.nets:Other", "stranger.nets has no function or class Other"),
        ("stranger.nets:number", "stranger.nets has no function or class number"),
        ("stranger.nets:text", "the network's factory must return a Flax Linen module, got str"),
        ("stranger.nets:strict", "the network's factory fails when called with num_classes=2 (TypeError: "),
        ("stranger.nets:listed", "of the network Deep must be hashable (unhashable type: 'list'): give it a tuple in "),
        ("stranger.nets:flat", "stranger.nets:flat must return logits [n, 2] of images [n, ...], got [2, 64]"),
        ("nets/Net.py:Net", "--model.name must be one of small-cnn, "),
    ],
)
def test_what_is_no_network_is_named(place, capsys, name, said):
    assert fit(place, name) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (place / "run" / "config.json").exists()


def test_options_of_the_networks_here_have_no_effect_on_another():
    with pytest.raises(ConfigError, match=r"--model\.width has no effect on a network of your own: leave it out"):
        check(replace(TINY, model=Model(name="a.b:c", width=0.5)))
    with pytest.raises(ConfigError, match=r"got 'resnet_18': did you mean resnet-18\?"):
        check(replace(TINY, model=Model(name="resnet_18")))
    assert [own.is_own(name) for name in ("a.b:c", "a:b", "a", ":b", "a:", "a-b:c", "a:b:c")] == [True, True] + 5 * [
        False
    ]


def test_a_config_from_a_stranger_imports_nothing(tmp_path):
    runs.create(runs.Run(tmp_path), replace(TINY, model=Model(name="antigravity:fly")), 100)
    assert '"antigravity:fly"' in to_json(runs.load_config(tmp_path))
    assert "antigravity" not in sys.modules


def test_a_factory_may_be_passed_from_python(place, capsys):
    config = replace(TINY, data=Data(name=str(place / "set.npz")), devices=1, batch_size=8)
    loop.fit(config, place / "run", model=OneLayer)
    said = "config.model: width, norm without effect on the network that was passed as model=..."
    assert said in capsys.readouterr().err.splitlines()
    assert runs.load_config(place / "run").model.given == "OneLayer"
    assert open_run(place / "run", model=OneLayer(2)).step == 4


class Shifted(nn.Module):
    mean: np.ndarray | tuple[float, ...]


def test_a_module_that_cannot_be_hashed_is_refused_before_the_training():
    """It is a static argument of what is compiled, first after an epoch."""
    with pytest.raises(ConfigError, match=r"Shifted must be hashable \(unhashable type: 'numpy.ndarray'\)"):
        own.make(Shifted(np.zeros(3)), 2)
    assert own.make(Shifted((0.0, 0.0, 0.0)), 2).mean == (0.0, 0.0, 0.0)
