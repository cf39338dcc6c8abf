"""What a decomposition returns: frozen records that write themselves as JSON and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from darkmatter.batch import Array
from darkmatter.checks import as_float_tensor, check_matrix
from darkmatter.errors import InputError
from darkmatter.inference import Estimate

FORMAT = "darkmatter-decomposition"
FORMAT_VERSION = 1

DEFINITION = (
    "Var is the trace of the covariance over all tokens, pooled over coordinates and centred. e = x - Sae(x). "
    "fvu = Var e / Var x. r = e minus its best affine prediction from x (with intercept); "
    "fvu_nonlinear = Var r / Var x; r2_error = 1 - Var r / Var e; linear_share = fvu - fvu_nonlinear. "
    "Var r is sqrt(S*C), S the in-sample and C the out-of-fold residual variance pooled over leave-one-fold-out "
    "fits, folds by document. gain = tr Cov(x, Sae) / Var Sae, the best scalar rescaling of Sae(x); shrinkage = "
    "(gain - 1)^2 Var Sae / Var x, the share that rescaling would remove. r2_norm: R2 of |e|^2 regressed on x. "
    "Intervals: 95 %, Student t on fold influences."
)

INTRODUCED_ASSUMPTIONS = (
    "T5b. Learned sparse part S1 uncorrelated with the rest of x, its features with each other; introduced error N "
    "uncorrelated with both; the linear error shrinks each learned feature by its own s_i in [0, 1]. Then "
    "max(0, Var Sae - Cov(x, Sae)) <= Var N <= Var r, the left end attained without shrinkage; the right end needs T3 "
    "alone. A decoder trained to optimal scale has Var Sae = Cov(x, Sae), so one trained SAE says nothing from below "
    "(T5e): read the sensitivity Var N(s), s the mean shrinkage, or compare two SAEs (T8)."
)

REPLICATE_ASSUMPTIONS = (
    "T8. For SAEs a (this one) and b on the same tokens, shares of Var x: unshared = Var(r_a - r_b) / 2, shared = "
    "Cov(r_a, r_b); corrected = [Var(a - b) - |Cov(x, a - b)|] / 2 and instrument = Var a - Cov(x, a) Cov(a, b) / "
    "Cov(x, b), both cut at 0. Each is a lower end of introduced error Var N only if the introduced errors are not "
    "negatively correlated, and: unshared (mean of the pair) if half the variance of the difference of the "
    "interferences is at most Cov(N_a, N_b), so for SAEs that differ only in seed; corrected (mean of the pair) if one "
    "SAE has learned all that the other has and shrinks it no more; instrument (this SAE) if it has learned all that b "
    "has and shrinks all of it alike. Upper end: fvu_nonlinear."
)


@dataclass(frozen=True, slots=True)
class Introduced:
    """Bounds on the share of Var x that the SAE itself introduces, Var N / Var x (T5b).

    Attributes:
        low: Lower end with its sampling error: never above the truth in 97.5 % of samples, given the assumptions.
        high: Upper end with its sampling error.
        lower_end: max(0, Var Sae − Cov(x, Sae)) / Var x.
        upper_end: Var r / Var x, the same as `fvu_nonlinear`.
        sensitivity: Points (s, Var N(s) / Var x), Var N(s) = Var Sae − (1 − s) Cov(x, Sae), up to the upper end; s is
            the mean of the features' shrinkages, feature i weighted by (1 − s_i) Var(w_i).
        max_shrinkage: Largest s that the data allow if all features shrink alike: 1 minus the largest eigenvalue of
            the map of Sae on x. Trained SAEs shrink unevenly, and their mean shrinkage is larger (proofs/08).
        assumptions: What must hold, in words.
    """

    low: float
    high: float
    lower_end: Estimate
    upper_end: Estimate
    sensitivity: tuple[tuple[float, float], ...]
    max_shrinkage: float
    assumptions: str = INTRODUCED_ASSUMPTIONS


@dataclass(frozen=True, slots=True)
class Replicate:
    """What two SAEs on the same tokens say together (T8); all shares are of Var x.

    Attributes:
        unshared: ½ Var(r_a − r_b): private to the two SAEs.
        shared: Cov(r_a, r_b): common to both.
        correlation: Correlation of the two nonlinear residuals.
        corrected: max(0, ½ [Var(a − b) − |Cov(x, a − b)|]): free of interference for nested pairs.
        instrument: max(0, Var a − Cov(x, a) Cov(a, b) / Cov(x, b)), about SAE a alone, by means of b; undefined where b
            is not positively correlated with x. The only number here that changes when a and b change places.
        assumptions: When each is a lower bound of introduced error.
    """

    unshared: Estimate
    shared: Estimate
    correlation: Estimate
    corrected: Estimate
    instrument: Estimate
    assumptions: str = REPLICATE_ASSUMPTIONS


@dataclass(frozen=True, slots=True)
class AffineMap:
    """The linear error as a map: L(x) = x @ weight + bias, (n, d) → (n, d).

    Attributes:
        weight: (d, d), float64.
        bias: (d,), float64.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Predict the error from activations x, (n, d); computed and returned in float64."""
        return x.to(self.weight) @ self.weight + self.bias


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Where one SAE's reconstruction error comes from; every share is of Var x. `definition` says what each is.

    Attributes:
        name: The SAE.
        fvu: Fraction of variance unexplained, Var e / Var x.
        r2_error: Share of the error that is affine in x.
        fvu_nonlinear: Nonlinear error, Var r / Var x.
        linear_share: fvu − fvu_nonlinear.
        gain: Scalar α that minimises Var(x − α Sae(x)).
        shrinkage: Share of Var x that rescaling by the gain would remove.
        introduced: Bounds on the error that the SAE introduces.
        r2_norm: R² of |e|² regressed on x.
        r2_norm_x: R² of |x|² regressed on x.
        r2_norm_recon: R² of |Sae(x)|² regressed on x.
        replicates: Comparison with every other SAE of the same pass, by name.
        insample: S / Var x, the optimistic half of fvu_nonlinear.
        heldout: C / Var x, the pessimistic half; fvu_nonlinear = sqrt(insample · heldout).
        n_tokens: Tokens n.
        n_groups: Documents.
        n_folds: Folds that hold tokens.
        d_model: Width d.
        rank: Directions in which x varies.
        condition: Condition number of Cov x.
        max_token_share: Share of Σ|x − x̄|² carried by the farthest token.
        max_leverage: Leverage of that token, 1/n + (x − x̄)'G⁻¹(x − x̄) ≤ 1.
        degenerate: "dead" or "affine" where R² says nothing about the SAE's errors.
        warnings: What a reader must know before trusting the numbers.
        definition: How every number is defined.
        linear_map: The affine map from x to the linear error; None after `from_json`.
    """

    name: str
    fvu: Estimate
    r2_error: Estimate
    fvu_nonlinear: Estimate
    linear_share: Estimate
    gain: Estimate
    shrinkage: Estimate
    introduced: Introduced
    r2_norm: Estimate
    r2_norm_x: Estimate
    r2_norm_recon: Estimate
    replicates: Mapping[str, Replicate]
    insample: float
    heldout: float
    n_tokens: int
    n_groups: int
    n_folds: int
    d_model: int
    rank: int
    condition: float
    max_token_share: float
    max_leverage: float
    degenerate: Literal["dead", "affine"] | None
    warnings: tuple[str, ...]
    definition: str = DEFINITION
    linear_map: AffineMap | None = field(default=None, compare=False, repr=False)

    def split(self, x: Array, recon: Array) -> tuple[Array, Array]:
        """Split the error of given tokens: e = linear + nonlinear, linear = x @ weight + bias.

        Args:
            x: Activations, (n, d_model), numpy or torch.
            recon: Reconstructions of the same tokens, same shape.

        Returns:
            The linear and the nonlinear error, (n, d_model) each, float64, numpy if `x` is numpy.

        Raises:
            InputError: Wrong shapes, or the map is missing because this record was read from JSON.
        """
        if self.linear_map is None:
            raise InputError(f"{self.name}: a decomposition read from JSON has no linear map: run decompose again")
        tensor, other = as_float_tensor(x, "x"), as_float_tensor(recon, "recon")
        check_matrix(tensor, "x", d=self.d_model)
        check_matrix(other, "recon", n=len(tensor), d=self.d_model)
        linear = self.linear_map(tensor)
        nonlinear = tensor.to(linear) - other.to(linear) - linear
        return (linear.numpy(), nonlinear.numpy()) if isinstance(x, np.ndarray) else (linear, nonlinear)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; NaN becomes None, the linear map is left out (it is a file of its own)."""
        return {"format": FORMAT, "version": FORMAT_VERSION, **to_plain(self)}

    def to_json(self) -> str:
        """Write as JSON, without the linear map."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Decomposition:
        """Read what `to_dict` wrote.

        Args:
            value: The plain form.

        Returns:
            The record, without its linear map.

        Raises:
            InputError: Not a decomposition, or of another version.
        """
        found = (value.get("format"), value.get("version"))
        if found != (FORMAT, FORMAT_VERSION):
            raise InputError(f"format and version are {found}, expected {(FORMAT, FORMAT_VERSION)}")
        try:
            plain = {f.name: _READERS.get(str(f.type), _as_is)(value[f.name]) for f in fields(cls) if f.compare}
            plain["introduced"] = _introduced(plain["introduced"])
            plain["replicates"] = {name: _replicate(pair) for name, pair in plain["replicates"].items()}
            plain["warnings"] = _texts(plain["warnings"])
            plain["degenerate"] = _kind(plain["degenerate"])
            return cls(**plain)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"not a complete decomposition: {type(error).__name__} {error}") from None

    @classmethod
    def from_json(cls, text: str) -> Decomposition:
        """Read what `to_json` wrote.

        Args:
            text: JSON.

        Returns:
            The record, without its linear map.

        Raises:
            InputError: Not JSON, not a decomposition, or of another version.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not JSON ({error}), expected what to_json wrote") from None
        if not isinstance(value, dict):
            raise InputError(f"a JSON {type(value).__name__}, expected an object written by to_json")
        return cls.from_dict(value)


def to_plain(value: Any) -> Any:
    """Turn records, tuples and mappings into JSON-able values; NaN and infinity become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value) if f.compare}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _as_is(value: Any) -> Any:
    return value


