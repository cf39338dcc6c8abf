"""Which SAEs are replicates of one recipe, which is the wider of two, and what may be read from a pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.sae import SAE

Kind = Literal["one recipe", "wider", "unequal", "unknown", "control", "degenerate"]

L0_TOLERANCE = 0.1
"""Relative difference of two measured L0 up to which they count as one."""

CONDITIONS: Mapping[Kind, str] = {
    "one recipe": (
        "unshared, if half the variance of the difference of the two interferences is at most the covariance of the "
        "introduced errors (T8b): two seeds of one recipe"
    ),
    "wider": (
        "corrected (mean of the pair), and the instrument of the wider SAE, if it has learned all that the narrower "
        "has and shrinks it no more (T8c, T8d); unshared holds the difference of the interferences"
    ),
    "unequal": "none: neither SAE is known to have learned all that the other has",
    "unknown": "none: the recipes are not known; say which SAEs share one, and see the conditions of every number",
    "control": "none: a null control",
    "degenerate": "none: one of the two SAEs is dead or affine on these tokens",
}
"""Which lower end of introduced error a pair gives, and when."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is known of how an SAE was made, apart from its seed and data.

    Attributes:
        activation: Its activation.
        d_sae: Latents.
        l0: Latents active per token: k where it is fixed, else measured.
        fixed: Whether L0 is fixed.
    """

    activation: str
    d_sae: int
    l0: float
    fixed: bool

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.activation}, {self.d_sae} latents, L0 {self.l0:.3g}"

    def same(self, other: Recipe) -> bool:
        """Whether two are one recipe: equal activation, width, and L0 (within a tenth where it is measured)."""
        return (self.activation, self.d_sae) == (other.activation, other.d_sae) and self._near(other)

    def _near(self, other: Recipe) -> bool:
        tolerance = 0.0 if self.fixed and other.fixed else L0_TOLERANCE
        return abs(self.l0 - other.l0) <= tolerance * max(self.l0, other.l0)

    def wider(self, other: Recipe) -> bool:
        """Whether this one has at least as many latents and as many active, more of one, and the same activation."""
        more = self.d_sae > other.d_sae or self.l0 > other.l0
        enough = self.d_sae >= other.d_sae and (self.l0 >= other.l0 or self._near(other))
        return self.activation == other.activation and more and enough and not self.same(other)


def recipe_of(sae: SAE, x: Tensor) -> Recipe:
    """Read a recipe from weights, and L0 from some tokens where it is not fixed.

    Architectures that are saved alike (batchtopk, matryoshka and jumprelu are all thresholds) are told apart only by
    width and L0.

    Args:
        sae: The SAE.
        x: Tokens to measure L0 on, (n, d_model).

    Returns:
        The recipe.
    """
    fixed = sae.k is not None
    l0 = float(sae.k) if sae.k is not None else sae.encode(x.to(sae.device)).l0
    return Recipe(activation=sae.activation, d_sae=sae.d_sae, l0=l0, fixed=fixed)


@dataclass(frozen=True, slots=True)
class Recipes:
    """What is known of all SAEs of a source.

    Attributes:
        read: Recipes that were read from weights.
        stated: Labels that the caller gave, by SAE; they decide where both SAEs have one.
    """

    read: Mapping[str, Recipe]
    stated: Mapping[str, str]

    def label(self, name: str) -> str | None:
        """An SAE's recipe in words, if known."""
        return self.stated.get(name) or (self.read[name].label if name in self.read else None)

    def kind(self, first: str, second: str) -> tuple[Kind, str | None]:
        """How two SAEs relate, and which one is the wider."""
        a, b = self.read.get(first), self.read.get(second)
        stated = (self.stated.get(first), self.stated.get(second))
        if None not in stated and stated[0] == stated[1]:
            return "one recipe", None
        if a is None or b is None:
            return ("unequal" if None not in stated else "unknown"), None
        if a.same(b) and None in stated:
            return "one recipe", None
        if a.wider(b):
            return "wider", first
        return ("wider", second) if b.wider(a) else ("unequal", None)

    def groups(self, names: tuple[str, ...]) -> list[list[int]]:
        """SAEs of one recipe, at least two of them, in the order of their names in the source."""
        left, found = list(range(len(names))), []
        while left:
            group = [left.pop(0)]
            for i in group:  # grows while it is walked: recipes within tolerance of a member belong to it
                near = [j for j in left if self.kind(names[i], names[j])[0] == "one recipe"]
                left = [j for j in left if j not in near]
                group.extend(near)
            if len(group) > 1:
                found.append(sorted(group))
        return found


def check_recipes(recipes: Mapping[str, str], names: tuple[str, ...]) -> None:
    """Refuse a label for an SAE that is not there.

    Args:
        recipes: Labels by SAE.
        names: The SAEs.

    Raises:
        InputError: Unknown names or empty labels.
    """
    unknown = sorted(set(recipes) - set(names))
    if unknown:
        raise InputError(f"a recipe is given for {unknown[0]!r}, expected one of {', '.join(names)}")
    if not all(isinstance(label, str) and label for label in recipes.values()):
        raise InputError("a recipe has no label, expected NAME=LABEL: SAEs with equal labels are replicates")
