"""PyTorch modules as logits functions whose derivatives PyTorch computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jax import Array

from deformreg import _checks
from deformreg.interop.host import (
    HostArray,
    HostModel,
    ModelError,
    checked,
    failures_of,
    in_batches,
    logits_function,
)

WHAT = "the PyTorch module"


def from_torch(
    module: Any,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int | None = None,
) -> Callable[[Array], Array]:
    """Makes a logits function of a PyTorch module; its derivative with respect to the images comes from PyTorch.

    The module stays where it is and as it is: each call puts it into evaluation mode and restores the mode of every
    submodule, and no gradient is accumulated in its parameters. Images are moved to the device and type of its
    parameters. Second derivatives raise `NoGradients`.

    Args:
        module: a ``torch.nn.Module`` from ``[n, c, h, w]`` (``[n, c, ...]`` for signals and volumes) to logits
            ``[n, classes]``, or to an object with the attribute `logits`, like the classifiers of Hugging Face.
        mean: subtracted from the images, one number per channel; None for zeros.
        std: then divides them, one number per channel; None for ones.
        batch_size: the only number of images that the module takes: others are split, and the last batch is filled up
            with copies. None if it takes any number.

    Returns:
        ``images -> logits[n, classes]`` for images ``float[n, h, w, c]``, also inside `jit`. For images of a
        new shape, the module is first called once on zeros.

    Raises:
        ImportError: PyTorch is not installed.
        TypeError: `module` is no module.
        ValueError: a `mean` that is no list of finite numbers, a `std` that is not above zero, or a batch size below 1.
        ModelError: when traced or called, if the module fails or returns no logits.
        NoGradients: when differentiated, if the logits do not depend on the images as far as PyTorch knows.

    Example:
        >>> import deformreg
        >>> def robust_accuracy(module, images, labels, key):  # images in [0, 1]
        ...     logits_fn = from_torch(module, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        ...     suite = deformreg.evaluation.suites.quick(0.5)
        ...     return deformreg.evaluate(logits_fn, images, labels, suite, key=key).robust_accuracy
    """
    batch_size = None if batch_size is None else _checks.count("batch_size", batch_size)
    model = _TorchModel(module, _per_channel("mean", mean), _per_channel("std", std), batch_size)
    return logits_function(
        HostModel(
            classes=lambda shape: model.probe(shape)[0],
            logits=model.logits,
            linearize=model.linearize,
            pull_back=model.pull_back,
            no_gradients=model.no_gradients,
        )
    )


def _per_channel(name: str, values: Sequence[float] | None) -> HostArray | None:
    if values is None:
        return None
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not np.isfinite(numbers).all() or (name == "std" and not (numbers > 0).all()):
        wanted = "finite numbers above 0" if name == "std" else "finite numbers"
        raise ValueError(f"{name} must be {wanted}, one per channel, got {values!r}")
    return numbers


class _TorchModel:
    """Calls a module on NumPy arrays, one call at a time.

    A derivative needs the graph of its forward pass. The latest graph is kept, so that a step of an attack costs one
    forward pass; a derivative that comes too late computes it again.
    """

    def __init__(self, module: Any, mean: HostArray | None, std: HostArray | None, batch_size: int | None) -> None:
        try:
            import torch
        except ImportError as error:
            raise ImportError("from_torch needs PyTorch: pip install torch") from error

        if not isinstance(module, torch.nn.Module):
            called = ": call it, it is a class" if isinstance(module, type) else ""
            raise TypeError(f"module must be a torch.nn.Module, got {_checks.described(module)}{called}")
        self.torch = torch
        self.module = module
        self.mean, self.std = mean, std
        self.batch_size = batch_size
        self.lock = threading.RLock()  # JAX calls from several threads
        self.probed: dict[tuple[int, ...], tuple[int, bool]] = {}
        self.latest: tuple[int, list[tuple[Any, Any, int]]] = (0, [])

    def probe(self, shape: tuple[int, ...]) -> tuple[int, bool]:
        """The number of classes for images of a shape, and whether the logits are differentiable; calls the module."""
        if shape not in self.probed:
            with self.lock:
                (_, outputs, _), *_ = self._graphs(
                    np.zeros((self.batch_size or max(shape[0], 1), *shape[1:]), np.float32)
                )
            self.probed[shape] = outputs.shape[1], outputs.requires_grad
        return self.probed[shape]

    def no_gradients(self, shape: tuple[int, ...]) -> str | None:
        if self.probe(shape)[1]:
            return None
        return (
            f"{WHAT} computes its logits without gradients (detach, no_grad, argmax): remove that, or use from_numpy "
            "and attacks without gradients"
        )

    def logits(self, images: HostArray) -> HostArray:
        with self.lock, self.torch.no_grad():
            self.latest = (self.latest[0], [])  # frees the graph
            batches = in_batches(images, self.batch_size)
            outputs = ((self._call(self._tensor(batch), batch), count) for batch, count in batches)
            return self._together(images.shape, outputs)

    def linearize(self, images: HostArray) -> tuple[HostArray, int]:
        with self.lock:
            token = (self.latest[0] + 1) % 2**31
            self.latest = (token, [])
            self.latest = (token, self._graphs(images))
            return self._together(images.shape, ((outputs, count) for _, outputs, count in self.latest[1])), token

    def pull_back(self, images: HostArray, token: HostArray, cotangents: HostArray) -> HostArray:
        with self.lock, failures_of(f"the gradient of {WHAT}", images):
            known, graphs = self.latest
            if known != int(token) or not graphs:
                graphs = self._graphs(images)
            parts, first = [np.zeros((0, *images.shape[1:]), np.float32)], 0
            for inputs, outputs, count in graphs:
                given = self.torch.zeros_like(outputs)
                given[:count] = self.torch.from_numpy(np.array(cotangents[first : first + count], _wide(cotangents)))
                # The graph is kept: ADef pulls several cotangents back.
                (gradient,) = self.torch.autograd.grad(outputs, inputs, given, retain_graph=True)
                parts.append(np.moveaxis(_array(gradient)[:count], 1, -1))
                first += count
            return np.concatenate(parts)

    def _graphs(self, images: HostArray) -> list[tuple[Any, Any, int]]:
        """Inputs, logits that remember how they were computed, and the number of images that count, by batch."""
        graphs = []
        with self.torch.enable_grad():
            for batch, count in in_batches(images, self.batch_size):
                inputs = self._tensor(batch).requires_grad_()
                graphs.append((inputs, self._call(inputs, batch), count))
        return graphs

    def _tensor(self, images: HostArray) -> Any:
        """Images [n, c, ...] in the type and on the device of the module's parameters."""
        values = np.array(np.moveaxis(images, -1, 1), _wide(images), order="C")
        return self.torch.from_numpy(values).to(**self._place())

    def _place(self) -> dict[str, Any]:
        tensors = [*self.module.parameters(), *self.module.buffers()]
        floating = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
        return {} if floating is None else {"device": floating.device, "dtype": floating.dtype}

    def _call(self, inputs: Any, images: HostArray) -> Any:
        with failures_of(WHAT, images), _inference(self.module):
            outputs = self.module(self._standardized(inputs))
            outputs = getattr(outputs, "logits", outputs)
            if not isinstance(outputs, self.torch.Tensor):
                raise ModelError(f"{WHAT} must return logits, got {_checks.described(outputs)}: return them alone")
            checked(WHAT, _array(outputs), len(images), None)
            return outputs

    def _standardized(self, inputs: Any) -> Any:
        inputs = inputs.clone()  # the module may write to it
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is None:
                continue
            if len(values) != inputs.shape[1]:
                raise ModelError(f"{name} must have one number per channel: {inputs.shape[1]}, got {len(values)}")
            each = self.torch.as_tensor(values, dtype=inputs.dtype, device=inputs.device)
            each = each.reshape(-1, *(1,) * (inputs.ndim - 2))
            inputs = inputs - each if name == "mean" else inputs / each
        return inputs

    def _together(self, shape: tuple[int, ...], parts: Iterator[tuple[Any, int]]) -> HostArray:
        none = np.zeros((0, self.probe(shape)[0]), np.float32)
        return np.concatenate([none, *(_array(outputs)[:count] for outputs, count in parts)])


def _wide(values: HostArray) -> Any:
    """PyTorch takes no 16-bit types of other libraries."""
    return np.float64 if values.dtype == np.float64 else np.float32


def _array(tensor: Any) -> HostArray:
    """Half precision becomes float32, which NumPy knows."""
    tensor = tensor.detach().cpu()
    array: HostArray = (tensor.float() if tensor.element_size() < 4 else tensor).numpy()
    return array


@contextmanager
def _inference(module: Any) -> Iterator[None]:
    """Evaluation mode and frozen parameters; afterwards everything is as before."""
    training = [each for each in module.modules() if each.training]
    free = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for each in training:
            each.training = False
        for parameter in free:
            parameter.requires_grad_(False)
        yield
    finally:
        for each in training:
            each.training = True
        for parameter in free:
            parameter.requires_grad_(True)
