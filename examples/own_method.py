"""A training method of one's own, as one value: the gradient with respect to rotations and translations is penalized.

Run it from the checkout: ``python examples/own_method.py [FOLDER]``. The run folder is like any other:
``python -m train evaluate FOLDER --suite standard`` attacks the network and writes a report.
"""

import sys
import tempfile
from pathlib import Path

import jax
import optax

import deformreg
from deformreg.attacks import rotation_translation

sys.path.insert(0, str(Path(__file__).parents[1]))  # `train` is an application beside the library
from train import Config, Method, fit
from train.config import Data
from train.methods.inputs import noisy
from train.methods.penalties import Exact, gradient_penalty
from train.restored import open_run

folder = Path(sys.argv[1]) if sys.argv[1:] else Path(tempfile.mkdtemp()) / "rigid"
rigid = deformreg.affine(parameters=("rotation", "dy", "dx"), boundary="zeros")  # radians, pixels, pixels
method = Method(
    "rigid-gradient",
    inputs=noisy(0.05, rigid),
    penalty=gradient_penalty(rigid, Exact()),
    weight=optax.linear_schedule(0.0, 0.3, 200),  # of the step: the penalty sets in slowly
    every=2,
)
print(f"{method.name}: {method.passes} forward passes a step, where a standard step costs 3")
fit(Config(data=Data(name="digits"), epochs=10), folder, method=method)

run = open_run(folder)
attack = rotation_translation(max_degrees=10.0, max_pixels=0.3, grid=(5, 3, 3))
evaluation = deformreg.evaluate(run.logits_fn, run.images, run.labels, [attack], key=jax.random.key(0), diagnosis=False)
print(f"accuracy {evaluation.clean_accuracy:.0%}, rotated and translated {evaluation.robust_accuracy:.0%}")
