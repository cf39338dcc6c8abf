"""What several SAEs on the same tokens say about introduced error (T8)."""

from darkmatter.analyses.replicates.bracket import bracket_moments, replicate_bracket
from darkmatter.analyses.replicates.conditions import Check
from darkmatter.analyses.replicates.recipes import Recipe, recipe_of
from darkmatter.analyses.replicates.result import Pair, RecipeSet, ReplicateBracket, SaeBracket

__all__ = [
    "Check",
    "Pair",
    "Recipe",
    "RecipeSet",
    "ReplicateBracket",
    "SaeBracket",
    "bracket_moments",
    "recipe_of",
    "replicate_bracket",
]