def _kind(value: Any) -> Any:
    if value not in (None, "dead", "affine"):
        raise ValueError(f"{value!r} is no kind of degenerate SAE")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no string")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r} is no list")
    return tuple(_text(item) for item in value)


def _count(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no integer")
    return value


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, float | int):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _estimate(value: Mapping[str, float | None]) -> Estimate:
    return Estimate(_number(value["value"]), _number(value["low"]), _number(value["high"]))


def _replicate(value: Mapping[str, Any]) -> Replicate:
    return Replicate(
        unshared=_estimate(value["unshared"]),
        shared=_estimate(value["shared"]),
        correlation=_estimate(value["correlation"]),
        corrected=_estimate(value["corrected"]),
        instrument=_estimate(value["instrument"]),
        assumptions=_text(value["assumptions"]),
    )


def _introduced(value: Mapping[str, Any]) -> Introduced:
    return Introduced(
        low=_number(value["low"]),
        high=_number(value["high"]),
        lower_end=_estimate(value["lower_end"]),
        upper_end=_estimate(value["upper_end"]),
        sensitivity=tuple((_number(s), _number(share)) for s, share in value["sensitivity"]),
        max_shrinkage=_number(value["max_shrinkage"]),
        assumptions=_text(value["assumptions"]),
    )


_READERS: dict[str, Callable[[Any], Any]] = {"Estimate": _estimate, "float": _number, "int": _count, "str": _text}
