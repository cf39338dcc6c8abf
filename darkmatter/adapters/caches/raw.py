"""Raw float32 files without a header, as the paper's authors keep them: activations, and errors with their sign.

Their error files hold Sae(x) − x, the negative of the error x − Sae(x) that everything here is about.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from darkmatter.adapters.caches.array_stream import ArrayActivations, make_contexts, stream_of
from darkmatter.adapters.caches.raw_width import map_raw
from darkmatter.adapters.caches.rows import Rows
from darkmatter.batch import Batch, check_header
from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import read_json

ErrorSign = Literal["recon-x", "x-recon"]
"""What an error file holds: Sae(x) − x, as the authors' do, or x − Sae(x)."""

_PILOT = 4096  # rows that tell whether the sign can be right


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawSource:
    """A `ResumableSource`: stored activations with stored errors; build it with `raw_source`.

    Attributes:
        activations: The activations.
        errors: Rows of the errors by SAE name.
        error_sign: What they hold.
        description: What goes into the report.
    """

    activations: ArrayActivations
    errors: Mapping[str, Rows]
    error_sign: ErrorSign
    description: Mapping[str, Any] = field(repr=False)

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.activations.d_model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the SAEs."""
        return tuple(self.errors)

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch, from the first row on."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[Batch]:
        """Yield batch number `start` and those after it; earlier rows are not touched."""
        size, n = self.activations.batch_size, len(self.activations.rows)
        for number, found in enumerate(self.activations.batches_from(start), start):
            low, high = number * size, min((number + 1) * size, n)
            kept = self.activations.contexts.select(low, high)[0]
            recons = {}
            for name, rows in self.errors.items():
                error = rows.read(low, high)
                recons[name] = _recon(found.x, error if kept is None else error[kept], self.error_sign)
            yield Batch(x=found.x, recons=recons, groups=found.groups, positions=found.positions)


def raw_activations(
    acts: Path | str,
    *,
    d_model: int | None = None,
    config: Path | str | None = None,
    docs: Any = None,
    context_length: int | None = None,
    skip_first: int = 0,
    skip_last: int = 0,
    batch_size: int = 4096,
    check_width: bool = True,
    description: Mapping[str, Any] | None = None,
) -> ArrayActivations:
    """Open a raw float32 file as a stream of activations, to be joined with SAEs.

    The authors kept ``[:, 200:1023]`` of contexts of 1024 tokens: `context_length` 1024, `skip_first` 200, `skip_last`
    1.

    Args:
        acts: The file, (n_tokens, d_model) or (contexts, length, d_model), whatever its suffix.
        d_model: Its width.
        config: A JSON object that has it instead: ``shape`` ([300, 1024, 3584]; heads may be the last but one), or
            ``d_model`` and perhaps ``context_length``.
        docs: File of the document ids of all rows, or the ids; None makes each context a document, or without
            `context_length` each token.
        context_length: Rows in a context.
        skip_first: Rows dropped at the start of every context.
        skip_last: Rows dropped at its end.
        batch_size: Rows read for a batch; changes results by rounding only.
        check_width: Refuse a width that the file's columns contradict.
        description: Facts to add to the description.

    Returns:
        The stream; the file is mapped, not read.

    Raises:
        InputError: An impossible option.
        FileFormatError: A file that is not what its width says.
    """
    width, length, n_rows = _shape(d_model, context_length, None if config is None else Path(config))
    rows = _rows(Path(acts), width, check_width=check_width)
    if n_rows is not None and len(rows) != n_rows:
        raise FileFormatError(
            f"{acts} has {len(rows)} rows of {width}, but {config} says {n_rows}: it is truncated or another file",
            Path(acts),
        )
    contexts = make_contexts(docs, len(rows), length, skip_first, skip_last)
    return stream_of(rows, contexts, batch_size, {"kind": "raw float32", "files": list(rows.names)}, description)


def raw_source(
    acts: Path | str,
    errors: Mapping[str, Path | str],
    *,
    d_model: int | None = None,
    config: Path | str | None = None,
    docs: Any = None,
    context_length: int | None = None,
    skip_first: int = 0,
    skip_last: int = 0,
    error_sign: ErrorSign = "recon-x",
    check_sign: bool = True,
    batch_size: int = 4096,
    check_width: bool = True,
    description: Mapping[str, Any] | None = None,
) -> RawSource:
    """Open the authors' raw files: activations, and the error of each SAE.

    The sign is checked on the first rows: an SAE whose scale and bias are fitted has Cov(x, x − Sae(x)) =
    Var(x − Sae(x)) > 0, and a shrinking one more; the wrong sign makes it negative.

    Args:
        acts: Activations, see `raw_activations` for this and the options that are not named here.
        errors: File of the errors by SAE name, of the same shape.
        d_model: Width.
        config: JSON with the shape instead.
        docs: Document ids.
        context_length: Rows in a context.
        skip_first: Rows dropped at the start of every context.
        skip_last: Rows dropped at its end.
        error_sign: What the error files hold: ``recon-x``, Sae(x) − x, as the authors' do; or ``x-recon``.
        check_sign: Refuse a sign that the numbers contradict.
        batch_size: Rows read for a batch.
        check_width: Refuse a width that the columns of x contradict.
        description: Facts to add to the description.

    Returns:
        The source.

    Raises:
        InputError: No error file, an unknown sign, or one that the numbers contradict.
        FileFormatError: A file that is not what the width says, or errors that do not fit the activations.
    """
    if error_sign not in get_args(ErrorSign):
        raise InputError(f"error_sign is {error_sign!r}, expected one of {', '.join(get_args(ErrorSign))}")
    activations = raw_activations(
        acts,
        d_model=d_model,
        config=config,
        docs=docs,
        context_length=context_length,
        skip_first=skip_first,
        skip_last=skip_last,
        batch_size=batch_size,
        check_width=check_width,
        description=description,
    )
    found = {}
    for name, path in errors.items():
        if Path(path).resolve() == Path(acts).resolve():
            raise InputError(f"error {name!r} is the file of x ({path}): did you pass x twice?")
        # an error has no column means to speak of: the width is judged by x
        found[name] = _rows(Path(path), activations.d_model, check_width=False)
        if len(found[name]) != len(activations.rows):
            raise FileFormatError(
                f"{path} has {len(found[name])} rows of {activations.d_model}, but {acts} has {len(activations.rows)}: "
                "they belong to different runs, or one is truncated",
                Path(path),
            )
    files = {name: {"file": rows.names[0], "fingerprint": rows.fingerprint} for name, rows in found.items()}
    source = RawSource(
        activations=activations,
        errors=found,
        error_sign=error_sign,
        description={**activations.description, "error_sign": error_sign, "errors": files},
    )
    check_header(source)
    if check_sign:
        _check_sign(source)
    return source


def _recon(x: Tensor, error: Tensor, sign: ErrorSign) -> Tensor:
    return x + error if sign == "recon-x" else x - error


def _rows(path: Path, width: int, *, check_width: bool) -> Rows:
    return Rows(parts=(map_raw(path, width, check_width=check_width),), names=(path.name,))


def _check_sign(source: RawSource) -> None:
    batch = next(iter(source))
    x = batch.x[:_PILOT].double()  # type: ignore[union-attr]  # made above, by torch
    x = x - x.mean(dim=0)
    for name, recon in batch.recons.items():
        error = x - (recon[:_PILOT].double() - recon[:_PILOT].double().mean(dim=0))  # type: ignore[union-attr]
        ratio = float((x * error).sum() / (error * error).sum().clamp(min=1e-300))
        if ratio < -0.5:
            other = "x-recon" if source.error_sign == "recon-x" else "recon-x"
            raise InputError(
                f"error {name!r} has Cov(x, e) = {ratio:.2f} Var(e) for e = x - Sae(x) under error_sign "
                f"{source.error_sign!r}, expected about 1 or more: the sign is the other one, pass {other!r} (or "
                "check_sign=False if the SAE really overshoots that far)"
            )


def _shape(d_model: int | None, length: int | None, config: Path | None) -> tuple[int, int | None, int | None]:
    # width, rows in a context, and rows in all, the last two where they are known
    n_rows = None
    if config is not None:
        width, context, n_rows = _configured(config)
        if d_model not in {None, width} or (context is not None and length not in {None, context}):
            raise InputError(
                f"{config} says d_model {width} and context_length {context}, but {d_model} and {length} were given"
            )
        d_model, length = width, length or context
    if type(d_model) is not int or d_model < 1:
        raise InputError(f"d_model is {d_model!r}, expected a positive int: a raw file does not say how wide it is")
    return d_model, length, n_rows


def _configured(config: Path) -> tuple[int, int | None, int | None]:
    value = read_json(config, "the shape of a raw file")
    shape = value.get("shape")
    if isinstance(shape, list) and 2 <= len(shape) <= 4 and all(_positive(n) for n in shape):
        if len(shape) == 2:
            return shape[1], None, shape[0]
        return math.prod(shape[2:]), shape[1], shape[0] * shape[1]
    width, context = value.get("d_model"), value.get("context_length")
    if shape is not None or not isinstance(width, int) or not all(_positive(n) for n in (width, context or 1)):
        raise FileFormatError(
            f"{config} has neither a shape such as [300, 1024, 3584] nor a d_model, expected one of them", config
        )
    return width, context, None


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0
