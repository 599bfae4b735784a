"""The command lines that train and evaluate a run again."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.config import Config
from train.kinds import choose
from train.presets import PRESETS

_UNPREFIXED = {"data.data_dir": "data_dir"}
"""Options whose names on the command line lack the group's."""


def fit_command(config: Config, folder: Path) -> str | None:
    """The shortest command line that trains a config; None if it was trained from Python, with parts of a script.

    Args:
        config: what was trained.
        folder: the run folder to name.
    """
    options = _flat(config)
    if options["data.given"] or options["model.given"] or "given" in (options["method"], options["optimizer"]):
        return None
    changes = {name: list(_changes(options, _begun_from(preset.config, config))) for name, preset in PRESETS.items()}
    name = min(changes, key=lambda name: len(changes[name]))
    return _command("fit", name, *changes[name], "--run-dir", str(folder))


def evaluate_command(folder: Path, row: dict[str, Any], radii: list[float], *, network: str = "") -> str:
    """The command line of an evaluation.

    Args:
        folder: the run folder.
        row: the evaluation's `suite`, `radius_pixels`, `examples`, `independent`, `seed`, `sample_seed` and
            `quantize`.
        radii: those of a curve by the whole suite; none for the usual curve.
        network: of the user's own, as the run's config names it.
    """
    return _command(
        "evaluate", str(folder), "--suite", row["suite"], "--radius", f"{row['radius_pixels']:.12g}",
        "--examples", str(row["examples"]), *(["--independent"] if row["independent"] else []),
        *(["--seed", str(row["seed"])] if row["seed"] else []),
        *([] if row["sample_seed"] is None else ["--sample-seed", str(row["sample_seed"])]),
        *(["--quantize"] if row["quantize"] else []),
        *(["--model.name", network] if network else []),
        *(["--radii", *(f"{radius:.12g}" for radius in radii)] if radii else []),
    )  # fmt: skip


def differing(configs: dict[str, Config]) -> dict[str, list[str]]:
    """The options in which configs differ, by path; a value for each config, empty where it has no such option."""
    flat = [_flat(config) for config in configs.values()]
    paths = list(dict.fromkeys(path for options in flat for path in options))
    missing = object()
    found = {path: [options.get(path, missing) for options in flat] for path in paths}
    return {
        path: ["" if value is missing else " ".join(_words(value)) for value in values]
        for path, values in found.items()
        if any(value != values[0] for value in values)
    }


def _command(*words: str) -> str:
    return "python -m train " + " ".join(shlex.quote(word) for word in words)


def _flat(options: Any, path: str = "") -> dict[str, Any]:
    """The options of a config by their paths; a kind's name stands at the path of what it chooses."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), f"{path}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            flat |= _flat(value, name)
        else:
            flat[path if field.name == "name" and path not in ("data", "model") else name] = value
    return flat


def _begun_from(preset: Config, config: Config) -> dict[str, Any]:
    """The options that a command line for a config begins with: the preset's kinds, and the options of the config's."""
    names = {part: getattr(config, part).name for part in ("method", "optimizer", "schedule")}
    kinds = {part: _flat(preset)[part] for part in names}
    rule = getattr(config.method, "rule", None)
    if rule is not None:
        kinds["method.rule"] = _flat(choose(preset, **names))["method.rule"]
    return _flat(choose(preset, **names, rule=rule and rule.name)) | kinds


def _changes(options: dict[str, Any], preset: dict[str, Any]) -> Iterator[str]:
    """The words of the options in which a config differs from what its command line begins with."""
    for path, value in options.items():
        if path in preset and preset[path] == value:
            continue
        yield from _option(path, value)


def _option(path: str, value: Any) -> list[str]:
    name = "--" + ("rule" if path == "method.rule" else _UNPREFIXED.get(path, path)).replace("_", "-")
    if isinstance(value, bool):
        return [name if value else "--" + ".".join([*name[2:].split(".")[:-1], f"no-{name[2:].split('.')[-1]}"])]
    return [name, *_words(value)]


def _words(value: Any) -> list[str]:
    if isinstance(value, (tuple, list)):
        return [str(item) for item in value]
    return [str(value)]
