"""Every training method at small settings, by the name that tests give it."""

from train.config import Method

METHODS = {
    "standard": Method(),
    "input-gradient": Method(name="input-gradient", weight=0.1),
    "flow-gradient": Method(name="flow-gradient", weight=1.0),
    "random start": Method(name="flow-gradient", weight=1.0, random_start=0.1),
    "finite difference": Method(name="flow-gradient", weight=1.0, penalty="finite-difference"),
    "running statistics": Method(name="flow-gradient", weight=1.0, statistics="running"),
    "every third": Method(name="flow-gradient", weight=1.0, every=3),
    "adversarial": Method(name="adversarial", radius=0.03, steps=2),
    "deformation": Method(name="deformation", radius=0.2, steps=2),
    "both": Method(name="flow-gradient+deformation", weight=1.0, radius=0.2, steps=2),
    "spatial": Method(name="spatial", radius=1.0, degrees=10.0, draws=3),
}
