"""Population R² of squared norms on a world, in closed form (theorem A), for `darkmatter norms` and its tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from darkmatter.analyses.norms import VECTORS
from darkmatter.errors import InputError
from darkmatter.sandbox import Surgical, World, norm_probe
from darkmatter.sandbox.norm_probe import KINDS
from darkmatter.sandbox.population import pseudo_inverse
from darkmatter.theory import norm_probe as theory
from darkmatter.theory.amplitudes import gated_moments

Floats = npt.NDArray[np.float64]
Truth = dict[str, dict[str, dict[str, float]]]

_GAUSSIAN = np.array([[0.0], [1.0], [0.0], [3.0]])
_CONSTANT = np.ones((4, 1))


def norm_truth(world: World, surgical: Surgical | None) -> Truth:
    """Population values of what `norm_probes` estimates, as far as there is a closed form.

    Independent Gaussian dense coordinates are factors like any other, with raw moments 0, 1, 0, 3, and a constant is a
    factor that does not vary: with them the linear part (x − x̄) M + ē and what is left are vectors of theorem A too,
    M = Cov(x)⁺ Cov(x, e).

    Args:
        world: The world.
        surgical: Its SAE; None where it was trained.

    Returns:
        By SAE ("" for x), vector, and "uncentred" or "centred"; empty where nothing has a closed form.
    """
    try:
        plain = norm_probe(world, surgical or Surgical(learned=0))
    except InputError:
        try:
            return {"": {"x": {"uncentred": norm_probe(world, Surgical(learned=0)).x}}}
        except InputError:
            return {}
    gaussian = world.dense_dim == 0 or world.dense == "gaussian"
    if surgical is None or not gaussian or (surgical.introduced_share and surgical.introduced not in KINDS):
        found: Truth = {"": {"x": {"uncentred": plain.x}}}
        if surgical is not None:
            found["surgical"] = {"recon": {"uncentred": plain.recon}, "error": {"uncentred": plain.error}}
        return found
    return _all(world, surgical)


def _all(world: World, surgical: Surgical) -> Truth:
    bound = surgical.bind(world)
    response, m, k = bound.response, world.n_features, world.dense_dim
    assert response is not None, "norm_probe has refused it"
    raw = np.hstack([
        gated_moments(world.amplitude_law.moments, world.firing_rates, world.amplitude_scales),
        np.repeat(_GAUSSIAN, k, axis=1),
    ])
    x = np.vstack([world.dictionary_matrix, world.dense_map]).astype(np.float64)
    recon = np.vstack([response[:m], np.zeros((k, world.d_model))])
    spread = (raw[1] - raw[0] ** 2)[:, None]
    linear = x @ pseudo_inverse(x.T @ (spread * x)) @ (x.T @ (spread * (x - recon)))
    noise = bound.scale
    vectors = {  # map from the factors, noise, and what must be added to the mean
        "x": (x, 0.0, 0.0),
        "recon": (recon, noise, 0.0),
        "error": (x - recon, noise, 0.0),
        "linear": (linear, 0.0, raw[0] @ (x - recon - linear)),
        "nonlinear": (x - recon - linear, noise, -raw[0] @ (x - recon - linear)),
        "recon_minus_nonlinear": (x - linear, 0.0, -raw[0] @ (x - recon - linear)),
    }
    found = {kind: {"uncentred": _r2(raw, x, *parts)} for kind, parts in vectors.items()}
    for kind, (rows, scale, _) in vectors.items():
        found[kind]["centred"] = _r2(_central(raw), x, rows, scale, 0.0)
    return {"": {"x": found["x"]}, "surgical": {kind: found[kind] for kind in VECTORS}}


def _r2(moments: Floats, x: Floats, rows: Floats, noise: float, shift: Floats | float) -> float:
    d = x.shape[1]
    factors = theory.Factors.sparse(np.vstack([x, np.zeros((1, d))]), np.hstack([moments, _CONSTANT]))
    vector = theory.Vector(np.vstack([rows, np.broadcast_to(shift, (1, d))]), np.zeros((0, d)), noise)
    return theory.norm_probe(factors, vector)[0].r2


def _central(raw: Floats) -> Floats:
    one, two, three, four = raw
    return np.stack([
        np.zeros_like(one),
        two - one**2,
        three - 3 * two * one + 2 * one**3,
        four - 4 * three * one + 6 * two * one**2 - 3 * one**4,
    ])
