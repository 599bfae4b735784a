"""The paper's training step in plain PyTorch, to time deformreg's against.

A CIFAR-form VGG with batch norm, trained with SGD (momentum 0.9, weight decay 5e-4) on random images, by two methods:

*   ``standard``: the mean cross-entropy;
*   ``flow-gradient``: the same plus the mean over examples of the squared gradient of the example's loss with respect
    to the flow that warps its image, at zero flow. The sampler uses ``gather`` because PyTorch's ``grid_sample`` has
    no second derivative.

The script needs PyTorch and no JAX, and prints one line of JSON::

    python benchmarks/torch_fgr.py --method flow-gradient --batch-size 128 --repeats 5 --threads 2

With ``--server`` it answers each line of standard input with the milliseconds of one step, so that a harness can
alternate steps of two processes on the same cores. Importing this module does not need PyTorch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

VGG_LAYERS = {
    "small-cnn": "32 M 64 64 M 128 M",
    "vgg-11": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "vgg-13": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "vgg-16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
}
METHODS = ("standard", "flow-gradient")


def vgg(name: str, num_classes: int = 10) -> Any:
    """Returns the CIFAR-form VGG of that name: convolutions with batch norm, one linear layer."""
    from torch import nn

    layers: list[Any] = []
    channels = 3
    for entry in VGG_LAYERS[name].split():
        if entry == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        features = int(entry)
        layers += [
            nn.Conv2d(channels, features, 3, padding=1),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
        ]
        channels = features
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def bilinear_warp(images: Any, flow: Any) -> Any:
    """Samples ``images[n, c, h, w]`` at every pixel plus ``flow[n, 2, h, w]``, (dy, dx) in pixels, clamped to the edge.

    Twice differentiable in both arguments.
    """
    import torch

    n, c, h, w = images.shape
    rows = torch.arange(h, device=images.device).view(1, h, 1)
    columns = torch.arange(w, device=images.device).view(1, 1, w)
    y = (flow[:, 0] + rows).clamp(0, h - 1)
    x = (flow[:, 1] + columns).clamp(0, w - 1)
    top, left = y.detach().floor().long(), x.detach().floor().long()
    bottom, right = (top + 1).clamp(max=h - 1), (left + 1).clamp(max=w - 1)
    down, along = (y - top).unsqueeze(1), (x - left).unsqueeze(1)
    pixels = images.reshape(n, c, h * w)

    def take(row: Any, column: Any) -> Any:
        index = (row * w + column).view(n, 1, h * w).expand(n, c, h * w)
        return pixels.gather(2, index).view(n, c, h, w)

    upper = take(top, left) * (1 - along) + take(top, right) * along
    lower = take(bottom, left) * (1 - along) + take(bottom, right) * along
    return upper * (1 - down) + lower * down


def objective(model: Any, images: Any, labels: Any, method: str, weight: float) -> Any:
    """Returns the scalar to minimize: the mean loss, for ``flow-gradient`` plus ``weight`` times the penalty."""
    import torch
    from torch.nn import functional

    if method == "standard":
        return functional.cross_entropy(model(images), labels)
    n, _, h, w = images.shape
    flow = torch.zeros(n, 2, h, w, dtype=images.dtype, device=images.device, requires_grad=True)
    losses = functional.cross_entropy(model(bilinear_warp(images, flow)), labels, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), flow, create_graph=True)
    return losses.mean() + weight * gradient.square().sum(dim=(1, 2, 3)).mean()


def training_step(arguments: argparse.Namespace) -> Callable[[], float]:
    """Returns a function that runs one training step and returns its milliseconds."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = vgg(arguments.model).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    size = arguments.image_size
    images = torch.rand(arguments.batch_size, 3, size, size, device=device)
    labels = torch.randint(0, 10, (arguments.batch_size,), device=device)
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        objective(model, images, labels, arguments.method, arguments.weight).backward()
        optimizer.step()
        synchronize()
        return 1e3 * (time.perf_counter() - start)

    return step


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Times the paper's training step in plain PyTorch.")
    parser.add_argument("--method", choices=METHODS, default="flow-gradient")
    parser.add_argument("--model", choices=tuple(VGG_LAYERS), default="vgg-11")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--weight", type=float, default=4.4, help="weight of the penalty, for flows in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--server", action="store_true", help="time one step per line of standard input")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Times steps as the command line says."""
    arguments = parse(argv)
    step = training_step(arguments)
    for _ in range(2):  # The first steps allocate memory and choose kernels.
        step()
    if arguments.server:
        print("ready", flush=True)
        for _ in sys.stdin:
            print(f"{step():.3f}", flush=True)
        return
    import torch

    milliseconds = [step() for _ in range(arguments.repeats)]
    report = {
        "framework": f"torch {torch.__version__}",
        **{key: getattr(arguments, key) for key in ("method", "model", "batch_size", "image_size", "threads")},
        "milliseconds": round(statistics.median(milliseconds), 3),
        "repeats": [round(value, 3) for value in milliseconds],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
