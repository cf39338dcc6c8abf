"""One canonical inference record for every family of sparse autoencoders."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from darkmatter.checks import as_float_tensor, check_finite, check_matrix
from darkmatter.errors import InputError
from darkmatter.sae.codes import Codes
from darkmatter.sae.input_norm import normalise
from darkmatter.sae.kernels import bag_sum, group_max, top_k
from darkmatter.sae.record_checks import Activation, InputNorm, check_activation, check_shapes

_DENSE_PAYS = 0.1
"""Share of active latents above which the dense product is used (measured crossover .06 out of cache, .4 in it)."""

_CHUNK = 2**25
"""Most pre-activations held at once, 128 MiB in float32: a wide SAE must not need n·d_sae memory."""


@dataclass(frozen=True, slots=True, eq=False)
class SAE:
    """A sparse autoencoder ready for inference.

    ``pre = (x − b_pre) @ W_enc + b_enc``, ``codes = activation(pre)``, ``recon = codes @ W_dec + b_dec``, with

    * relu: max(pre, 0);
    * topk: the k largest of each token's pre, then relu, so that a kept negative becomes 0; which of several equal
      entries is kept is arbitrary but depends on that token alone;
    * groupmax: the largest pre of each of k runs of d_sae / k neighbouring latents, then relu;
    * jumprelu: max(pre, 0) · (pre > threshold), strictly greater;
    * gated: max(exp(r_mag)·pre + b_mag, 0) · (pre + b_gate > 0), Rajamanoharan et al. (2024a) eq. 6 and 7. `pre` is
      the same as everywhere, so b_enc counts in both: a family without it stores zeros, and it can be folded away by
      b_gate + b_enc and b_mag + exp(r_mag)·b_enc.

    With an `input_norm` x is first rescaled token by token, and the reconstruction is scaled back:

    * layer_norm: x' = (x − μ) / (σ + 1e-5) and recon·σ + μ, with each token's mean μ over coordinates and standard
      deviation σ (divisor d_model − 1);
    * constant_norm: x' = x·√d_model / |x| and recon·|x| / √d_model.

    Everything is computed in the record's own dtype, to which x is cast, and the reconstruction has that dtype: use
    ``sae.to(dtype=torch.float32)`` where bfloat16 weights should not mean bfloat16 arithmetic. The record keeps the
    tensors that it is given, without their autograd history; do not change them afterwards.

    Attributes:
        W_enc: Encoder, (d_model, d_sae).
        b_enc: Encoder bias, (d_sae,).
        W_dec: Decoder (dictionary), one row per latent, (d_sae, d_model).
        b_dec: Decoder bias, (d_model,).
        b_pre: Subtracted from x before encoding, (d_model,); None subtracts nothing.
        activation: "relu", "topk", "groupmax", "jumprelu" or "gated".
        k: Latents kept per token; topk and groupmax only.
        threshold: Per latent (d_sae,) or one for all (); jumprelu only.
        b_gate: Bias of the gate, (d_sae,); gated only, as the next two.
        b_mag: Bias of the magnitude, (d_sae,).
        r_mag: Logarithm of the magnitude's scale, (d_sae,).
        input_norm: "layer_norm", "constant_norm", or None for none.

    Raises:
        InputError: A wrong shape, dtype, device, a value that is not finite, or a field that the activation lacks or
            does not use.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_pre: Tensor | None = None
    activation: Activation = "relu"
    k: int | None = None
    threshold: Tensor | None = None
    b_gate: Tensor | None = None
    b_mag: Tensor | None = None
    r_mag: Tensor | None = None
    input_norm: InputNorm | None = None

    def __post_init__(self) -> None:
        """Drop autograd history and check every field.

        Raises:
            InputError: See the class.
        """
        for name, value in self.tensors().items():
            object.__setattr__(self, name, as_float_tensor(value, name))
        check_activation(self)
        check_shapes(self)
        for name, value in self.tensors().items():
            if value.dtype != self.dtype or value.device != self.device:
                raise InputError(
                    f"{name} is {value.dtype} on {value.device}, expected {self.dtype} on {self.device} like W_enc: "
                    "convert all tensors of one SAE alike"
                )
            check_finite(value if value.ndim else value[None], name)

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the record computes."""
        return self.W_enc.dtype

    @property
    def device(self) -> torch.device:
        """Where the record's tensors live."""
        return self.W_enc.device

    def tensors(self) -> dict[str, Tensor]:
        """List the tensor fields that are present, by name."""
        settings = {"activation", "k", "input_norm"}
        present = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in settings}
        return {name: value for name, value in present.items() if value is not None}

    def fingerprint(self) -> str:
        """Hash the settings and every tensor (name, dtype, shape, bytes), so that another SAE is recognised as such.

        Returns:
            SHA-256 in hexadecimal; the same on every device.
        """
        norm = "" if self.input_norm is None else f" {self.input_norm}"
        digest = hashlib.sha256(f"{self.activation} {self.k}{norm}".encode())
        for name, value in self.tensors().items():
            digest.update(f" {name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def encode(self, x: Tensor) -> Codes:
        """Compute the codes, activation((x − b_pre) @ W_enc + b_enc).

        Args:
            x: Activations, (n, d_model), any floating dtype; n may be 0.

        Returns:
            The codes; topk and groupmax store exactly k entries per token, the others only what is above zero.

        Raises:
            InputError: x is not a floating (n, d_model) tensor on the record's device.
        """
        x = self._check(x)
        parts = [self._encode_chunk(rows) for rows in torch.split(x, self._chunk_rows())]
        if len(parts) == 1:
            return parts[0]
        counts = torch.cat([part.offsets.diff() for part in parts])
        return Codes(
            torch.cat([part.values for part in parts]),
            torch.cat([part.latents for part in parts]),
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            self.d_sae,
        )

    def decode(self, codes: Codes) -> Tensor:
        """Reconstruct, codes @ W_dec + b_dec, at a cost of L0·d_model per token while codes are sparse.

        Args:
            codes: Codes of this SAE.

        Returns:
            (n, d_model), the record's dtype.

        Raises:
            InputError: The codes have another number of latents or lie on another device, or the record has an
                `input_norm`, whose scale is not in the codes.
        """
        if self.input_norm is not None:
            raise InputError(
                f"codes of an SAE with {self.input_norm} do not hold the scale of their token: call the SAE on x"
            )
        if codes.d_sae != self.d_sae or codes.values.device != self.device:
            got = f"{codes.d_sae} latents on {codes.values.device}"
            raise InputError(f"codes have {got}, expected {self.d_sae} on {self.device}: decode with their own SAE")
        return self._decode(codes)

    def _decode(self, codes: Codes) -> Tensor:
        values = codes.values.to(self.dtype)
        if len(values) > _DENSE_PAYS * codes.n_tokens * self.d_sae:
            return codes.dense().to(self.dtype) @ self.W_dec + self.b_dec
        return bag_sum(codes.latents, values, codes.offsets, self.W_dec) + self.b_dec

    def __call__(self, x: Tensor) -> Tensor:
        """Reconstruct x: ``decode(encode(x))``, never holding all pre-activations at once.

        Args:
            x: Activations, (n, d_model), any floating dtype; n may be 0.

        Returns:
            Sae(x), (n, d_model), the record's dtype.

        Raises:
            InputError: x is not a floating (n, d_model) tensor on the record's device.
        """
        x = self._check(x)
        return torch.cat([self._reconstruct_chunk(rows) for rows in torch.split(x, self._chunk_rows())])

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SAE:
        """Copy the record to another device or floating dtype.

        Args:
            device: Where to; None stays.
            dtype: Which dtype; None stays.

        Returns:
            A new record; tensors that need no change are shared.

        Raises:
            InputError: The dtype is not floating, or a weight overflows in it.
        """
        moved = {name: value.to(device=device, dtype=dtype) for name, value in self.tensors().items()}
        return SAE(**moved, activation=self.activation, k=self.k, input_norm=self.input_norm)

    def _check(self, x: Tensor) -> Tensor:
        x = as_float_tensor(x, "x")
        check_matrix(x, "x", d=self.d_model)
        if x.device != self.device:
            raise InputError(f"x is on {x.device}, expected {self.device}: move it, or use `sae.to(device=x.device)`")
        return x

    def _chunk_rows(self) -> int:
        return max(1, _CHUNK // self.d_sae)

    def _pre(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b_enc, x if self.b_pre is None else x - self.b_pre, self.W_enc)

    def _activate(self, pre: Tensor) -> Tensor:
        if self.b_gate is not None and self.b_mag is not None and self.r_mag is not None:
            return (pre * self.r_mag.exp() + self.b_mag).relu() * (pre + self.b_gate > 0)
        # in place, since `pre` is ours: at 131k latents multiplying by the mask costs half as much as the encoder
        return pre.relu_() if self.threshold is None else pre.masked_fill_(pre <= self.threshold, 0).relu_()

    def _select(self, pre: Tensor, k: int) -> Codes:
        values, latents = group_max(pre, k) if self.activation == "groupmax" else top_k(pre, k)
        offsets = torch.arange(0, len(pre) * k + 1, k, device=pre.device)
        return Codes(values.relu().flatten(), latents.flatten(), offsets, self.d_sae)

    def _encode_chunk(self, x: Tensor) -> Codes:
        x = x.to(self.dtype)
        pre = self._pre(x if self.input_norm is None else normalise(x, self.input_norm)[0])
        return Codes.from_dense(self._activate(pre)) if self.k is None else self._select(pre, self.k)

    def _reconstruct_chunk(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.input_norm is None:
            return self._reconstruct(x)
        scaled, scale, shift = normalise(x, self.input_norm)
        return self._reconstruct(scaled) * scale + shift

    def _reconstruct(self, x: Tensor) -> Tensor:
        if self.k is not None:
            return self._decode(self._select(self._pre(x), self.k))
        dense = self._activate(self._pre(x))
        if int(dense.count_nonzero()) > _DENSE_PAYS * dense.numel():  # listing dense codes costs more than the product
            return dense @ self.W_dec + self.b_dec
        return self._decode(Codes.from_dense(dense))
