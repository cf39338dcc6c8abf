"""Is this the width of a raw float file? It has no header, and a wrong width gives numbers all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from darkmatter.errors import FileFormatError

WIDTHS = (
    512, 640, 768, 896, 1024, 1152, 1280, 1536, 1600, 2048, 2304, 2560, 3072, 3584, 3840, 4096, 4608, 5120, 5376, 6144,
    8192, 12288, 16384,
)  # fmt: skip
"""Activation widths of common models, to suggest from."""

_SAMPLE = 2**21  # numbers looked at
_STRUCTURE = 0.02  # least share of variance in column means from which anything is concluded
_ROWS = 64  # fewest rows from which column means are estimated


def map_raw(path: Path, d_model: int, *, check_width: bool = True) -> npt.NDArray[np.float32]:
    """Map a headerless file of little-endian float32.

    Args:
        path: The file.
        d_model: Its width.
        check_width: Refuse a width that the means of columns contradict.

    Returns:
        (n_tokens, d_model), a read-only memory map.

    Raises:
        FileFormatError: Missing, empty, with a header, of a size that is no whole number of rows, or with a row
            structure that contradicts the width.
    """
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist, expected a raw float32 file", path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    if start[:6] == b"\x93NUMPY":
        raise FileFormatError(f"{path} has a .npy header, so it is no raw file: pass it as an array file", path)
    if start[:2] == b"PK":
        raise FileFormatError(
            f"{path} is a zip archive (.pt or .npz), expected raw float32: write its array with `.tofile(path)`", path
        )
    if size == 0 or size % (4 * d_model):
        fitting = [width for width in WIDTHS if size and size % (4 * width) == 0]
        hint = f"widths that fit: {', '.join(map(str, fitting))}" if fitting else "no common width fits, is it float32?"
        raise FileFormatError(
            f"{path} has {size} bytes, expected a multiple of {4 * d_model} (d_model {d_model}, float32): {hint}", path
        )
    found = np.memmap(path, dtype="<f4", mode="r", shape=(size // (4 * d_model), d_model))
    better = _better_width(found.reshape(-1), d_model) if check_width else None
    if better is not None:
        raise FileFormatError(
            f"{path} looks {better} wide, not {d_model}: the means of its columns repeat at that distance; pass "
            f"d_model={better}, or check_width=False if you know better",
            path,
        )
    return found


def _better_width(flat: npt.NDArray[np.float32], width: int) -> int | None:
    """Another width whose column means explain more variance, or a divisor for which they explain as much."""
    own = _column_share(flat, width)
    if own is None:
        return None
    shares = {w: _column_share(flat, w) for w in WIDTHS if w != width and len(flat) % w == 0}
    known = {w: share for w, share in shares.items() if share is not None}
    best = max(known, key=lambda w: known[w], default=width)
    if known.get(best, own) > max(
        _STRUCTURE, 1.5 * own
    ):  # all multiples of the true width look alike: the least of them
        return min(w for w in known if best % w == 0 and known[w] > 0.9 * known[best])
    for part in (width // k for k in range(16, 1, -1) if width % k == 0):
        share = _column_share(flat, part)
        if share is not None and own > _STRUCTURE and share > 0.9 * own:
            return part
    return None


def _column_share(flat: npt.NDArray[np.float32], width: int) -> float | None:
    """Share of the variance that lies between the means of columns, unbiased; None with too few rows to tell."""
    rows = min(_SAMPLE, len(flat)) // width
    if rows < _ROWS or width < 2:
        return None
    values = np.array(flat[: rows * width], dtype=np.float64)
    scale = float(np.median(np.abs(values)))
    if not scale > 0:  # also NaN
        return None
    values = np.tanh(values / scale).reshape(rows, width)  # tokens with huge norms would drown the rest
    return 1 - float(values.var(axis=0, ddof=1).mean()) / float(values.var())
