"""The names that weights have in PyTorch implementations of the networks, and their axes there.

Known are the residual networks of torchvision and timm, those for CIFAR-10 in their common forms (``shortcut`` and
``linear``), Wide ResNet as its authors wrote it, ConvNeXt and vision transformers of torchvision, timm and, for
ConvNeXt, its authors, and VGG with batch normalization.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

_PREFIXES = ("", "module.", "model.", "module.model.")
"""What wrappers put before every name: `DataParallel`, and modules that hold the network."""

IGNORED = re.compile(r"(^|\.)num_batches_tracked$")
"""Counts that these networks do not have."""


def find(path: str, paths: Sequence[str], names: Iterable[str]) -> str | None:
    """The name of an array of a network in a PyTorch file.

    Args:
        path: of the array, such as ``params/stem/kernel``.
        paths: of all arrays of the network.
        names: in the file.

    Returns:
        The name, or None if the file has none of those that are known for it.
    """
    known = set(names)
    _, *parts, leaf = path.split("/")
    candidates = (prefix + name for name in _candidates(parts, leaf, paths) for prefix in _PREFIXES)
    return next((name for name in candidates if name in known), None)


def convert(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a PyTorch file with its axes in this program's order, if that gives the wanted shape.

    Kernels are (out, in, rows, columns) there and (rows, columns, in, out) here; a linear layer on patches is a
    convolution there.
    """
    if array.ndim == 4 and len(shape) == 3 and array.shape[1] == 1:  # depthwise
        array = array[:, 0].transpose(1, 2, 0)
    elif array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        array = array.reshape(-1, array.shape[-1]) if len(shape) == 2 else array
    elif array.ndim == 2 and len(shape) == 2:
        array = array.T
    elif len(shape) == 1 and array.size == max(array.shape, default=1):
        array = array.reshape(-1)
    return array


def _candidates(parts: Sequence[str], leaf: str, paths: Sequence[str]) -> Iterator[str]:
    """The names that an array may have, most common first."""
    place = "/".join(parts)
    if leaf in _WHOLE and not parts:
        yield from _WHOLE[leaf]
        return
    for pattern, names in _RULES:
        found = re.fullmatch(pattern, place)
        if not found:
            continue
        for name in names(*map(int, found.groups()), paths=paths):
            if leaf == "scale" and name.endswith(_SCALES):
                yield name
            elif name.endswith(".in_proj"):
                yield f"{name}_{_LEAVES[leaf]}"
            elif not name.endswith(_SCALES):
                yield f"{name}.{_LEAVES[leaf]}"


_SCALES = ("gamma", "layer_scale")
"""Factors of the branches of a ConvNeXt, which are arrays and not layers."""

_WHOLE = {"class_token": ("cls_token", "class_token"), "positions": ("pos_embed", "encoder.pos_embedding")}

Names = Callable[..., Iterable[str]]


def _fixed(*names: str) -> Names:
    return lambda *numbers, paths: names


def _residual(kind: str, shortcuts: Sequence[str]) -> Names:
    """The names of a layer in a residual block: numbered from 1, or in the shortcut."""

    def names(stage: int, block: int, layer: int, *, paths: Sequence[str]) -> Iterator[str]:
        for start in (f"layer{stage + 1}.{block}", f"block{stage + 1}.layer.{block}"):
            yield f"{start}.{kind}{layer + 1}"
        for shortcut in shortcuts:
            yield f"layer{stage + 1}.{block}.{shortcut}"
        if kind == "conv":
            yield f"block{stage + 1}.layer.{block}.convShortcut"

    return names


def _chain(offset: int) -> Names:
    """The names of a layer of a VGG, whose layers are numbered with activations and poolings between."""

    def names(stage: int, layer: int, *, paths: Sequence[str]) -> Iterator[str]:
        counts = [
            len([path for path in paths if re.fullmatch(rf"params/stage_{before}/Conv_\d+/kernel", path)])
            for before in range(stage)
        ]
        yield f"features.{3 * (sum(counts) + layer) + stage + offset}"

    return names


def _of_stage(*names: str) -> Names:
    """Names with the number of the stage, and, for torchvision, of what stands before it."""
    return lambda stage, paths: [name.format(stage=stage, odd=2 * stage) for name in names]


