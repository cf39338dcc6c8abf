"""SAEs trained on the linear and on the nonlinear part of an SAE's error."""

from darkmatter.analyses.error_saes.alignment import Alignment, best_cosines
from darkmatter.analyses.error_saes.contexts import ContextPlan, Kept
from darkmatter.analyses.error_saes.evaluation import Measured, evaluate
from darkmatter.analyses.error_saes.parts import Maps, Split, Target
from darkmatter.analyses.error_saes.result import TargetResult, TrainOnError
from darkmatter.analyses.error_saes.run import DEFAULT, NAMED, chosen, train_on_error
from darkmatter.analyses.error_saes.training import TrainingEstimate, estimate_training

__all__ = [
    "DEFAULT",
    "NAMED",
    "Alignment",
    "ContextPlan",
    "Kept",
    "Maps",
    "Measured",
    "Split",
    "Target",
    "TargetResult",
    "TrainOnError",
    "TrainingEstimate",
    "best_cosines",
    "chosen",
    "estimate_training",
    "evaluate",
    "train_on_error",
]
