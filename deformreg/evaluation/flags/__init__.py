"""Red flags: symptoms of a model that only looks robust, or of an evaluation that measures something else.

A flag is a reason to distrust a robust accuracy, not a proof; its evidence is the numbers behind it. Each file holds
one group: what is measured, the checks, and their registry. A check is a function from the measurement to a flag or
None, with the flag's name as its own; a new one is that function and one line in the registry of its group.

- `outcomes`: what the attacks of the suite found.
- `outputs`: the model's outputs on clean images.
- `responses`: gradients at the clean images, and short attacks at several budgets.
- `queries`: outputs under random perturbations, in place of `responses` for a model without gradients.
- `diagnosis`: runs the last two, and says if the model failed there.

References:
    Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 3.1.
    Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705.
    Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
    ICML 2020.
"""

from deformreg.evaluation.flags.diagnosis import compile_diagnosis
from deformreg.evaluation.flags.flag import Flag, raised
from deformreg.evaluation.flags.outcomes import OUTCOME_FLAGS
from deformreg.evaluation.flags.outputs import OUTPUT_FLAGS
from deformreg.evaluation.flags.queries import QUERY_FLAGS
from deformreg.evaluation.flags.responses import CLASS_FLAGS, RESPONSE_FLAGS

__all__ = [
    "CLASS_FLAGS",
    "OUTCOME_FLAGS",
    "OUTPUT_FLAGS",
    "QUERY_FLAGS",
    "RESPONSE_FLAGS",
    "Flag",
    "compile_diagnosis",
    "raised",
]
