"""Work in parts that fit the memory of a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from darkmatter.errors import InputError

T = TypeVar("T")


@dataclass(slots=True)
class BackOff:
    """Halves the size of the parts when device memory runs out, and remembers the size that fits.

    Attributes:
        what: What is counted, for the message.
        remedy: What to do when a single one does not fit.
        limit: Most items in a part; None until memory ran out.
    """

    what: str
    remedy: str
    limit: int | None = None

    def run(self, work: Callable[[slice], T], n: int) -> list[T]:
        """Do `work` on the items 0 to n, in one part or several.

        Args:
            work: Does the part that it is given; what it changes must survive being done again.
            n: Number of items.

        Returns:
            What `work` returned, part by part.

        Raises:
            InputError: A part of a single item does not fit.
        """
        done: list[T] = []
        start = 0
        while start < n:
            size = min(self.limit or n, n - start)
            fits, result = _attempt(work, slice(start, start + size))
            if fits is None:
                done.append(result)
                start += size
            elif size == 1:
                raise InputError(f"{self.what} does not fit in memory ({fits}): {self.remedy}")
            else:
                self.limit = (size + 1) // 2
        return done


def _attempt(work: Callable[[slice], T], part: slice) -> tuple[str | None, T]:
    # returning, rather than going on inside `except`, frees what the failed attempt held
    try:
        return None, work(part)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error).lower():
            raise
        reason = (str(error).splitlines() or ["out of memory"])[0][:160]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return reason, None  # type: ignore[return-value]  # not read: there is a reason
