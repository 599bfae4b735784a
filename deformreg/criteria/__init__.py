"""What it means that a model is right about an image: criteria as values of pure functions of outputs and labels.

An attack and an evaluation ask two things of a criterion: whether an image's output is `broken`, and how far it is from
that. `classification` is the default; `segmentation`, `regression` and `multilabel` are others, and `from_margin` makes
one of a function of your own. Each is one file. A criterion is an argument of the run, not of the attack::

    right = segmentation(0.9)  # at least 90 % of the pixels
    pgd(ball=linf(0.5), num_steps=20).run(model, images, label_maps, key, criterion=right)
"""

from deformreg.criteria.classification import classification
from deformreg.criteria.criterion import Criterion, from_margin
from deformreg.criteria.multilabel import multilabel
from deformreg.criteria.regression import largest_error, regression
from deformreg.criteria.segmentation import segmentation

__all__ = [
    "Criterion",
    "classification",
    "from_margin",
    "largest_error",
    "multilabel",
    "regression",
    "segmentation",
]
