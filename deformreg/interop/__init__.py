"""Models of other frameworks as logits functions for every attack, evaluation and certificate.

- `from_torch`: a PyTorch module; derivatives with respect to the images come from PyTorch.
- `from_numpy`: a function of NumPy arrays, for example an ONNX session or a web service; it has no derivatives.

The results work inside `jit`, where they call the model on the host.
"""

from deformreg.interop.host import ModelError, NoGradients
from deformreg.interop.numpy_model import from_numpy
from deformreg.interop.torch_model import from_torch

__all__ = ["ModelError", "NoGradients", "from_numpy", "from_torch"]
