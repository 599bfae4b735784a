"""PyTorch's ``grid_sample`` and its gradients, to time deformreg's warp against.

This is the best case for PyTorch: images are channels-first, and the sampling grid is given in normalized units. The
script needs PyTorch and no JAX. Each line of standard input names a kernel (``forward``, ``flow gradient``, ``image
gradient``); the answer is its time in milliseconds. Importing this module does not need PyTorch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any


def kernels(shape: tuple[int, int, int, int], largest: float) -> dict[str, Callable[[], Any]]:
    """Functions that run one kernel on random images and a smooth flow with components up to `largest` pixels."""
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n, h, w, c = shape
    images = torch.rand(n, c, h, w, device=device)
    incoming = torch.randn(n, c, h, w, device=device)
    coarse = largest * (2 * torch.rand(n, 2, -(-h // 8), -(-w // 8), device=device) - 1)
    flow = functional.interpolate(coarse, (h, w), mode="bilinear").permute(0, 2, 3, 1)
    rows, columns = torch.linspace(-1, 1, h, device=device), torch.linspace(-1, 1, w, device=device)
    identity = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    scale = torch.tensor([2 / (w - 1), 2 / (h - 1)], device=device)
    grid = (identity + scale * flow).contiguous()

    def sample(images: Any, grid: Any) -> Any:
        return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)

    def forward() -> Any:
        with torch.no_grad():
            return sample(images, grid)

    def gradient(images: Any, grid: Any, wanted: Any) -> Any:
        wanted.requires_grad_()
        outputs = sample(images, grid)
        return outputs, torch.autograd.grad(outputs, wanted, incoming)

    free_images, free_grid = images.clone(), grid.clone()
    return {
        "forward": forward,
        "flow gradient": lambda: gradient(images, free_grid, free_grid),
        "image gradient": lambda: gradient(free_images, grid, free_images),
    }


def milliseconds(function: Callable[[], Any], count: int) -> float:
    """Mean milliseconds of `count` calls in a row."""
    import torch

    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        function()
    synchronize()
    return 1e3 * (time.perf_counter() - start) / count


def main(argv: list[str] | None = None) -> None:
    """Answers requests until standard input ends."""
    parser = argparse.ArgumentParser(description="Times PyTorch's grid_sample.")
    parser.add_argument("--shape", type=int, nargs=4, default=(128, 32, 32, 3), help="n h w c")
    parser.add_argument("--largest", type=float, default=0.9, help="largest component of the flow, in pixels")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    import torch

    torch.set_num_threads(arguments.threads)
    functions = kernels(tuple(arguments.shape), arguments.largest)
    counts = {}
    for name, function in functions.items():
        milliseconds(function, 2)  # The first calls allocate memory.
        counts[name] = max(1, round(20 / milliseconds(function, 3)))
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.strip()
        print(f"{milliseconds(functions[name], counts[name]):.5f}", flush=True)


if __name__ == "__main__":
    main()
