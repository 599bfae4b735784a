"""ImageNet, its smaller relatives, and folders of photographs.

None of these has been trained by this project: the recipes are those of the references, for standard training, and the
penalty is added to them. Its size is the dual norm of linf and its weight the radius of the attack to resist, so that
the objective is the loss under that attack to first order; it grows over the first epochs. The radius is one at which
an undefended network is wrong on nearly all photographs: 0.05 pixels at 224x224 (docs/models.md). The residual networks
have GELU, with which penalties of the gradient are known to work on ImageNet (Rodriguez-Munoz et al.); for the plain
baseline give ``--model.activation relu``.

References:
    Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv 1706.02677: 90 epochs, SGD 0.1 per
    256 images, a tenth after 30, 60 and 80 epochs, 5 epochs of warm-up, decay 1e-4 of the kernels.
    Beyer et al., "Better plain ViT baselines for ImageNet-1k", arXiv 2205.01580: 90 epochs, batch 1,024, AdamW 0.001,
    decay 1e-4 of the parameter itself (0.1 of the rate), 10,000 steps of warm-up, clipping at 1, RandAugment(2, 10),
    mixup 0.2, crops from 5 % of the area. Here with a class token and learned positions.
    Rodriguez-Munoz et al., "Characterizing Model Robustness via Natural Input Gradients", ECCV 2024, arXiv 2409.20139.
    Tian et al., "Contrastive Multiview Coding", ECCV 2020 (the 100 classes of ImageNet-100).
    Imagenette: github.com/fastai/imagenette, ten classes of ImageNet.
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Config, Data, Evaluation, Model
from train.data import Augmentation, Labels
from train.methods import AnyMethod
from train.methods.gradient import FlowGradient
from train.methods.standard import Standard
from train.optimizers import AdamW, Sgd
from train.presets.preset import Group, Preset, family
from train.schedules import Cosine, Step

_STEPS = 1251  # of an epoch of 1,281,167 images, in batches of 1,024
_GOYAL = "recipe of Goyal et al. (2017)"


def _methods(radius: float, ramp: int) -> dict[str, AnyMethod]:
    """Standard training, and the penalty of an attack of that radius in pixels, growing over some steps."""
    return {
        "standard": Standard(),
        "flow": FlowGradient(size="linf", weight=radius, weight_ramp_steps=ramp),
    }


_RESNET = Preset(
    Config(
        data=Data(name="imagenet2012", image_size=224, center_crop=0.875, random_crop=0.08),
        augmentation=Augmentation(flip=True),
        model=Model(name="resnet-50", activation="gelu", dtype="bfloat16"),
        optimizer=Sgd(learning_rate=0.1 * 1024 / 256, nesterov=True, weight_decay=1e-4, decay_all=False),
        schedule=Step(decay_epochs=(30, 60, 80), warmup_epochs=5.0),
        evaluation=Evaluation(radius=0.05, steps=50, examples=5000),
        batch_size=1024,
        epochs=90,
    ),
    "ResNet-50 with GELU, 224 px, bfloat16",
    "for a pod or 8 GPUs",
    _GOYAL,
)

_VIT = Preset(
    replace(
        _RESNET.config,
        data=replace(_RESNET.config.data, random_crop=0.05),
        augmentation=Augmentation(flip=True, rand=2, rand_strength=1.0),
        labels=Labels(mixup=0.2),
        model=Model(name="vit-s-16", dtype="bfloat16"),
        optimizer=AdamW(learning_rate=1e-3, weight_decay=0.1, decay_all=False, clip_norm=1.0),
        schedule=Cosine(warmup_epochs=10_000 / _STEPS),
    ),
    "ViT-S/16, 224 px, bfloat16",
    "for a pod or 8 GPUs",
    "recipe of Beyer et al. (2022)",
)

_RESNET18 = Preset(
    replace(
        _RESNET.config,
        data=replace(_RESNET.config.data, name="folder:imagenet100"),
        model=Model(name="resnet-18-imagenet", activation="gelu", dtype="bfloat16"),
        optimizer=replace(_RESNET.config.optimizer, learning_rate=0.1),
        schedule=Cosine(warmup_epochs=5.0),
        batch_size=256,
    ),
    "ResNet-18 with GELU, 224 px, bfloat16",
    "for one GPU",
    _GOYAL + ", with a cosine; name your folder by --data.name folder:PATH",
)

_IMAGENETTE = _RESNET18._replace(
    config=replace(
        _RESNET18.config,
        data=replace(_RESNET.config.data, name="imagenette/160px-v2", image_size=128, random_crop=0.35),
        optimizer=replace(_RESNET.config.optimizer, learning_rate=0.05),
        evaluation=Evaluation(radius=0.1, steps=50),
        batch_size=128,
        epochs=40,
    ),
    summary="ResNet-18 with GELU, 128 px, bfloat16",
    source=_GOYAL + ", with a cosine",
)

_PHOTOS = _IMAGENETTE._replace(
    config=replace(
        _IMAGENETTE.config,
        data=replace(_IMAGENETTE.config.data, name="folder:photos", holdout=0.1),
        model=replace(_IMAGENETTE.config.model, dtype="float32"),
        optimizer=replace(_RESNET.config.optimizer, learning_rate=0.02),
        evaluation=Evaluation(radius=0.1, steps=50, examples=500, batch_size=50),
        batch_size=32,
        epochs=30,
    ),
    summary="ResNet-18 with GELU, 128 px",
    duration="for one GPU, or a night on a processor",
    source=_GOYAL + ", with a cosine; name your folder by --data.name folder:PATH",
)

IMAGENET = Group(
    "ImageNet",
    {
        **family("imagenet-resnet50", _RESNET, _methods(0.05, 5 * _STEPS)),
        **family("imagenet-vit-s16", _VIT, _methods(0.05, 10_000)),
    },
)
IMAGENET100 = Group(
    "ImageNet-100: a folder of 100 of ImageNet's classes",
    family("imagenet100-resnet18", _RESNET18, _methods(0.05, 2500)),
)
IMAGENETTE = Group(
    "Imagenette: ten of ImageNet's classes", family("imagenette-resnet18", _IMAGENETTE, _methods(0.1, 370))
)
PHOTOS = Group("Your photographs: a folder of images", family("photos", _PHOTOS, _methods(0.1, 200)))
