"""Configs as data: checked against the ranges of their fields, written, read back strictly, and compared."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import typing
from collections.abc import Callable, Hashable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from train import files
from train.config import Config, Model
from train.data import Augmentation
from train.data.places import path_of
from train.errors import ConfigError
from train.methods import METHODS
from train.methods.elle import Elle
from train.methods.penalties import RULES, Exact, FiniteDifference
from train.models import MODELS
from train.optimizers import OPTIMIZERS, Sgd
from train.own import is_own
from train.ranges import FREE
from train.schedules import SCHEDULES, Step

T = TypeVar("T")

_MAX_FILE = 2**20  # bytes
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, revalidate_instances="always")


class Differences(NamedTuple):
    """How two configs differ, each as ``field: stored, current``.

    Attributes:
        fixed: in fields that may not change when a run is continued.
        free: in the others.
    """

    fixed: list[str]
    free: list[str]


def validate(options: T) -> T:
    """Returns options that keep the ranges of their fields; they may be any frozen dataclass.

    Raises:
        ConfigError: one does not; the message names it.
    """
    return _validated(type(options), options)


def check(config: Config) -> Config:
    """Returns a config whose options keep their ranges and fit each other.

    Raises:
        ConfigError: one does not; the message names it.
    """
    config = validate(config)
    if config.batch_size % config.accumulate:
        raise ConfigError(f"--accumulate must divide --batch-size {config.batch_size}, got {config.accumulate}")
    _check_network(config.model)
    if config.schedule.warmup_epochs > config.epochs:
        raise ConfigError(
            f"--schedule.warmup-epochs must be at most --epochs {config.epochs}, got {config.schedule.warmup_epochs}"
        )
    if isinstance(config.optimizer, Sgd) and config.optimizer.nesterov and not config.optimizer.momentum:
        raise ConfigError("--optimizer.nesterov needs --optimizer.momentum above 0, got 0")
    if not config.augmentation.rand and config.augmentation.rand_strength != Augmentation.rand_strength:
        raise ConfigError(
            "--augmentation.rand-strength needs --augmentation.rand above 0, for example 2; without random operations "
            f"it must be {Augmentation.rand_strength}, got {config.augmentation.rand_strength}"
        )
    if config.model.norm == "device-batch" and config.parallel == "jit":
        raise ConfigError("--model.norm device-batch needs --parallel pmap: sharded jit sees the whole batch")
    rule = getattr(config.method, "rule", None)
    if config.model.dtype != "float32" and isinstance(rule, FiniteDifference):
        # The difference drowns in the rounding of the images: measured, the penalty is off by half and the cosine
        # between its gradient and the exact one is 0.28.
        raise ConfigError(f"--rule finite-difference needs --model.dtype float32, got {config.model.dtype}")
    if getattr(config.method, "statistics", None) == "held" and rule is not None and not isinstance(rule, Exact):
        raise ConfigError(f"--method.statistics held needs --rule exact, got {rule.name}")
    if config.model.dtype != "float32" and isinstance(config.method, Elle):
        # So does the error of the interpolation: measured, the cosine between its gradient in bfloat16 and in float32
        # is 0.57 for flows and 0.40 for pixel values.
        raise ConfigError(f"--method elle needs --model.dtype float32, got {config.model.dtype}")
    return config


def check_recipe(config: Config) -> None:
    """Raises `ConfigError` for options that no new training should combine; earlier runs with them stay readable."""
    if isinstance(config.schedule, Step):
        epochs = config.schedule.decay_epochs
        if list(epochs) != sorted(set(epochs)) or min(epochs, default=math.inf) <= config.schedule.warmup_epochs:
            raise ConfigError(
                f"--schedule.decay-epochs must increase from above --schedule.warmup-epochs "
                f"{config.schedule.warmup_epochs:g}, got {' '.join(map(str, epochs))}"
            )
    if config.data.random_crop < 1 and config.augmentation.min_area < 1:
        raise ConfigError(
            "--data.random-crop and --augmentation.min-area both cut a random part out of every image, got "
            f"{config.data.random_crop:g} and {config.augmentation.min_area:g}: leave one of them at 1"
        )


def _check_network(model: Model) -> None:
    if not is_own(model.name):
        if model.name not in MODELS:
            near = difflib.get_close_matches(model.name, MODELS, 1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"--model.name must be one of {', '.join(MODELS)} or package.module:factory, "
                f"got {model.name!r:.40}{hint}"
            )
        return
    if ignored := of_networks_here(model):
        option = ignored[0].replace("_", "-")
        raise ConfigError(f"--model.{option} has no effect on a network of your own: leave it out")


def of_networks_here(model: Model) -> list[str]:
    """The fields beside `name` that are set: only networks of this program have them."""
    plain = Model(name=model.name, given=model.given)
    fields = [field.name for field in dataclasses.fields(Model)]
    return [name for name in fields if getattr(model, name) != getattr(plain, name)]


def to_tree(config: Config) -> dict[str, Any]:
    """The config as JSON values, fields in order."""
    tree: dict[str, Any] = json.loads(to_json(config))
    return tree


def to_json(config: Config) -> str:
    """The config as JSON text, fields in order."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_tree(tree: Any) -> Config:
    """Reads what `to_tree` wrote.

    Raises:
        ConfigError: as `from_json`.
    """
    try:
        return from_json(json.dumps(tree))
    except RecursionError as error:
        raise ConfigError("the config is nested too deeply") from error


