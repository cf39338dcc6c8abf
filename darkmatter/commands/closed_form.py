"""The closed form of the paper's synthetic test (T7), where an experiment is one."""

from __future__ import annotations

import math

import numpy as np

from darkmatter.sandbox import Surgical, population_covariance
from darkmatter.sandbox.experiment import Experiment
from darkmatter.theory import SyntheticTest, synthetic_test


def closed_form(experiment: Experiment) -> SyntheticTest | None:
    """What the test reports in the population, if the experiment is x' = S + a g with recon = S + r g'.

    That is a Gaussian dense part over all d dimensions, and a surgical SAE that knows every feature exactly and adds
    independent noise. Then a² = Var D / d and r² = introduced_share · Var x / d.

    Args:
        experiment: The experiment.

    Returns:
        The values; None for any other experiment.
    """
    world, sae = experiment.world, experiment.sae
    if world.dense != "gaussian" or world.dense_dim != world.d_model or not isinstance(sae, Surgical):
        return None
    distorted = sae.shrinkage or sae.tilt or sae.splitting or sae.absorption
    if distorted or sae.introduced not in {"none", "independent"}:
        return None
    if len(sae.features(world.n_features)) != world.n_features:
        return None
    noise = world.dense_variance / world.d_model
    eigenvalues = np.linalg.eigvalsh(population_covariance(world)) - noise
    introduced = sae.introduced_share * world.variance / world.d_model
    return synthetic_test(np.maximum(eigenvalues, 0.0), a=math.sqrt(noise), r=math.sqrt(introduced))
