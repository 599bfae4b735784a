"""The paper's multi-step attack as a plain PyTorch loop, to time deformreg's against.

It starts from a zero flow, takes sign steps of ``radius / steps`` and samples with ``grid_sample``; the network is
untrained and in inference mode. The script needs PyTorch and no JAX, and answers each line of standard input with the
milliseconds of one attack. Importing this module does not need PyTorch.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any


def multi_step(model: Any, images: Any, labels: Any, *, radius: float, steps: int) -> Any:
    """Returns ``images[n, c, h, w]`` deformed by at most `radius` pixels per component to increase the loss."""
    import torch
    from torch.nn import functional

    n, _, h, w = images.shape
    rows, columns = (torch.linspace(-1, 1, size, device=images.device) for size in (h, w))
    identity = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    scale = torch.tensor([2 / (w - 1), 2 / (h - 1)], device=images.device)
    flow = torch.zeros(n, h, w, 2, device=images.device)

    def deform(flow: Any) -> Any:
        grid = identity + scale * flow
        return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)

    for _ in range(steps):
        flow.requires_grad_()
        loss = functional.cross_entropy(model(deform(flow)), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, flow)
        with torch.no_grad():
            flow = (flow + radius / steps * gradient.sign()).clamp(-radius, radius)
    with torch.no_grad():
        return deform(flow)


def main(argv: list[str] | None = None) -> None:
    """Answers requests until standard input ends."""
    parser = argparse.ArgumentParser(description="Times a multi-step attack in plain PyTorch.")
    parser.add_argument("--model", default="vgg-11")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--radius", type=float, default=0.5, help="pixels")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    import torch
    from torch_fgr import vgg  # type: ignore[import-not-found]  # run as a script, from this folder

    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = vgg(arguments.model).to(device).eval().requires_grad_(False)
    images = torch.rand(arguments.batch_size, 3, 32, 32, device=device)
    labels = torch.arange(arguments.batch_size, device=device) % 10
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def attack(steps: int) -> float:
        synchronize()
        start = time.perf_counter()
        multi_step(model, images, labels, radius=arguments.radius, steps=steps)
        synchronize()
        return 1e3 * (time.perf_counter() - start)

    attack(1)  # The first pass allocates memory and chooses kernels.
    print("ready", flush=True)
    for _ in sys.stdin:
        print(f"{attack(arguments.steps):.3f}", flush=True)


if __name__ == "__main__":
    main()
