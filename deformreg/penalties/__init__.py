"""Gradient penalties: the size of each example's gradient of the loss with respect to a perturbation, at the identity.

One vjp through the model gives the losses and the image gradient; a family's pullback turns the image gradient into the
gradient with respect to its parameters. `jax.grad` differentiates the penalty. A training loss is::

    def objective(params):
        loss_fn = lambda images: cross_entropy(model(params, images), labels)
        penalties, losses = gradient_penalty(loss_fn, images)
        return jnp.mean(losses) + weight * jnp.mean(penalties)

`gradient_penalties` takes several families in one pass, and `regularized` makes a loss function that includes the
penalty.

The size is the squared Euclidean norm or, for example, the support of a ball: ``size=linf(0.5).support`` is the dual
norm times the radius.

Three rules compute the penalty. They give the same value, but their derivatives cost differently. A training step with
each rule costs, in forward passes (a plain training step costs 3):

- `gradient_penalty` takes 6: double backpropagation, exact. It stores the values that the inner backward pass computes,
  so it takes more memory than a plain step: up to twice as much on CPUs, two to six times as much on accelerators.
- `forward_over_reverse_penalty` takes 8: exact. It takes about as much memory as `gradient_penalty`, and less with
  `jax.checkpoint`, whose savings it preserves.
- `finite_difference_penalty` takes 8: approximate. It takes little more memory than a plain step.

`displacement_penalty` also takes 6: exact in the warp, whose two sides differ at whole pixels.

Three more penalties ask that the loss is close to linear in a ball, so that its gradient bounds it there:

- `local_linearity_penalty` (ELLE) takes 12: the error of interpolation between random points, from forward passes only.
- `curvature_penalty` (CURE) takes 12: the change of the gradient along the strongest first-order attack.
- `linearization_penalty` (LLR) takes 9, and 2 per step of its search: the error at the worst point.

References:
    Xia and Li, "Improving Resistance to Adversarial Deformations by Regularizing Gradients", Neurocomputing 455,
    2021 (flow gradient regularization, random start, and one formula for pixel and flow perturbations).
    Ross and Doshi-Velez, "Improving the Adversarial Robustness and Interpretability of Deep Neural Networks by
    Regularizing Their Input Gradients", AAAI 2018.
    Finlay and Oberman, "Scaleable Input Gradient Regularization for Adversarial Robustness", 2019 (the finite
    difference, for input gradients only).
    Rodriguez-Munoz et al., "Characterizing Model Robustness via Natural Input Gradients", ECCV 2024 (the l1 norm of
    the input gradient, the dual norm of the linf ball).
"""

from deformreg.penalties.curvature import curvature_penalty
from deformreg.penalties.displacement import displacement_penalty
from deformreg.penalties.exact import LossFn, Size, gradient_penalty, image_gradients, squared_norm
from deformreg.penalties.finite_difference import finite_difference_penalty
from deformreg.penalties.forward_over_reverse import forward_over_reverse_penalty
from deformreg.penalties.linearization import linearization_penalty
from deformreg.penalties.local_linearity import local_linearity_penalty
from deformreg.penalties.regularized import Metrics, regularized
from deformreg.penalties.several import gradient_penalties

__all__ = [
    "LossFn",
    "Metrics",
    "Size",
    "curvature_penalty",
    "displacement_penalty",
    "finite_difference_penalty",
    "forward_over_reverse_penalty",
    "gradient_penalties",
    "gradient_penalty",
    "image_gradients",
    "linearization_penalty",
    "local_linearity_penalty",
    "regularized",
    "squared_norm",
]