def from_json(text: str) -> Config:
    """Reads what `to_json` wrote. Nothing is converted, and nothing that the text names is imported or called.

    Raises:
        ConfigError: not JSON, an unknown field, a value of another type or out of range.
    """
    return check(_validated(Config, text))


def from_file(path: Path) -> Config:
    """`from_json` of a file.

    Raises:
        ConfigError: as `from_json`, or it is no regular file of a config's size; the message names the file.
    """
    try:
        return from_json(files.read_bytes(path, limit=_MAX_FILE).decode())
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def differences(stored: Config, current: Config) -> Differences:
    """The fields in which two configs differ."""
    found = Differences([], [])
    for path, line, free in _compare(stored, current, "", free=False):
        free = free or (path in _CONDITIONS and _CONDITIONS[path](stored, current))
        (found.free if free else found.fixed).append(line)
    return found


_CONDITIONS: dict[str, Callable[[Config, Config], bool]] = {
    "epochs": lambda stored, current: current.epochs > stored.epochs and not stored.schedule.ends,
    # The same set elsewhere: what is in it is compared when it is read.
    "data.name": lambda stored, current: None not in (path_of(stored.data.name), path_of(current.data.name)),
}
"""When a field may change that otherwise must not, ``(stored, current) -> bool``."""


def _compare(stored: Any, current: Any, path: str, *, free: bool) -> Iterator[tuple[str, str, bool]]:
    """The fields in which two options differ: their path, a line that says how, and whether they may."""
    if not dataclasses.is_dataclass(stored):
        if stored != current:
            yield path, f"{path}: {stored!r}, {current!r}", free
        return
    if type(stored) is not type(current):
        yield path, f"{path}: {kind_of(stored)}, {kind_of(current)}", free
        return
    hints = typing.get_type_hints(type(stored), include_extras=True)
    for field in dataclasses.fields(stored):
        may_change = free or FREE in typing.get_args(hints[field.name])
        name = f"{path}.{field.name}".lstrip(".")
        yield from _compare(getattr(stored, field.name), getattr(current, field.name), name, free=may_change)


def kind_of(options: Any) -> str:
    """The name of a method, an optimizer, a schedule or a rule, by which the command line chooses it."""
    name: str = options.name
    return name


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    strict: Any = with_config(_STRICT)
    return TypeAdapter(strict(kind))


def _validated(kind: type[T], value: T | str) -> T:
    adapter = _adapter(typing.cast(Hashable, kind))
    try:
        checked: T = adapter.validate_json(value) if isinstance(value, str) else adapter.validate_python(value)
        return checked
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


_CHOICES = ("method", "rule", "optimizer", "schedule")
_KINDS = frozenset({*METHODS, *OPTIMIZERS, *SCHEDULES, *RULES})
_LIMITS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}


def _explain(failure: ValidationError) -> str:
    """The first error of a validation as one line that names the option."""
    error: Any = failure.errors(include_url=False)[0]
    kind, message, context = error["type"], error["msg"], error.get("ctx", {})
    if kind == "json_invalid":
        return f"the config is not JSON: {context['error']}"
    # A kind's name stands in the location between the option that chooses it and those of its own.
    parts = [str(part) for part in error["loc"] if isinstance(part, str)]
    chosen = [before in _CHOICES and part in _KINDS for before, part in zip(["", *parts], parts, strict=False)]
    path = ".".join(part for part, is_kind in zip(parts, chosen, strict=True) if not is_kind)
    option = f"--{path.replace('_', '-')}" if path else "the config"
    if kind == "unexpected_keyword_argument":
        name = error["loc"][-1]
        near = difflib.get_close_matches(name, _field_names(), 1)
        return f"the config has no field {path[:80]!r}" + (f": did you mean {near[0]}?" if near else "")
    got = f"{error['input']!s:.40}"
    if kind in _LIMITS:
        limit, words = _LIMITS[kind]
        return f"{option} must be {words} {context[limit]:.12g}, got {got}"
    if kind == "finite_number":
        return f"{option} must be a finite number, got {got}"
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context.get("expected") or context["expected_tags"]
        return f"{option} must be one of {expected}, got {got}"
    return f"{option}: {message[0].lower()}{message[1:]}, got {error['input']!r:.80}"


@cache
def _field_names() -> list[str]:
    kinds = [Config, *METHODS.values(), *OPTIMIZERS.values(), *SCHEDULES.values()]
    kinds += [type(getattr(Config(), field.name)) for field in dataclasses.fields(Config)]
    return sorted(
        {field.name for kind in kinds if dataclasses.is_dataclass(kind) for field in dataclasses.fields(kind)}
    )