def _of_block(*names: str) -> Names:
    return lambda stage, block, paths: [name.format(stage=stage, block=block, odd=2 * stage + 1) for name in names]


def _of_layer(*names: str) -> Names:
    return lambda block, paths: [name.format(block=block) for name in names]


_BLOCK = r"stage_(\d+)_block_(\d+)"
_ENCODER = "encoder.layers.encoder_layer_{block}"

_RULES: Sequence[tuple[str, Names]] = (
    # Residual networks.
    (r"stem", _fixed("conv1")),
    (r"stem_norm/\w+", _fixed("bn1")),
    (_BLOCK + r"/Conv_(\d)", _residual("conv", ("downsample.0", "shortcut.0", "shortcut"))),
    (_BLOCK + r"/Normalization_(\d)/\w+", _residual("bn", ("downsample.1", "shortcut.1"))),
    (r"last_norm/\w+", _fixed("bn", "bn1")),
    # VGG.
    (r"stage_(\d+)/Conv_(\d+)", _chain(0)),
    (r"stage_(\d+)/Normalization_(\d+)/\w+", _chain(1)),
    # ConvNeXt.
    (r"stage_0_patches", _fixed("stem.0", "downsample_layers.0.0", "features.0.0")),
    (r"stage_0_norm", _fixed("stem.1", "downsample_layers.0.1", "features.0.1")),
    (
        r"stage_([1-9])_patches",
        _of_stage("stages.{stage}.downsample.1", "downsample_layers.{stage}.1", "features.{odd}.1"),
    ),
    (
        r"stage_([1-9])_norm",
        _of_stage("stages.{stage}.downsample.0", "downsample_layers.{stage}.0", "features.{odd}.0"),
    ),
    (
        _BLOCK,
        _of_block(
            "stages.{stage}.blocks.{block}.gamma",
            "stages.{stage}.{block}.gamma",
            "features.{odd}.{block}.layer_scale",
            "stages.{stage}.blocks.{block}.conv_dw",
            "stages.{stage}.{block}.dwconv",
            "features.{odd}.{block}.block.0",
        ),
    ),
    (
        _BLOCK + "/norm",
        _of_block(
            "stages.{stage}.blocks.{block}.norm", "stages.{stage}.{block}.norm", "features.{odd}.{block}.block.2"
        ),
    ),
    (
        _BLOCK + "/mlp/first",
        _of_block(
            "stages.{stage}.blocks.{block}.mlp.fc1", "stages.{stage}.{block}.pwconv1", "features.{odd}.{block}.block.3"
        ),
    ),
    (
        _BLOCK + "/mlp/second",
        _of_block(
            "stages.{stage}.blocks.{block}.mlp.fc2", "stages.{stage}.{block}.pwconv2", "features.{odd}.{block}.block.5"
        ),
    ),
    # Vision transformers.
    (r"patches", _fixed("patch_embed.proj", "conv_proj")),
    (r"block_(\d+)/norm_0", _of_layer("blocks.{block}.norm1", _ENCODER + ".ln_1")),
    (r"block_(\d+)/norm_1", _of_layer("blocks.{block}.norm2", _ENCODER + ".ln_2")),
    (r"block_(\d+)/attention/joint", _of_layer("blocks.{block}.attn.qkv", _ENCODER + ".self_attention.in_proj")),
    (r"block_(\d+)/attention/out", _of_layer("blocks.{block}.attn.proj", _ENCODER + ".self_attention.out_proj")),
    (r"block_(\d+)/mlp/first", _of_layer("blocks.{block}.mlp.fc1", _ENCODER + ".mlp.0", _ENCODER + ".mlp.linear_1")),
    (r"block_(\d+)/mlp/second", _of_layer("blocks.{block}.mlp.fc2", _ENCODER + ".mlp.3", _ENCODER + ".mlp.linear_2")),
    # The end of ConvNeXts and vision transformers, and of all.
    (r"last_norm", _fixed("head.norm", "norm", "classifier.0", "encoder.ln")),
    (r"head", _fixed("fc", "linear", "head.fc", "head", "heads.head", "classifier", "classifier.2", "classifier.6")),
)
"""Where a layer is here, as a pattern, and its possible names there."""
