"""The optimizer of a run: Optax SGD under a learning-rate schedule."""

from __future__ import annotations

import optax

from train.config import Optimizer


def learning_rate(options: Optimizer, *, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate as a function of the step."""
    total, warmup = epochs * steps_per_epoch, round(options.warmup_epochs * steps_per_epoch)
    peak = options.learning_rate
    if options.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(peak, max(total - warmup, 1))
    elif options.schedule == "step":
        drops = {epoch * steps_per_epoch - warmup: options.decay_factor for epoch in options.decay_epochs}
        schedule = optax.piecewise_constant_schedule(peak, drops)
    else:
        schedule = optax.constant_schedule(peak)
    if not warmup:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


def make_optimizer(options: Optimizer, schedule: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """SGD with momentum; weight decay joins the gradient before the momentum, as in PyTorch's SGD."""
    return optax.chain(
        optax.add_decayed_weights(options.weight_decay),
        optax.sgd(schedule, momentum=options.momentum or None, nesterov=options.nesterov),
    )
