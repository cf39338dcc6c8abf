"""Writing SAEs in the layouts of other libraries: SAELens folders and GemmaScope `params.npz`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.files import replacing, write_json, write_tensors
from darkmatter.sae.record import SAE
from darkmatter.sae.store import check_target

SAELENS_VERSION = "6.54.0"
"""The SAELens version whose layout is written; without it a folder would be read by the rules before 6.0."""

_ARCHITECTURES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
_NORMS = {None: "none", "layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}


def export_saelens(sae: SAE, folder: Path | str, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write ``folder/cfg.json`` and ``folder/sae_weights.safetensors``, which SAELens' `SAE.load_from_disk` reads.

    SAELens can subtract b_dec from x and nothing else. Where b_pre is b_dec, bit for bit, it is told to; any other
    b_pre is folded into the encoder's bias, b_enc' = b_enc − b_pre @ W_enc, computed in float64 and rounded once. The
    gated layout has no b_enc: b_gate' = b_gate + b_enc' and b_mag' = b_mag + exp(r_mag) · b_enc'. Everything else is
    written as it is, in the record's dtype. `cfg.json` is removed first and written last, so that an interrupted
    export is refused by the reader instead of mixing two SAEs.

    Args:
        sae: The SAE, any activation but groupmax.
        folder: Created if missing; an export already there is replaced.
        metadata: Goes into `cfg.json` as SAELens' metadata (its own names are model_name, hook_name, ...), as JSON.

    Raises:
        InputError: A groupmax SAE, `metadata` is not JSON, `folder` is a file, or a folded bias overflows.
    """
    if sae.activation == "groupmax":
        raise InputError("a groupmax SAE has no SAELens form: write it with save_sae")
    folder, described = check_target(folder, metadata)
    described["sae_lens_version"] = SAELENS_VERSION
    subtracts = sae.b_pre is not None and torch.equal(sae.b_pre, sae.b_dec)
    b_enc = sae.b_enc.double() if subtracts else _folded_bias(sae)
    header = {
        "architecture": _ARCHITECTURES[sae.activation],
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": subtracts,
        "normalize_activations": _NORMS[sae.input_norm],
        "reshape_activations": "none",
        "metadata": described,
    }
    weights = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if sae.b_gate is not None and sae.b_mag is not None and sae.r_mag is not None:
        weights["b_gate"] = _rounded(sae.b_gate.double() + b_enc, "b_gate", sae.dtype)
        weights["b_mag"] = _rounded(sae.b_mag.double() + sae.r_mag.double().exp() * b_enc, "b_mag", sae.dtype)
        weights["r_mag"] = sae.r_mag
    else:
        weights["b_enc"] = _rounded(b_enc, "b_enc", sae.dtype)
    if sae.threshold is not None:
        weights["threshold"] = sae.threshold.expand(sae.d_sae)
    if sae.k is not None:
        # said outright: true would weigh the selection by the decoder's norms, which the record does not
        header |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    (folder / "cfg.json").unlink(missing_ok=True)
    # cloned, since safetensors refuses tensors that share memory
    write_tensors(folder / "sae_weights.safetensors", {name: value.clone() for name, value in weights.items()})
    write_json(folder / "cfg.json", header)


def export_gemmascope(sae: SAE, path: Path | str) -> None:
    """Write a GemmaScope `params.npz`: codes = relu(pre) · (pre > threshold), pre = x @ W_enc + b_enc, float32.

    * relu has threshold 0;
    * a gated SAE is a JumpReLU SAE of the magnitude u = exp(r_mag) · pre + b_mag, since pre + b_gate > 0 is
      u > b_mag − exp(r_mag) · b_gate;
    * b_pre is folded into the bias, b_enc' = b_enc − b_pre @ W_enc.

    What is folded is computed in float64 and rounded once.

    Args:
        sae: The SAE: relu, jumprelu or gated.
        path: The file, ending in `.npz`; GemmaScope calls it `params.npz`. Replaced if it exists.

    Raises:
        InputError: A TopK or groupmax SAE, one with an input norm, another suffix, or a value that overflows float32.
    """
    path = Path(path)
    if sae.k is not None:
        remedy = "use export_saelens" if sae.activation == "topk" else "write it with save_sae"
        raise InputError(
            f"a {sae.activation} SAE (k = {sae.k}) cannot be written in the GemmaScope format, which has one fixed "
            f"threshold per latent: {remedy}, or train a jumprelu or batchtopk SAE"
        )
    if sae.input_norm is not None:
        raise InputError(f"an SAE with {sae.input_norm} has no GemmaScope form: use export_saelens")
    if path.suffix != ".npz" or path.is_dir():
        raise InputError(f"{path} is no .npz file, expected a path such as folder/params.npz")
    W_enc, b_enc = sae.W_enc.double(), _folded_bias(sae)
    threshold = torch.zeros((), dtype=torch.float64) if sae.threshold is None else sae.threshold.double()
    if sae.b_gate is not None and sae.b_mag is not None and sae.r_mag is not None:
        scale = sae.r_mag.double().exp()
        W_enc, b_enc = W_enc * scale, b_enc * scale + sae.b_mag.double()
        threshold = sae.b_mag.double() - scale * sae.b_gate.double()
    arrays = {
        "W_enc": W_enc,
        "W_dec": sae.W_dec,
        "b_enc": b_enc,
        "b_dec": sae.b_dec,
        "threshold": threshold.expand(sae.d_sae),
    }
    plain = {name: _rounded(value, name, torch.float32).cpu().numpy() for name, value in arrays.items()}
    with replacing(path) as temporary:
        np.savez(temporary, **plain)  # type: ignore[arg-type]  # its stub takes every keyword for allow_pickle


def _folded_bias(sae: SAE) -> Tensor:
    """b_enc − b_pre @ W_enc, (d_sae,), float64."""
    b_enc = sae.b_enc.double()
    return b_enc if sae.b_pre is None else b_enc - sae.b_pre.double() @ sae.W_enc.double()


def _rounded(value: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    rounded = value.to(dtype).contiguous()
    if not bool(rounded.isfinite().all()):
        raise InputError(
            f"{name} reaches {float(value.abs().max()):.3g}, which {dtype} cannot hold, expected finite weights: "
            "rescale the SAE, or write it with save_sae"
        )
    return rounded
