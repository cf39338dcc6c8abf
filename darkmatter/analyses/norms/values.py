"""A number per token that comes from elsewhere, such as the model's loss, joined to a source's tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.batch import Batch
from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class TokenValues:
    """A number per token of some documents; tokens are named by document and position.

    Attributes:
        groups: Document ids, (n,).
        positions: Positions in the document, (n,).
        values: The number, (n,); NaN where a token has none.
    """

    groups: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    values: npt.NDArray[np.floating]

    def at(self, batch: Batch) -> npt.NDArray[np.float64]:
        """The values of a batch's tokens, (n,).

        Args:
            batch: Tokens, all among these.

        Raises:
            InputError: The batch has no positions, or a token that is not here.
        """
        if batch.positions is None:
            raise InputError("the source tells no positions, expected them: values are joined to tokens by position")
        known = {key: i for i, key in enumerate(zip(self.groups.tolist(), self.positions.tolist(), strict=True))}
        try:
            rows = [known[key] for key in zip(batch.groups.tolist(), batch.positions.tolist(), strict=True)]
        except KeyError as error:
            document, position = error.args[0]
            raise InputError(
                f"there is no value for document {document}, position {position}, expected one for every token of the "
                "batch: pass the values in the source's batches"
            ) from None
        return np.asarray(self.values, dtype=np.float64)[rows]
