"""Figures and sentences: they render for whatever a decomposition can hold, repeat themselves, and say what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rcParams
from matplotlib.image import imread

from darkmatter.adapters import from_arrays
from darkmatter.decomposition import decompose_many
from darkmatter.inference import Estimate
from darkmatter.plots import save_decomposition_figure
from darkmatter.plots_sites import save_sites_figure
from darkmatter.report import percent, percent_interval, verdict
from darkmatter.results import Decomposition
from tests.helpers import tiny_world


def share(value: float) -> Estimate:
    return Estimate(value, 0.9 * value, 1.1 * value)


TRUTH = {
    "fvu": share(0.35),
    "nonlinear": share(0.15),
    "introduced": share(0.1),
    "interference": Estimate(-0.001, -0.003, 0.001),  # a Monte Carlo truth may come out below zero
    "absent": share(0.1),
    "dense": share(0.05),
    "linear": share(0.1),
    "cross": share(0.001),
}


@pytest.fixture(scope="module")
def results() -> dict[str, Decomposition]:
    """Two ordinary SAEs, a dead one, an affine one, and one that is exactly proportional to x."""
    world = tiny_world(2000, 8, n_saes=2, mean=3.0)
    mix = np.random.default_rng(0).standard_normal((8, 8)) / 6
    recons = {
        **world.recons,
        "dead": np.full_like(world.x, 0.5),
        "affine": world.x @ mix + 1.0,
        "scaled": 0.75 * world.x,
    }
    return decompose_many(from_arrays(world.x, recons, world.groups))


def picked(results: dict[str, Decomposition], *names: str) -> dict[str, Decomposition]:
    return {name: results[name] for name in names}


# figures


def test_sites_are_drawn_whatever_they_hold(results: dict[str, Decomposition], tmp_path: Path) -> None:
    undefined = Estimate(float("nan"), float("nan"), float("nan"))
    odd = {"odd": replace(results["sae0"], r2_norm=undefined)}
    by_site = {"resid_post:1": results, "mlp_out:1": picked(results, "dead"), "resid_post:2": odd}
    for path in (tmp_path / "first.png", tmp_path / "second.png"):
        save_sites_figure(path, by_site)
    assert imread(tmp_path / "first.png").shape[2] in (3, 4)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (("sae0",), False),
        (("sae0",), True),
        (("sae0", "sae1", "dead"), False),
        (("dead", "sae0", "sae1"), True),
        (("dead",), False),
        (("affine", "scaled"), False),
    ],
)
def test_the_figure_renders(
    tmp_path: Path, results: dict[str, Decomposition], names: tuple[str, ...], known: bool
) -> None:
    shown = picked(results, *names)
    truth = {names[0]: TRUTH} if known else None
    save_decomposition_figure(tmp_path / "figure.png", shown, truth)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    pixels = imread(tmp_path / "figure.png")
    rows = len(names) + 2 * known
    assert pixels.shape[:2] == (int(160 * (1.7 + 0.78 * rows)), 1376)
    colours = {tuple(c) for c in np.round(255 * pixels[..., :3].reshape(-1, 3)).astype(int).tolist()}
    assert len(colours) > 3 and (255, 255, 255) in colours  # it holds bars, not only paper
    blue, orange = (86, 180, 233), (213, 94, 0)  # linear; introduced, which only the truth shows
    assert blue in colours and (orange in colours) == known


def test_intervals_without_width_are_drawn(tmp_path: Path, results: dict[str, Decomposition]) -> None:
    # an error bar of rounding below zero length is an error to matplotlib; (whole - part) + part falls short here
    whole, part = 0.41, 0.09
    assert (whole - part) + part < whole
    fvu, nonlinear, linear = (Estimate(v, v, v) for v in (whole, part, whole - part))
    exact = replace(results["sae0"], fvu=fvu, fvu_nonlinear=nonlinear, linear_share=linear)
    save_decomposition_figure(tmp_path / "figure.png", {"exact": exact})
    assert imread(tmp_path / "figure.png").size


def test_every_number_that_does_not_exist_may_be_missing(tmp_path: Path, results: dict[str, Decomposition]) -> None:
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    empty = replace(results["sae0"], fvu=nothing, fvu_nonlinear=nothing, linear_share=nothing, gain=nothing)
    save_decomposition_figure(tmp_path / "figure.png", {"empty": empty, "sae1": results["sae1"]})
    assert imread(tmp_path / "figure.png").size


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_figure_has_the_same_bytes(
    tmp_path: Path, results: dict[str, Decomposition], suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = picked(results, "sae0", "dead")
    save_decomposition_figure(tmp_path / f"a{suffix}", shown, {"sae0": TRUTH})
    monkeypatch.setattr("time.time", lambda: 2e9)  # another day
    save_decomposition_figure(tmp_path / f"b{suffix}", shown, {"sae0": TRUTH})
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    save_decomposition_figure(tmp_path / f"c{suffix}", picked(results, "sae1", "dead"))
    assert (tmp_path / f"a{suffix}").read_bytes() != (tmp_path / f"c{suffix}").read_bytes()


def test_a_figure_that_cannot_be_drawn_leaves_the_old_one(tmp_path: Path, results: dict[str, Decomposition]) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"the old one")
    with pytest.raises(KeyError):
        save_decomposition_figure(path, picked(results, "sae0"), {"sae0": {}})
    assert path.read_bytes() == b"the old one" and len(list(tmp_path.iterdir())) == 1


def test_drawing_leaves_the_settings_alone(tmp_path: Path, results: dict[str, Decomposition]) -> None:
    before = dict(rcParams)
    save_decomposition_figure(tmp_path / "figure.svg", picked(results, "sae0"))
    assert dict(rcParams) == before


# sentences


def test_the_verdict_on_an_ordinary_sae(results: dict[str, Decomposition]) -> None:
    result = results["sae0"]
    text = verdict(result)
    for estimate in (result.fvu, result.linear_share, result.fvu_nonlinear):
        assert percent_interval(estimate) in text
    assert text.startswith("sae0 misses") and "(T3, T5b)" in text
    assert percent(result.introduced.high) in text


def test_the_verdict_never_calls_nonlinear_error_introduced_without_bounds(results: dict[str, Decomposition]) -> None:
    result = results["sae0"]
    zero = replace(result, introduced=replace(result.introduced, low=0.0))
    assert f"at most {percent(result.introduced.high)} of the variance" in verdict(zero)
    lower = replace(result, introduced=replace(result.introduced, low=result.introduced.high / 2))
    low, high = percent(result.introduced.high / 2), percent(result.introduced.high)
    assert f"between {low} and {high} of the variance" in verdict(lower)


def test_the_verdict_on_saes_that_have_nothing_to_decompose(results: dict[str, Decomposition]) -> None:
    assert verdict(results["dead"]).startswith("dead is dead: it reconstructs a constant")
    for name in ("affine", "scaled"):
        assert results[name].degenerate == "affine"
        assert verdict(results[name]).startswith(f"{name} is affine on these tokens")
        assert "introduced" not in verdict(results[name])


# numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00 %"),
        (0.1234, "12.3 %"),
        (1.0, "100.0 %"),
        (0.01234, "1.23 %"),
        (-0.25, "-25.0 %"),
        (1e-9, "0.00 %"),
        (12.5, "1250.0 %"),
        (float("nan"), "nan %"),
    ],
)
def test_percent(value: float, text: str) -> None:
    assert percent(value) == text


@given(st.floats(-1e6, 1e6))
def test_percent_reads_back_as_what_it_was(value: float) -> None:
    text = percent(value)
    assert text.endswith(" %") and "e" not in text
    digits = len(text[:-2].partition(".")[2])
    assert digits in (1, 2)
    assert abs(float(text[:-2]) - 100 * value) <= 0.5 * 10.0**-digits * (1 + 1e-9) + 1e-9 * abs(value)


def test_percent_interval() -> None:
    assert percent_interval(Estimate(0.123, 0.0987, 0.15)) == "12.3 % [9.87, 15.0]"
