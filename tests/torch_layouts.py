"""Names and shapes of the weights in PyTorch implementations of networks, and seeded values for them.

The names and shapes are those of torchvision 0.29 (`resnet50`, `convnext_tiny`, `vit_b_16`) and timm 1.0.31
(`convnext_tiny`, `vit_small_patch16_224`), each with 10 classes and, for the transformers, images of 64x64.
"""

from __future__ import annotations

import numpy as np

Shapes = dict[str, tuple[int, ...]]

CLASSES = 10
CONVNEXT_T = ((96, 3), (192, 3), (384, 9), (768, 3))


def layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def batch_norm(name: str, count: int) -> Shapes:
    return {f"{name}.{leaf}": (count,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def conv(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape}


def resnet_50() -> Shapes:
    shapes = {**conv("conv1", 64, 3, 7, 7), **batch_norm("bn1", 64), **layer("fc", CLASSES, 2048)}
    inputs = 64
    for stage, (count, num_blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(num_blocks):
            start = f"layer{stage}.{block}"
            for number, (of, to, size) in enumerate(((inputs, count, 1), (count, count, 3), (count, 4 * count, 1)), 1):
                shapes |= conv(f"{start}.conv{number}", to, of, size, size)
                shapes |= batch_norm(f"{start}.bn{number}", to)
            if block == 0:
                shapes |= conv(f"{start}.downsample.0", 4 * count, inputs, 1, 1)
                shapes |= batch_norm(f"{start}.downsample.1", 4 * count)
            inputs = 4 * count
    return shapes


def convnext_t() -> Shapes:
    shapes = {**layer("stem.0", 96, 3, 4, 4), **layer("stem.1", 96)}
    shapes |= {**layer("head.norm", 768), **layer("head.fc", CLASSES, 768)}
    for stage, (count, num_blocks) in enumerate(CONVNEXT_T):
        if stage:
            before = CONVNEXT_T[stage - 1][0]
            shapes |= layer(f"stages.{stage}.downsample.0", before)
            shapes |= layer(f"stages.{stage}.downsample.1", count, before, 2, 2)
        for block in range(num_blocks):
            start = f"stages.{stage}.blocks.{block}"
            shapes |= {f"{start}.gamma": (count,), **layer(f"{start}.conv_dw", count, 1, 7, 7)}
            shapes |= {**layer(f"{start}.norm", count), **layer(f"{start}.mlp.fc1", 4 * count, count)}
            shapes |= layer(f"{start}.mlp.fc2", count, 4 * count)
    return shapes


def torchvision_convnext_t() -> Shapes:
    shapes = {**layer("features.0.0", 96, 3, 4, 4), **layer("features.0.1", 96)}
    shapes |= {**layer("classifier.0", 768), **layer("classifier.2", CLASSES, 768)}
    for stage, (count, num_blocks) in enumerate(CONVNEXT_T):
        if stage:
            before = CONVNEXT_T[stage - 1][0]
            shapes |= layer(f"features.{2 * stage}.0", before)
            shapes |= layer(f"features.{2 * stage}.1", count, before, 2, 2)
        for block in range(num_blocks):
            start = f"features.{2 * stage + 1}.{block}"
            shapes |= {f"{start}.layer_scale": (count, 1, 1), **layer(f"{start}.block.0", count, 1, 7, 7)}
            shapes |= {**layer(f"{start}.block.2", count), **layer(f"{start}.block.3", 4 * count, count)}
            shapes |= layer(f"{start}.block.5", count, 4 * count)
    return shapes


def vit_s_16() -> Shapes:
    shapes = {"cls_token": (1, 1, 384), "pos_embed": (1, 17, 384)}
    shapes |= {**layer("patch_embed.proj", 384, 3, 16, 16), **layer("norm", 384), **layer("head", CLASSES, 384)}
    for block in range(12):
        start = f"blocks.{block}"
        shapes |= {**layer(f"{start}.norm1", 384), **layer(f"{start}.attn.qkv", 1152, 384)}
        shapes |= {**layer(f"{start}.attn.proj", 384, 384), **layer(f"{start}.norm2", 384)}
        shapes |= {**layer(f"{start}.mlp.fc1", 1536, 384), **layer(f"{start}.mlp.fc2", 384, 1536)}
    return shapes


def torchvision_vit_b_16() -> Shapes:
    shapes = {"class_token": (1, 1, 768), "encoder.pos_embedding": (1, 17, 768)}
    shapes |= {**layer("conv_proj", 768, 3, 16, 16), **layer("encoder.ln", 768), **layer("heads.head", CLASSES, 768)}
    for block in range(12):
        start = f"encoder.layers.encoder_layer_{block}"
        attention = f"{start}.self_attention"
        shapes |= {f"{attention}.in_proj_weight": (2304, 768), f"{attention}.in_proj_bias": (2304,)}
        shapes |= {**layer(f"{attention}.out_proj", 768, 768), **layer(f"{start}.ln_1", 768)}
        shapes |= {**layer(f"{start}.ln_2", 768), **layer(f"{start}.mlp.0", 3072, 768)}
        shapes |= layer(f"{start}.mlp.3", 768, 3072)
    return shapes


def basic_resnet(counts: tuple[tuple[int, int], ...], *, shortcut: str | None, head: str, stem: int) -> Shapes:
    """The common CIFAR-10 implementations: `shortcut` is the name of a projection, None if there is none."""
    shapes = {**conv("conv1", counts[0][0], 3, stem, stem), **batch_norm("bn1", counts[0][0])}
    shapes |= layer(head, CLASSES, counts[-1][0])
    inputs = counts[0][0]
    for stage, (count, num_blocks) in enumerate(counts, 1):
        for block in range(num_blocks):
            start = f"layer{stage}.{block}"
            for number, of in enumerate((inputs, count), 1):
                shapes |= {**conv(f"{start}.conv{number}", count, of, 3, 3), **batch_norm(f"{start}.bn{number}", count)}
            if inputs != count and shortcut:
                shapes |= conv(f"{start}.{shortcut}.0", count, inputs, 1, 1)
                shapes |= batch_norm(f"{start}.{shortcut}.1", count)
            inputs = count
    return shapes


def wide_resnet_28_10() -> Shapes:
    shapes = {**conv("conv1", 16, 3, 3, 3), **batch_norm("bn1", 640), **layer("fc", CLASSES, 640)}
    inputs = 16
    for stage, count in enumerate((160, 320, 640), 1):
        for block in range(4):
            start = f"block{stage}.layer.{block}"
            shapes |= {**batch_norm(f"{start}.bn1", inputs), **conv(f"{start}.conv1", count, inputs, 3, 3)}
            shapes |= {**batch_norm(f"{start}.bn2", count), **conv(f"{start}.conv2", count, count, 3, 3)}
            if block == 0:
                shapes |= conv(f"{start}.convShortcut", count, inputs, 1, 1)
            inputs = count
    return shapes


def vgg_11_bn() -> Shapes:
    shapes, inputs, number = layer("classifier", CLASSES, 512), 3, 0
    for count, num_convs in ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)):
        for _ in range(num_convs):
            shapes |= layer(f"features.{number}", count, inputs, 3, 3)
            shapes |= batch_norm(f"features.{number + 1}", count)
            inputs, number = count, number + 3
        number += 1
    return shapes


def weights(shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """Values that keep activations of order one, drawn by name."""
    random, drawn = np.random.default_rng(seed), {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith(("bias", "running_mean", "cls_token", "class_token", "pos_embed", "pos_embedding")):
            drawn[name] = random.normal(0, 0.1, shape)
        elif name.endswith("running_var") or len(shape) == 1 or name.endswith("layer_scale"):
            drawn[name] = random.uniform(0.5, 1.5, shape)
        else:
            drawn[name] = random.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    return {name: value.astype(np.float32) for name, value in drawn.items()}
