"""The predictor ladder: how much of the error ever richer predictors explain, out of fold."""

from darkmatter.analyses.ladder.result import DEFINITION, Ladder, RankCurve, Rung, SaeLadder
from darkmatter.analyses.ladder.run import predictor_ladder
from darkmatter.analyses.ladder.training import Training

__all__ = ["DEFINITION", "Ladder", "RankCurve", "Rung", "SaeLadder", "Training", "predictor_ladder"]
