"""What an evaluation or a certification has found so far, in a file from which the same command continues.

The file lies in the folder of the report, is replaced whole whenever there is more, and is removed when the report is
written. Its name and its first line say what it belongs to: the network with its traced program, the examples, the
command's options, and the versions and settings that results depend on. Only a file that agrees in all of them is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from train import environment, files
from train.environment import Environment
from train.errors import one_line, say
from train.options import to_tree
from train.restored import LogitsFn, Trained
from train.views import digest

T = TypeVar("T")

STOP = ".stop"
"""Suffix, in place of ``.partial``, of the file by which one process of several tells the others to stop."""

START = ".start"
"""Suffix of the file by which process 0 of several makes sure that the others see its folder."""

_LARGEST = 4 << 30
"""Bytes of a file: flows and deformed images of 200 images of 512 pixels take 1 GiB."""

_MALFORMED = (OSError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, SyntaxError, RecursionError)
"""What reading raises for content that no command has written, such as counts of 10^30 or types that do not parse."""


class Kept(NamedTuple):
    """The content of a file: `facts` are JSON values."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Partial(NamedTuple):
    """The place where results of an unfinished command are kept.

    Attributes:
        path: the file.
        identity: what it belongs to, as JSON values.
        check: called before every write; raises if the folder may no longer be written.
    """

    path: Path
    identity: Mapping[str, Any]
    check: Callable[[], None]

    def read(self, parse: Callable[[Kept], T]) -> T | None:
        """What an earlier start has kept, parsed; None if there is nothing, or nothing that can be used.

        `parse` may raise the usual errors for content of another form, and must keep nothing then.
        """
        try:
            content, before = _decode(files.read_bytes(self.path, limit=_LARGEST), self.identity)
            changes = environment.differences(before, environment.describe())
            kept = parse(content)  # last: it may keep what it reads
        except FileNotFoundError:
            return None
        except _MALFORMED as error:
            say(f"{self.path} cannot be used ({one_line(error)}): starting anew")
            return None
        if changes:
            say(
                "continuing what was begun on another machine (stored, current); the last bits may differ: "
                f"{'; '.join(changes)}"
            )
        return kept

    def fingerprint(self) -> str:
        """A hash of the file's bytes; of one that cannot be read, the kind of error."""
        try:
            return hashlib.sha256(files.read_bytes(self.path, limit=_LARGEST)).hexdigest()
        except (OSError, ValueError) as error:
            return type(error).__name__

    def write(self, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the file's content."""
        self.check()
        chunks = _encode(Kept(dict(facts), dict(arrays)), self.identity)
        files.write_chunks(self.path, lambda: chunks)

    def remove(self) -> None:
        """Removes the file, and those of the same kind that belong to another network or to other versions."""
        kind, network, _ = self.path.stem.rsplit("-", 2)
        suffixes = (self.path.suffix, STOP, START)
        found = [path for suffix in suffixes for path in self.path.parent.glob(f"{kind}-*-*{suffix}")]
        for path in [self.path, *found]:
            ours = path.name.startswith(f"{self.path.stem}.")  # the parts of its processes, too
            if ours or path.stem.rsplit("-", 2)[1] != network:
                path.unlink(missing_ok=True)


def of(
    folder: Path, kind: str, trained: Trained, options: Mapping[str, Any], check: Callable[[], None] = lambda: None
) -> Partial:
    """The place of an unfinished command's results.

    Args:
        folder: of the report.
        kind: ``evaluation`` or ``certification``.
        trained: the run.
        options: what else the results depend on, as JSON values.
        check: called before every write.
    """
    network = {
        "model": to_tree(trained.config)["model"],
        "step": trained.step,
        **network_digests(trained.logits_fn, trained.images.shape[1:]),
        "code": environment.code(),
        "environment": {name: environment.describe()[name] for name in environment.MUST_AGREE},
    }
    examples = {"examples": trained.contents, "options": dict(options)}
    identity = json.loads(json.dumps({**network, **examples}))
    name = f"{kind}-{_short(network)}-{_short(examples)}.partial"
    return Partial(folder / name, identity, check)


def network_digests(logits_fn: LogitsFn, image_shape: tuple[int, ...]) -> dict[str, str]:
    """Hashes of a network: of its weights, and of its traced program, since the code of a user's own is not ours.

    Args:
        logits_fn: the network, a `jax.tree_util.Partial` with its weights.
        image_shape: of one image.
    """
    leaves, structure = jax.tree.flatten(logits_fn)

    def program(leaves: list[jax.Array], images: jax.Array) -> jax.Array:
        logits: jax.Array = jax.tree.unflatten(structure, leaves)(images)
        return logits

    # Weights are arguments, so that the text has only their shapes. A jaxpr would have addresses of functions in it.
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    # Weights in NumPy's float64 are float32 to JAX, which says so of a shape, not of an array.
    shapes = [jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves]
    text = jax.jit(program).lower(shapes, images).as_text()
    return {"weights": digest(leaves), "program": hashlib.sha256(text.encode()).hexdigest()}


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _encode(kept: Kept, identity: Mapping[str, Any]) -> list[bytes]:
    """A line of JSON, then the arrays' bytes one after the other."""
    arrays = {name: np.ascontiguousarray(array) for name, array in kept.arrays.items()}
    content = {
        "identity": identity,
        "environment": environment.describe(),
        "facts": kept.facts,
        "arrays": {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()},
    }
    head, body = json.dumps(content).encode(), [array.tobytes() for array in arrays.values()]
    return [f"{_checksum([head, *body])} ".encode(), head, b"\n", *body]


def _decode(data: bytes, identity: Mapping[str, Any]) -> tuple[Kept, Environment]:
    """The content of a file, and the environment that it was written in. Raises `ValueError` if it cannot be used."""
    first, _, body = data.partition(b"\n")
    stored, _, head = first.partition(b" ")
    if int(stored) != _checksum([head, body]):
        raise ValueError("its checksum does not match")
    content = json.loads(head)
    if content["identity"] != identity:
        raise ValueError("it belongs to another command, network or version")
    arrays, at = {}, 0
    for name, (kind, shape) in content["arrays"].items():
        dtype, count = np.dtype(kind), math.prod(shape)
        arrays[name] = np.frombuffer(body, dtype, count, at).reshape(shape).copy()
        at += count * dtype.itemsize
    return Kept(content["facts"], arrays), content["environment"]


def _checksum(parts: list[bytes]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc
