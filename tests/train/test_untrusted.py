"""Run folders from strangers: they run no code, are refused in one line, and lead to no writing outside of them."""

from __future__ import annotations

import pytest

from train import runs
from train.commands import main
from train.config import Config
from train.errors import ConfigError
from train.options import from_json, to_json


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
        '{"method": {"name": "flow-gradient", "weight": NaN}}',
        '{"method": {"name": "flow-gradient", "weight": 1' + "0" * 400 + "}}",
        '{"method": {"name": "os.system"}}',
        '{"method": {"name": ["standard"]}}',
        '{"epochs": 1' + "0" * 30 + "}",
        '{"seed": 18446744073709551616}',
        '{"__class__": "os.system"}',
        '{"model": {"name": ["vgg-11"]}}',
        '{"schedule": {"name": "step", "decay_epochs": [[1]]}}',
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
        with pytest.raises(ConfigError, match=r"config\.json"):
            runs.load_config(tmp_path)
    assert from_json(to_json(Config())) == Config()


def test_an_export_follows_no_link_of_a_run_folder(tmp_path, capsys):
    run, outside = runs.Run(tmp_path / "run"), tmp_path / "outside"
    runs.create(run, Config(), 1500)
    outside.mkdir()
    (run.folder / "export").symlink_to(outside)
    assert main(["export", str(run.folder)]) == 2
    error = capsys.readouterr().err
    assert f"{run.folder / 'export'} is a link: --output names the folder to write into" in error
    assert error.count("\n") == 1
    assert not list(outside.iterdir())
