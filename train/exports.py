"""A trained network for other programs: its weights, a compiled form of it, and a model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array

from train import files, manifests, options
from train.config import Config
from train.data import output_shape
from train.data.places import path_of
from train.restored import Opened
from train.state import predict

WEIGHTS, PROGRAM, CARD = "model.safetensors", "model.jax", "README.md"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write(folder: Path, opened: Opened, check: Callable[[], None]) -> None:
    """Writes the three files of an exported network.

    Args:
        folder: where to.
        opened: the network.
        check: called before anything is written.
    """
    from safetensors.numpy import save

    leaves = weights(opened)
    size, classes = image_shape(opened), opened.test.class_names
    facts = {"image_shape": json.dumps(size), "classes": json.dumps(classes), "network": opened.config.model.name}
    compiled, card = program(opened), model_card(opened)
    check()
    files.write_bytes(folder / WEIGHTS, save(leaves, facts))
    files.write_bytes(folder / PROGRAM, compiled)
    files.write_text(folder / CARD, card)


def weights(opened: Opened) -> dict[str, np.ndarray]:
    """The arrays of a network by path, such as ``params/stem/kernel``."""
    return {path: np.asarray(leaf) for path, leaf in manifests.flat(opened.variables).items()}


def image_shape(opened: Opened) -> tuple[int, int, int]:
    """``(h, w, c)`` of the images that a network takes."""
    h, w, c = output_shape(opened.config.augmentation, opened.test.image_shape)
    return h, w, c


def program(opened: Opened) -> bytes:
    """``(weights, images) -> logits`` for any number of images, as `jax.export` writes it.

    The weights are an argument, as `weights` returns them, so that the program is small and fits other weights too.
    """
    model = opened.model

    def logits(arrays: dict[str, Array], images: Array) -> Array:
        variables: Any = manifests.nested(arrays)  # type: ignore[arg-type]
        return predict(model, variables["params"], variables.get("batch_stats", {}), images)

    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in weights(opened).items()}
    (count,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *image_shape(opened)), jnp.float32)
    return bytes(jax.export.export(jax.jit(logits), platforms=PLATFORMS)(shapes, images).serialize())


def model_card(opened: Opened) -> str:
    """What the network is, how it was trained, what it scored, and how to use it, in Markdown."""
    config, test = _without_places(opened.config), opened.test
    h, w, c = image_shape(opened)
    count = sum(leaf.size for path, leaf in weights(opened).items() if path.startswith("params/"))
    lines = [
        f"# {config.model.given or config.model.name}, {config.method.name}, {config.data.name}",
        "",
        f"- Input: float32 images `[n, {h}, {w}, {c}]` in [0, 1]. Output: logits of {test.num_classes} classes: "
        f"{', '.join(test.class_names[:20])}{', ...' if test.num_classes > 20 else ''}.",
        f"- {count:,} parameters, after step {opened.step} of a training by deformreg.",
        *_scores(opened.place.folder, opened.step),
        f"- `{WEIGHTS}` has the parameters and the running statistics; `{PROGRAM}` is the network as a program of "
        f"`jax.export` for {', '.join(PLATFORMS)}.",
        "",
        "```python",
        "import jax.export, pathlib, safetensors.numpy",
        "",
        f'weights = safetensors.numpy.load_file("{WEIGHTS}")',
        f'program = jax.export.deserialize(bytearray(pathlib.Path("{PROGRAM}").read_bytes()))',
        "logits = program.call(weights, images)",
        "```",
        "",
        f"`python -m train fit PRESET --init {WEIGHTS}` trains on from these weights.",
        "",
        "## Config",
        "",
        "```json",
        options.to_json(config).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _without_places(config: Config) -> Config:
    """A config that does not tell where files are on this machine."""
    name = config.data.name
    data = replace(config.data, name=name if path_of(name) is None else name.rpartition("/")[2], data_dir=None)
    init = None if config.init is None else Path(config.init).name
    return replace(config, data=data, init=init)


def _scores(folder: Path, step: int) -> list[str]:
    """A line about the evaluation of the checkpoint of a step, if the run has one that can be read."""
    try:
        row = files.read_json(folder / "evaluation.json", limit=64 << 20)
        if row["step"] != step:
            raise ValueError("it is of another checkpoint")
        clean, robust, radius = (float(row[name]) for name in ("clean_accuracy", "robust_accuracy", "radius_pixels"))
    except (OSError, ValueError, KeyError, TypeError):
        return ["- Not evaluated: its accuracy under attack is not known."]
    return [
        f"- Accuracy on the test images: {clean:.1%} clean, {robust:.1%} under deformations of at most {radius:g} px "
        f"(suite `{row.get('suite')!s:.40}`)."
    ]
