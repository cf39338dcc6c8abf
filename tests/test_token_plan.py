"""`darkmatter tokens`: widths foretold by a pilot against widths measured, the algebra, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from darkmatter import Decomposition, Estimate, World, decompose, decompose_many
from darkmatter.commands.token_plan import (
    WantedWidth,
    parse_half_width,
    plan_all,
    read_results,
    run_tokens,
    summary,
    words,
)
from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import write_json
from darkmatter.report import Report
from darkmatter.sandbox import Surgical
from darkmatter.token_plan import QUANTITIES, TokenPlan, plan_tokens
from tests.helpers import tiny_world

WORLD = World(n_features=96, d_model=24, dense_dim=4, l0=6.0, doc_tokens=8)
SURGICAL = Surgical(learned=48, shrinkage=0.1, introduced="heteroscedastic", introduced_share=0.03)
PILOT, SEEDS = 960, 24

MISSES = 6
"""Of 24 ranges of 95 %, each true with probability .95, more than 6 miss with probability 1.3e-4."""


def measured(n_tokens: int, stream: str) -> Decomposition:
    return decompose(WORLD.pair(SURGICAL, n_tokens=n_tokens, stream=stream))


@pytest.fixture(scope="module")
def runs() -> list[tuple[Decomposition, Decomposition, Decomposition]]:
    """Pilots, and runs of 4 and 16 times as many tokens, none of which share a token."""
    return [
        (measured(PILOT, f"pilot{seed}"), measured(4 * PILOT, f"four{seed}"), measured(16 * PILOT, f"sixteen{seed}"))
        for seed in range(SEEDS)
    ]


def half(result: Decomposition, quantity: str) -> float:
    estimate: Estimate = getattr(result, quantity)
    return (estimate.high - estimate.low) / 2


@pytest.mark.parametrize("quantity", ["fvu_nonlinear", "fvu", "r2_error", "linear_share", "gain"])
@pytest.mark.parametrize("which", [1, 2])
def test_a_pilot_foretells_the_width_of_longer_runs(
    runs: list[tuple[Decomposition, ...]], quantity: str, which: int
) -> None:
    assert stats.binom.sf(MISSES, SEEDS, 0.05) < 1.4e-4
    inside, short, too_steep = 0, 0, 0
    for run in runs:
        pilot, longer = run[0], run[which]
        foretold = plan_tokens(pilot, quantity=quantity, folds=longer.n_folds).half_width_at(longer.n_tokens)
        got, times = half(longer, quantity), longer.n_tokens / pilot.n_tokens
        inside += foretold.contains(got)
        # it would fail: a width that stays as it is, or that falls as 1/n
        short += foretold.contains(got / math.sqrt(times))
        too_steep += foretold.contains(got * math.sqrt(times))
    assert inside >= SEEDS - MISSES
    assert max(short, too_steep) < SEEDS - MISSES


def test_the_widening_is_part_of_the_forecast() -> None:
    """At 3 tokens per direction sqrt(n/(n − rank − 1)) is 1.24, and it must go as the run gets longer."""
    ratios, plain = [], []
    for seed in range(SEEDS):
        pilot, longer = measured(72, f"short{seed}"), measured(PILOT, f"long{seed}")
        plan = plan_tokens(pilot, folds=longer.n_folds)
        ratios.append(half(longer, "fvu_nonlinear") / plan.half_width_at(longer.n_tokens).value)
        plain.append(ratios[-1] * math.sqrt((72 - 25) / 72 * PILOT / (PILOT - 25)))
    error = np.std(np.log(ratios), ddof=1) / math.sqrt(SEEDS)
    assert abs(np.mean(np.log(ratios))) < 3 * error
    assert np.mean(np.log(plain)) < np.mean(np.log(ratios)) - 0.15


@pytest.fixture(scope="module")
def pilot() -> Decomposition:
    return decompose(tiny_world(3000, 12))


@pytest.fixture(scope="module")
def pair() -> dict[str, Decomposition]:
    return decompose_many(tiny_world(3000, 12, n_saes=2))


@pytest.mark.parametrize("quantity", QUANTITIES)
@given(share=st.floats(0.001, 0.5))
def test_plan_and_forecast_are_inverse(pair: dict[str, Decomposition], quantity: str, share: float) -> None:
    plan = plan_tokens(pair["sae0"], quantity=quantity, half_width=share)
    assert plan.half_width_at(plan.tokens).value <= plan.half_width * (1 + 1e-12)
    # one token less is not enough
    if plan.tokens > 14 + 1:
        assert plan.half_width_at(plan.tokens - 1).value > plan.half_width * (1 - 1e-12)
    assert plan.tokens_low <= plan.tokens <= plan.tokens_high


def test_against_a_transcription(pilot: Decomposition) -> None:
    value, n, k, rank = pilot.fvu_nonlinear, pilot.n_tokens, pilot.n_folds, pilot.rank
    standard_error = math.log(value.high / value.value) / stats.t.ppf(0.975, k - 1)
    variance_per_token = standard_error**2 * (n - rank - 1)
    wanted = math.asinh(0.02) / stats.t.ppf(0.975, 9)  # ± 2 % from 10 folds
    plan = plan_tokens(pilot, half_width=0.02, folds=10)
    needed = variance_per_token / wanted**2
    assert plan.tokens == math.ceil(needed) + rank + 1
    assert plan.tokens_low == math.ceil(needed * (k - 1) / stats.chi2.ppf(0.975, k - 1)) + rank + 1
    assert plan.tokens_high == math.ceil(needed * (k - 1) / stats.chi2.ppf(0.025, k - 1)) + rank + 1
    assert plan.half_width == pytest.approx(0.02 * value.value)


def test_what_a_pilot_at_its_own_size_needs_is_what_it_had(pilot: Decomposition) -> None:
    for quantity in ("fvu", "fvu_nonlinear", "r2_error", "gain", "linear_share"):
        plan = plan_tokens(pilot, quantity=quantity, half_width=half(pilot, quantity), relative=False)
        assert abs(plan.tokens - pilot.n_tokens) <= 1


def test_floor_holds_directions_and_documents(pilot: Decomposition) -> None:
    plan = plan_tokens(pilot, half_width=5.0)
    assert plan.floor == plan.advised == max(10 * 12, 5 * 20 * 10)
    assert plan.documents == 100
    assert plan_tokens(pilot, half_width=5.0, folds=2).floor == 10 * 12
    assert plan_tokens(pilot, half_width=0.001).advised > plan.floor
    assert "need that many to be trusted" in summary({"sae0": plan})


def test_weak_pilots_warn() -> None:
    few = decompose(tiny_world(36, 12, per_document=1))
    assert "3.0 tokens per direction" in plan_tokens(few).warnings[0]
    rare = decompose(tiny_world(3000, 12, per_document=60))
    assert "50 documents" in plan_tokens(rare).warnings[0]
    assert plan_tokens(decompose(tiny_world(3000, 12))).warnings == ()


def test_pairs(pair: dict[str, Decomposition]) -> None:
    result = pair["sae0"]
    assert plan_tokens(result, quantity="unshared").pilot == result.replicates["sae1"].unshared
    assert plan_tokens(result, quantity="shared:sae1").pilot == result.replicates["sae1"].shared
    with pytest.raises(InputError, match=r"^quantity is 'shared:sae2', expected shared:OTHER with OTHER one of sae1$"):
        plan_tokens(result, quantity="shared:sae2")


def test_refusals(pilot: Decomposition) -> None:
    for message, options in (
        (r"quantity is 'fun', expected one of fvu_nonlinear, fvu, .*", {"quantity": "fun"}),
        (r"quantity is 'fvu:b', expected 'fvu': it is of one SAE, not of a pair", {"quantity": "fvu:b"}),
        (r"unshared is of a pair of SAEs, and the pilot of sae0 has one: decompose two", {"quantity": "unshared"}),
        (r"half_width is 0, expected a positive number, such as 0.01 for ± 1 %", {"half_width": 0}),
        (r"half_width is nan, expected a positive number, such as 0.01 for ± 1 %", {"half_width": math.nan}),
        (r"folds is 1, expected at least 2: an interval needs two folds that differ", {"folds": 1}),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            plan_tokens(pilot, **options)  # type: ignore[arg-type]
    for estimate, message in (
        (Estimate(math.nan, math.nan, math.nan), "gain of sae0 is undefined in the pilot: plan for another quantity"),
        (Estimate(0.0, -0.1, 0.1), "gain of sae0 is 0, which has no relative width: give an absolute one"),
        (Estimate(0.5, 0.5, 0.5), "gain of sae0 has an interval without width, from which nothing follows"),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            plan_tokens(replace(pilot, gain=estimate), quantity="gain")
    with pytest.raises(InputError, match=r"is too wide to plan from: take a longer pilot$"):
        plan_tokens(replace(pilot, fvu=Estimate(0.5, 0.0, 2.0)), quantity="fvu")
    with pytest.raises(InputError, match=r"^n_tokens is 13, expected more than 13: that many directions are fitted$"):
        plan_tokens(pilot).half_width_at(13)


def test_parse_half_width() -> None:
    assert parse_half_width("1%") == (0.01, True)
    assert parse_half_width(" 2.5 % ") == (0.025, True)
    assert parse_half_width("0.002") == (0.002, False)
    for bad in ("", "%", "-1%", "0", "nan", "inf%", "1 percent"):
        with pytest.raises(InputError, match=r"expected a share of the estimate such as 1%, or a number as 0.002$"):
            parse_half_width(bad)


def test_words() -> None:
    known = {7: "7", 999: "999", 1000: "1,000", 12_345: "12,300", 54_321: "54,000", 999_999: "1 million"}
    known |= {1_266_000: "1.27 million", 35_400_000: "35 million", 354_000_000: "350 million", 2 * 10**9: "2 billion"}
    assert {n: words(n) for n in known} == known


def test_command(pair: dict[str, Decomposition], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "report.json", Report(saes=pair, source={}).to_dict())
    run_tokens(tmp_path, WantedWidth(half_width="2%"))
    shown = capsys.readouterr().out
    assert "tokens for fvu_nonlinear ± 2 % of its value" in shown
    assert "sae0" in shown and "sae1" in shown and "3,000 tokens, 20 folds, 10.0 tokens per document" in shown
    run_tokens(tmp_path / "report.json", WantedWidth(half_width="2%", saes=["sae1"]), as_json=True)
    plans = json.loads(capsys.readouterr().out)
    expected = plan_tokens(pair["sae1"], half_width=0.02)
    assert list(plans) == ["sae1"]
    assert {key: plans["sae1"][key] for key in ("tokens", "tokens_low", "tokens_high", "advised", "documents")} == {
        key: getattr(expected, key) for key in ("tokens", "tokens_low", "tokens_high", "advised", "documents")
    }
    # the results of a pilot pass are as good as its report
    assert plan_all(pair, WantedWidth()) == plan_all(read_results(tmp_path), WantedWidth())
    largest = max((plan_tokens(result, half_width=0.02) for result in pair.values()), key=lambda plan: plan.tokens)
    assert f"About {words(largest.tokens)} tokens" in summary({"a": largest, "b": _cheaper(largest)})


def _cheaper(plan: TokenPlan) -> TokenPlan:
    return replace(plan, tokens=plan.tokens // 2, tokens_low=1)


def test_command_refuses(pair: dict[str, Decomposition], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^the pilot has no SAE 'c', expected one of sae0, sae1$"):
        plan_all(pair, WantedWidth(saes=["c"]))
    path = tmp_path / "report.json"
    path.write_text('{"format": "darkmatter-experiment", "version": 1}')
    with pytest.raises(FileFormatError, match=r"pass the report.json of `darkmatter decompose`$"):
        read_results(tmp_path)
    report = Report(saes=pair, source={}).to_dict()
    del report["saes"]["sae0"]["rank"]
    write_json(path, report)
    with pytest.raises(FileFormatError, match=r"is damaged .*: run the pilot again$"):
        read_results(path)
    with pytest.raises(FileFormatError, match=r"expected the report.json of `darkmatter decompose`"):
        read_results(tmp_path / "none.json")
