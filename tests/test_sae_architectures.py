"""The six architectures: what is trained is what is saved, learning, steering, norms and revival."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.sae import SAE, Architecture, TrainConfig, TrainedSAE, load_sae, save_sae, train_sae
from darkmatter.sae.optimise import Optimiser
from darkmatter.sae.parameters import Parameters, initialise
from darkmatter.sae.step import Objective, evaluate
from darkmatter.sae.units import Units, calibrate, fold
from darkmatter.sae.workspace import Workspace
from tests.helpers import KINDS, SELECTING, configure

# records


def random_parameters(config: TrainConfig, units: Units) -> Parameters:
    g = torch.Generator().manual_seed(1)
    p = initialise(16, config, units.variance, g)
    for value in (p.enc, p.b_enc, p.b_dec, *([p.b_mag] if p.b_mag is not None else [])):
        value.add_(torch.randn(value.shape, generator=g) * 0.3)
    if p.r_mag is not None:
        p.r_mag.normal_(generator=g).mul_(0.2)
    return p


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("normalise", "rank"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("tied", [True, False])
def test_the_record_computes_what_was_trained(kind: Architecture, normalise: bool, rank: bool, tied: bool) -> None:
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)) * 3 + 5
    extra: dict[str, Any] = {"normalise_decoder": normalise, "rank_by_norm": rank, "tie_b_dec": tied}
    if not normalise:
        extra["decoder_init_norm"] = 0.3
    config = configure(kind, d_sae=40, n_tokens=10_000, **extra)
    units = calibrate([x])
    p = random_parameters(config, units)
    with torch.no_grad():
        step = evaluate(p, units.convert(x.clone()), Objective(config, units.variance, 0.1, None, Workspace()))
        cut = None if step.cut is None else math.nextafter(step.cut, 0) * (1 - 1e-5)  # jumprelu is strict
        sae = fold(p, units, config, cut)
    if rank or kind not in SELECTING:
        assert float((sae.W_dec.norm(dim=1) - 1).abs().max()) < 8 * torch.finfo(torch.float32).eps
    if kind == "matryoshka":
        assert sae.activation == "jumprelu"
    inner, outer = step.error, (sae(x) - x) / units.scale
    agree = (outer - inner).abs().amax(dim=1) <= 1e-4  # some 1e2 roundings of numbers up to 30
    assert float(agree.double().mean()) > 0.99  # a code at its threshold may fall to the other side
    assert float(inner.abs().max()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_trained_saes_survive_saving(kind: Architecture, tmp_path: Any) -> None:
    x = easy(2048, seed=1)[0]
    trained = train_sae([x], configure(kind, d_sae=40, n_tokens=2048, batch_size=128))
    save_sae(trained.sae, tmp_path, metadata=trained.describe())
    assert load_sae(tmp_path).fingerprint() == trained.sae.fingerprint()
    assert TrainConfig(**trained.describe()["config"]) == trained.config
    again = train_sae([x], trained.config)
    assert again.sae.fingerprint() == trained.sae.fingerprint()
    other = train_sae([x], replace(trained.config, seed=1))
    assert other.sae.fingerprint() != trained.sae.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_the_unit_of_the_activations_does_not_matter(kind: Architecture) -> None:
    x, config = easy(1024, seed=1)[0], configure(kind, d_sae=40, n_tokens=1024, batch_size=128)
    one, other = train_sae([x], config), train_sae([x * 2.0**-7], config)
    assert one.history == other.history  # so prices, thresholds and learning rates mean the same in any unit
    assert torch.equal(one.sae(x) * 2.0**-7, other.sae(x * 2.0**-7))


# learning


def easy(n: int, *, seed: int) -> tuple[Tensor, np.ndarray]:
    """64 random unit features in 128 dimensions, 6 at a time with exponential amplitudes, rates as rank^-1/2."""
    dictionary = np.random.default_rng(99).standard_normal((64, 128))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    rates = np.arange(1, 65) ** -0.5
    rng = np.random.default_rng(seed)
    codes = (rng.random((n, 64)) < rates * 6 / rates.sum()) * rng.standard_exponential((n, 64))
    return torch.from_numpy((codes @ dictionary).astype(np.float32)), dictionary


def mean_cosine(sae: SAE, dictionary: np.ndarray) -> float:
    """Mean correlation coefficient: mean cosine of the best one-to-one match of latents to features."""
    cosines = dictionary @ sae.W_dec.double().numpy().T
    rows, columns = linear_sum_assignment(-cosines)
    return float(cosines[rows, columns].mean())


def fvu(sae: SAE, x: Tensor) -> float:
    error = (sae(x) - x).double()
    return float(error.square().sum() / (x.double() - x.double().mean(0)).square().sum())


@pytest.fixture(scope="module")
def learned() -> dict[str, TrainedSAE]:
    torch.set_num_threads(1)
    x, _ = easy(150_000, seed=1)
    return {kind: train_sae([x], configure(kind, d_sae=80, n_tokens=150_000, batch_size=256)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_recovers_an_easy_world(kind: Architecture, learned: dict[str, TrainedSAE]) -> None:
    _, dictionary = easy(1, seed=0)
    test, _ = easy(20_000, seed=2)
    trained = learned[kind]
    assert mean_cosine(trained.sae, dictionary) >= 0.95
    assert fvu(trained.sae, test) < 0.06
    assert abs(trained.history[-1][1] - fvu(trained.sae, test)) < 0.01
    assert trained.dead_share < 0.15
    x, _ = easy(256, seed=1)
    start = train_sae([x], replace(trained.config, n_tokens=256))
    assert mean_cosine(start.sae, dictionary) < 0.5  # what no learning would score


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_the_tracked_threshold_gives_k_latents_per_token(kind: Architecture, learned: dict[str, TrainedSAE]) -> None:
    sae = learned[kind].sae
    assert sae.activation == "jumprelu"
    assert learned[kind].l0 == pytest.approx(4)
    assert sae.encode(easy(20_000, seed=2)[0]).l0 == pytest.approx(4, rel=0.1)


def test_the_first_groups_of_matryoshka_reconstruct_alone(learned: dict[str, TrainedSAE]) -> None:
    test, _ = easy(5_000, seed=2)

    def nested(sae: SAE, size: int) -> float:
        codes = sae.encode(test).dense()[:, :size]
        error = codes @ sae.W_dec[:size] + sae.b_dec - test
        return float(error.square().sum() / (test - test.mean(0)).square().sum())

    matryoshka, plain = learned["matryoshka"], learned["batchtopk"]
    assert matryoshka.config.prefixes == (5, 10, 20, 40, 80)
    shares = [nested(matryoshka.sae, size) for size in matryoshka.config.prefixes]
    assert all(a > b for a, b in pairwise(shares))
    assert shares[2] < nested(plain.sae, 20) - 0.1  # batchtopk spreads the common features over all latents


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated"])
@pytest.mark.parametrize("l0", [3.0, 6.0])
def test_the_price_is_steered_to_the_wanted_l0(kind: Architecture, l0: float) -> None:
    x, _ = easy(100_000, seed=1)
    trained = train_sae([x], configure(kind, d_sae=80, n_tokens=100_000, batch_size=256, l0=l0))
    assert trained.l0 == pytest.approx(l0, rel=0.2)


# decoder norms and revival


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_constraint_works_and_matters(kind: Architecture) -> None:
    x, _ = easy(4096, seed=1)

    def trained_norms(**fields: Any) -> Tensor:
        config = configure(kind, d_sae=40, n_tokens=4096, batch_size=128, **fields)
        units = calibrate([x])
        run = Optimiser(config, d_model=128, variance=units.variance, device=torch.device("cpu"))
        with torch.no_grad():
            for batch in units.convert(x.clone()).split(128):  # type: ignore[no-untyped-call]
                run.step(batch)
        norms: Tensor = run.parameters.dec.norm(dim=1)
        return norms

    assert float((trained_norms() - 1).abs().max()) < 8 * torch.finfo(torch.float32).eps
    assert float((trained_norms(normalise_decoder=False) - 1).abs().max()) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_dead_latents_are_revived_and_it_matters(kind: Architecture) -> None:
    x, _ = easy(128 * 120, seed=1)
    units = calibrate([x])

    def crippled(dead_after: int) -> Optimiser:
        config = configure(kind, d_sae=40, n_tokens=128 * 160, batch_size=128, dead_after=dead_after)
        run = Optimiser(config, d_model=128, variance=units.variance, device=torch.device("cpu"))
        run.parameters.b_enc[:30] = -1000.0
        with torch.no_grad():
            for number, batch in enumerate(units.convert(x.clone()).split(128)):  # type: ignore[no-untyped-call]
                if number == 100:
                    run.window.take()
                run.step(batch)
        return run

    without, revived = crippled(10**6), crippled(512)
    assert int((without.silent[:30] == 120 * 128).sum()) == 30  # they were dead, and stay so
    assert int((revived.silent[:30] < 2048).sum()) >= 25
    assert revived.window.take()[0] < 0.8 * without.window.take()[0]


# settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gelu", "k": 3}, "architecture is 'gelu', expected one of topk, batchtopk"),
        ({"encode_dtype": "float16", "k": 3}, "encode_dtype is 'float16', expected one of float32, bfloat16"),
        ({}, "k is None, expected an integer of at least 1"),
        ({"architecture": "relu", "k": 3}, "k is given with architecture 'relu', expected only for topk"),
        ({"k": 3, "l1": 0.1}, "l1 is given with architecture 'topk', expected only for relu, gated"),
        ({"architecture": "gated", "l0_coefficient": 0.1}, "l0_coefficient is given with architecture 'gated'"),
        ({"k": 3, "l0": 5.0}, "l0 is given with architecture 'topk'"),
        ({"architecture": "relu", "bandwidth": 0.1}, "bandwidth is given with architecture 'relu'"),
        ({"architecture": "batchtopk", "k": 3, "groups": (24,)}, "groups is given with architecture 'batchtopk'"),
        ({"architecture": "matryoshka", "k": 3, "groups": (12, 23)}, r"groups is \(12, 23\), expected sizes of nested"),
        ({"architecture": "matryoshka", "k": 3, "groups": (12, 12, 24)}, r"groups is \(12, 12, 24\)"),
        ({"architecture": "matryoshka", "k": 3, "groups": ()}, r"groups is \(\)"),
        ({"architecture": "matryoshka", "k": 3, "groups": (0, 24)}, "groups is 0, expected an integer"),
        ({"architecture": "relu", "l1": 0.0}, "l1 is 0.0, expected a positive number"),
        ({"architecture": "relu", "l1": True}, "l1 is True"),
        ({"architecture": "jumprelu", "l0": 25.0}, "l0 is 25.0, expected at most d_sae = 24"),
        ({"k": 3, "decoder_init_norm": 0.1}, "decoder_init_norm is 0.1, expected 1 with unit decoder rows"),
        ({"k": 3, "standardise": 1}, "standardise is 1, expected True or False"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(d_sae=24, n_tokens=4096, **change)


def test_settings_round_trip_through_json_types() -> None:
    config = configure("matryoshka", d_sae=24, n_tokens=4096, groups=(6, 24))
    plain = asdict(config) | {"groups": [6, 24]}
    assert TrainConfig(**plain) == config
    assert TrainConfig(d_sae=1, n_tokens=4096, k=1, architecture="matryoshka").prefixes == (1,)
    assert configure("relu", d_sae=9, n_tokens=4096).prefixes == (9,)


def test_raw_units_train_on_the_activations_as_they_are() -> None:
    x, _ = easy(4096, seed=1)
    config = configure("topk", d_sae=80, n_tokens=4096, batch_size=512, standardise=False, tie_b_dec=True)
    trained = train_sae([x * 8], config)
    assert trained.sae.b_pre is not None
    assert torch.equal(trained.sae.b_pre, trained.sae.b_dec)
    assert trained.history[-1][1] == pytest.approx(fvu(trained.sae, x * 8), rel=0.5)
