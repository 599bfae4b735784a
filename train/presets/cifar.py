"""CIFAR: the two releases of the paper's code, and the recipe of input gradient norms today.

Both releases train 80 epochs by SGD with momentum 0.9 and weight decay 5e-4, with a tenth of the rate after epochs 40
and 60, on images in [0, 1] under random flows of 0.01 normalized units; the epoch of best clean validation accuracy is
kept. Both square the gradient of the batch's mean loss; `paper_weight` converts their weight.

- 2021: ResNet-20 and VGG-13, CIFAR-10 and CIFAR-100, batch 256, rate 0.1, images padded by 4, cropped and flipped,
  weight 300.
- 2022: VGG-11, CIFAR-10, batch 128, rate 0.01, images resized to 36, cropped to 32 and flipped, weights 100 to 300.
  In the results/ of that code (attack 0.01 normalized = 0.155 px, 100 steps; clean / robust accuracy): weight 0
  90.27 / 6.41, 100 87.24 / 47.95, 200 86.02 / 53.06, 300 85.36 / 55.15.

The GELU presets follow the published config of Rodriguez-Munoz et al. Three things differ: its RandAugment also skips
each operation with probability 1/2, its colour jitter is missing here, and its penalty has other units: here dual norms
have the radius of the attack to resist as their weight. It starts from a naturally trained network: give the
``-standard`` run by ``--init``.

References:
    Xia and Li, "Improving Resistance to Adversarial Deformations by Regularizing Gradients", Neurocomputing 455, 2021;
    code: github.com/xpf/Flow-Gradient-Regularization.
    Rodriguez-Munoz et al., "Characterizing Model Robustness via Natural Input Gradients", ECCV 2024, arXiv 2409.20139.
"""

from __future__ import annotations

from dataclasses import replace

from deformreg.released import paper_weight
from train.config import Config, Data, Evaluation, Model
from train.data import Augmentation, Labels
from train.methods import AnyMethod
from train.methods.adversarial import Adversarial, Deformation
from train.methods.gradient import FlowGradient, FlowGradientDeformation, InputGradient
from train.methods.spatial import Spatial
from train.methods.standard import Standard
from train.optimizers import AdamW, Sgd
from train.presets.preset import Group, Preset, family, narrow
from train.schedules import Cosine, Step

_START = 0.155  # 0.01 normalized units at 32x32


def _weight(released: float, batch_size: int) -> float:
    return paper_weight(released, batch_size=batch_size, image_size=32)


_2022 = Preset(
    Config(
        data=Data(name="cifar10"),
        augmentation=Augmentation(resize=36, crop=32, flip=True),
        model=Model(name="vgg-11"),
        schedule=Step(decay_epochs=(40, 60)),
        evaluation=Evaluation(radius=0.155, steps=100),
        epochs=80,
        select="best",
    ),
    "VGG-11",
    "for an accelerator",
    "recipe of Xia and Li's second release (2022)",
)

_2022_METHODS: dict[str, AnyMethod] = {
    "standard": Standard(),
    "input": InputGradient(weight=0.1),
    "flow": FlowGradient(weight=_weight(300, 128), random_start=_START),
    "adversarial": Adversarial(radius=8 / 255, step_size=2 / 255),
    "deformation": Deformation(radius=0.155),
    "flow-deformation": FlowGradientDeformation(weight=_weight(100, 128), radius=0.155),
    "spatial": Spatial(radius=3.0, degrees=30.0, draws=10),
}

_PUBLISHED = {
    "standard": "by the authors' code, not run here: 90.3 % clean, 6.4 % multi-step at 0.155 px",
    "flow": "by the authors' code, not run here: 85.4 % clean, 55.2 % multi-step at 0.155 px",
}


def _2021(data: str, model: str) -> Preset:
    return Preset(
        replace(
            _2022.config,
            data=Data(name=data),
            augmentation=Augmentation(shift=4, flip=True),
            model=Model(name=model),
            optimizer=Sgd(learning_rate=0.1),
            batch_size=256,
        ),
        model.replace("resnet", "ResNet").replace("vgg", "VGG"),
        "for an accelerator",
        "recipe of Xia and Li's first release (2021)",
    )


_2021_METHODS: dict[str, AnyMethod] = {
    "standard": Standard(),
    "flow": FlowGradient(weight=_weight(300, 256), random_start=_START),
}


def _first_release(data: str) -> dict[str, Preset]:
    return {
        name: preset
        for model in ("resnet-20", "vgg-13")
        for name, preset in family(
            f"{data}-{model.replace('-', '')}", _2021(data, model), _2021_METHODS, suffix="-2021", narrow=narrow
        ).items()
    }


_GELU = Preset(
    Config(
        data=Data(name="cifar10"),
        augmentation=Augmentation(shift=4, flip=True, rand=2, rand_strength=0.9, erase=0.25),
        labels=Labels(smoothing=0.1, mixup=0.8, cutmix=1.0),
        model=Model(name="preact-resnet-18", activation="gelu", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        optimizer=AdamW(learning_rate=1.25e-3 * 128 / 512, weight_decay=0.05, clip_norm=1.0),  # of batches of 512
        schedule=Cosine(warmup_epochs=5.0),
        evaluation=Evaluation(radius=0.155, steps=100),
        average=0.9998,
        epochs=300,
    ),
    "PreActResNet-18 with GELU",
    "for an accelerator",
    "recipe of Rodriguez-Munoz et al. (2024); give the penalties a standard run by --init",
)

_GELU_METHODS: dict[str, AnyMethod] = {
    "standard": Standard(),
    "input": InputGradient(size="linf", weight=8 / 255),
    "flow": FlowGradient(weight=_weight(300, 128)),
    "flow-dual": FlowGradient(size="linf", weight=0.155),
}


def _narrow_gelu(config: Config) -> Config:
    """Without what delays learning over hundreds of epochs: mixing, strong changes and a slow average."""
    return replace(narrow(config), augmentation=Augmentation(shift=4, flip=True), labels=Labels(), average=0.0)


CIFAR10 = Group(
    "CIFAR-10",
    {
        **family("cifar10-vgg11", _2022, _2022_METHODS, _PUBLISHED, suffix="-2022", narrow=narrow),
        **_first_release("cifar10"),
        **family("cifar10-preact18-gelu", _GELU, _GELU_METHODS, narrow=_narrow_gelu),
    },
)

CIFAR100 = Group("CIFAR-100", _first_release("cifar100"))
