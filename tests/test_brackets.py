"""The bounds on introduced error hold the truth where their assumptions do, and need not where they do not."""

from __future__ import annotations

import pytest

from darkmatter import Surgical, World, decompose, decompose_many

WORLD = World(
    n_features=256, d_model=32, dense_dim=4, l0=6.0, dense_share=0.1, topic_strength=0.0, doc_tokens=8, seed=3
)
N_TOKENS = 8192


ERRORS = [("none", 0.0), *((kind, share) for kind in ("independent", "heteroscedastic") for share in (0.02, 0.1))]


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(("kind", "share"), ERRORS)
def test_t5b_holds_the_truth(kind: str, shrinkage: float, share: float) -> None:
    sae = Surgical(learned=128, shrinkage=shrinkage, introduced=kind, introduced_share=share)  # type: ignore[arg-type]
    bounds = decompose(WORLD.pair(sae, n_tokens=N_TOKENS)).introduced
    # an end misses with probability 2.5 %; the draws are fixed, so none of the 15 cases can start to fail by chance
    assert bounds.low <= share <= bounds.high
    if shrinkage:  # hides introduced error from a single SAE: the lower end is far below, and s is not excluded
        assert bounds.lower_end.value < share + 1e-3
        assert bounds.max_shrinkage > shrinkage - 0.05
    else:  # without it the lower end is the truth
        assert bounds.lower_end.contains(share)


def test_t5b_keeps_only_the_trivial_end_against_an_sae_that_over_scales() -> None:
    result = decompose(WORLD.pair(lambda x: 1.3 * x, n_tokens=N_TOKENS))
    assert result.gain.high < 1.0
    assert result.introduced.lower_end.low > result.introduced.upper_end.high
    assert result.introduced.low == 0.0


def test_t8_brackets_the_truth_for_two_seeds_of_one_recipe() -> None:
    saes = {
        name: Surgical(learned=128, shrinkage=0.1, introduced="independent", introduced_share=0.05, seed=seed)
        for name, seed in (("a", 1), ("b", 2))
    }
    results = decompose_many(WORLD.pair(saes, n_tokens=N_TOKENS))
    pair = results["a"].replicates["b"]
    # equal interference, independent errors: the unshared part is the introduced error itself
    assert pair.unshared.contains(0.05)
    assert pair.unshared.low <= 0.05 <= results["a"].fvu_nonlinear.high
    # the single-SAE bracket of the same data reaches down to where shrinkage hides the error
    assert results["a"].introduced.low < 0.01
