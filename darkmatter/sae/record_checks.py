"""Checks of an SAE record: which fields its activation needs, and how their shapes fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from darkmatter.errors import InputError

if TYPE_CHECKING:
    from darkmatter.sae.record import SAE

Activation = Literal["relu", "topk", "groupmax", "jumprelu", "gated"]
InputNorm = Literal["layer_norm", "constant_norm"]

_SELECTING = ("topk", "groupmax")
_GATE = ("b_gate", "b_mag", "r_mag")


def check_activation(sae: SAE) -> None:
    """Check that the record has the fields of its activation, and no others.

    Args:
        sae: The record.

    Raises:
        InputError: An unknown activation or input norm, or a field that is missing or has no meaning.
    """
    if sae.activation not in get_args(Activation):
        raise InputError(f"activation is {sae.activation!r}, expected one of {', '.join(get_args(Activation))}")
    if sae.input_norm not in (None, *get_args(InputNorm)):
        raise InputError(f"input_norm is {sae.input_norm!r}, expected None or one of {', '.join(get_args(InputNorm))}")
    if (sae.k is not None) != (sae.activation in _SELECTING):
        raise InputError(
            f"k is {sae.k} with activation {sae.activation!r}, expected an integer for {' and '.join(_SELECTING)} and "
            "None else"
        )
    if (sae.threshold is not None) != (sae.activation == "jumprelu"):
        got = "is missing" if sae.threshold is None else "is given"
        raise InputError(f"threshold {got} with activation {sae.activation!r}, expected for jumprelu and only there")
    for name in _GATE:
        present = getattr(sae, name) is not None
        if present != (sae.activation == "gated"):
            got = "is given" if present else "is missing"
            raise InputError(f"{name} {got} with activation {sae.activation!r}, expected for gated and only there")


def check_shapes(sae: SAE) -> None:
    """Check that the tensors fit together; the sizes come from b_dec and b_enc.

    Args:
        sae: The record.

    Raises:
        InputError: A shape that does not fit, named, or a k that is impossible.
    """
    for name, value, symbol in (("b_enc", sae.b_enc, "d_sae"), ("b_dec", sae.b_dec, "d_model")):
        if value.ndim != 1 or len(value) == 0:
            raise InputError(f"{name} has shape {tuple(value.shape)}, expected ({symbol},), at least one entry")
    d_model, d_sae = len(sae.b_dec), len(sae.b_enc)
    for name, value, symbols, want in (
        ("W_enc", sae.W_enc, "(d_model, d_sae)", (d_model, d_sae)),
        ("W_dec", sae.W_dec, "(d_sae, d_model)", (d_sae, d_model)),
    ):
        shape = tuple(value.shape)
        if shape != want:
            hint = "it looks transposed: pass `.T`" if shape == want[::-1] else "the sizes come from b_dec and b_enc"
            raise InputError(f"{name} has shape {shape}, expected {symbols} = {want}: {hint}")
    if sae.b_pre is not None and sae.b_pre.shape != (d_model,):
        raise InputError(f"b_pre has shape {tuple(sae.b_pre.shape)}, expected (d_model,) = ({d_model},)")
    if sae.threshold is not None and sae.threshold.shape not in {(), (d_sae,)}:
        raise InputError(f"threshold has shape {tuple(sae.threshold.shape)}, expected () or (d_sae,) = ({d_sae},)")
    for name in _GATE:
        value = getattr(sae, name)
        if value is not None and value.shape != (d_sae,):
            raise InputError(f"{name} has shape {tuple(value.shape)}, expected (d_sae,) = ({d_sae},)")
    if sae.k is not None and not (type(sae.k) is int and 1 <= sae.k <= d_sae):
        raise InputError(f"k is {sae.k!r}, expected an integer from 1 to d_sae = {d_sae}")
    if sae.k is not None and sae.activation == "groupmax" and d_sae % sae.k:
        raise InputError(f"k is {sae.k}, expected a divisor of d_sae = {d_sae}: groupmax needs groups of equal size")
    if sae.input_norm == "layer_norm" and d_model < 2:
        raise InputError("input_norm is 'layer_norm' with d_model = 1, expected at least 2: one value has no spread")
