"""Contexts of latents, kept while streaming: those that activate most, a sample of those that activate, and others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from darkmatter.batch import Batch
from darkmatter.sae import Codes

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NO_TOKEN = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextPlan:
    """What to keep.

    Attributes:
        latents: Latents whose contexts are kept; a seeded sample where there are more, evenly over densities where
            they are chosen for interpretation.
        top: Contexts of largest activation per latent.
        sample: Contexts per latent drawn evenly among its activations; like all, at most one per document and batch.
        others: Contexts drawn evenly among all tokens, for all latents together.
        window: Tokens before and after.
    """

    latents: int = 1024
    top: int = 10
    sample: int = 10
    others: int = 200
    window: int = 10


@dataclass(slots=True, eq=False)
class Kept:
    """The N entries of largest key in each of C lists.

    Attributes:
        key: (C, N), falling; −inf where there is none.
        value: Activation, (C, N).
        group: Document, (C, N).
        position: Position in it, −1 where it is not known, (C, N).
        ids: Token ids of the window, (C, N, 2 W + 1), int32; −1 outside the document or batch.
    """

    key: Floats
    value: Floats
    group: Ints
    position: Ints
    ids: npt.NDArray[np.int32]

    @classmethod
    def empty(cls, lists: int, size: int, window: int) -> Kept:
        """Lists without entries."""
        return cls(
            key=np.full((lists, size), -np.inf),
            value=np.zeros((lists, size)),
            group=np.full((lists, size), -1, dtype=np.int64),
            position=np.full((lists, size), -1, dtype=np.int64),
            ids=np.full((lists, size, 2 * window + 1), NO_TOKEN, dtype=np.int32),
        )

    def offer(self, lists: Ints, key: Floats, value: Floats, rows: Ints, batch: Batch) -> tuple[Ints, Ints, Ints]:
        """Take what is among the N largest, at most one entry per list and document of a batch.

        Args:
            lists: List of every entry, (E,).
            key: What they compete by, (E,).
            value: Their activations, (E,).
            rows: Their rows in the batch, (E,).
            batch: The batch.

        Returns:
            (list, place, row) of every entry that was taken.
        """
        keep = key > self.key[lists, -1]
        lists, key, value, rows = lists[keep], key[keep], value[keep], rows[keep]
        order = np.lexsort((rows, -key, lists))
        pairs = np.stack([lists[order], batch.groups[rows[order]]], axis=1)
        order = order[np.sort(np.unique(pairs, axis=0, return_index=True)[1])] if len(order) else order
        lists, key, value, rows = lists[order], key[order], value[order], rows[order]
        size = self.key.shape[1]
        rank = np.arange(len(lists)) - np.searchsorted(lists, lists)
        lists, key, value, rows, rank = (part[rank < size] for part in (lists, key, value, rows, rank))
        touched, place = np.unique(lists, return_inverse=True)
        fresh = np.full((len(touched), size), -np.inf)
        fresh[place, rank] = key
        entry = np.full((len(touched), 2 * size), -1, dtype=np.int64)
        entry[place, size + rank] = np.arange(len(lists))
        best = np.argsort(-np.hstack([self.key[touched], fresh]), axis=1, kind="stable")[:, :size]
        entry = np.take_along_axis(entry, best, axis=1)
        old = np.minimum(best, size - 1)[:, :, None]
        for name in ("key", "value", "group", "position", "ids"):
            mine = getattr(self, name)
            moved = np.take_along_axis(mine[touched], old if mine.ndim == 3 else old[:, :, 0], axis=1)
            mine[touched] = moved
        where, column = np.nonzero(entry >= 0)
        taken = entry[where, column]
        self.key[touched[where], column] = key[taken]
        self.value[touched[where], column] = value[taken]
        self.group[touched[where], column] = batch.groups[rows[taken]]
        if batch.positions is not None:
            self.position[touched[where], column] = batch.positions[rows[taken]]
        if batch.token_ids is not None:
            self.ids[touched[where], column] = window_ids(batch, rows[taken], self.ids.shape[2] // 2)
        return touched[where], column, rows[taken]


def window_rows(groups: Ints, rows: Ints, window: int) -> Ints:
    """Rows around some rows, within their document, (E, 2 W + 1); −1 outside."""
    around = rows[:, None] + np.arange(-window, window + 1)
    inside = (around >= 0) & (around < len(groups))
    around = np.where(inside, around, 0)
    found: Ints = np.where(inside & (groups[around] == groups[rows][:, None]), around, -1)
    return found


def window_ids(batch: Batch, rows: Ints, window: int) -> npt.NDArray[np.int32]:
    """Token ids around some rows, (E, 2 W + 1), int32."""
    assert batch.token_ids is not None
    around = window_rows(batch.groups, rows, window)
    return np.where(around >= 0, batch.token_ids[around], NO_TOKEN).astype(np.int32)


@dataclass(slots=True, eq=False)
class LatentContexts:
    """Contexts of some latents of one SAE.

    Attributes:
        latents: The latents, rising, (C,).
        plan: What is kept.
        top: By activation.
        sample: By lot among activations.
        others: One list, by lot among all tokens.
        others_peak: Largest activation of every latent within each of those contexts, (others, C).
    """

    latents: Ints
    plan: ContextPlan
    top: Kept
    sample: Kept
    others: Kept
    others_peak: Floats

    @classmethod
    def empty(cls, d_sae: int, plan: ContextPlan, rng: np.random.Generator) -> LatentContexts:
        """Choose latents and start without contexts."""
        chosen = np.arange(d_sae)
        if d_sae > plan.latents:
            chosen = np.sort(rng.choice(d_sae, plan.latents, replace=False))
        c = len(chosen)
        return cls(
            latents=chosen.astype(np.int64),
            plan=plan,
            top=Kept.empty(c, plan.top, plan.window),
            sample=Kept.empty(c, plan.sample, plan.window),
            others=Kept.empty(1, plan.others, plan.window),
            others_peak=np.zeros((plan.others, c)),
        )

    def add(self, codes: Codes, batch: Batch, rng: np.random.Generator) -> None:
        """Look at the codes of a batch.

        Args:
            codes: Codes of its tokens.
            batch: The batch; windows are cut at its ends.
            rng: Draws the lots.
        """
        n = codes.n_tokens
        lookup = np.full(codes.d_sae, -1, dtype=np.int64)
        lookup[self.latents] = np.arange(len(self.latents))
        values = codes.values.double().cpu().numpy()
        column = lookup[codes.latents.cpu().numpy()]
        rows = np.repeat(np.arange(n), np.diff(codes.offsets.cpu().numpy()))
        active = (values > 0) & (column >= 0)
        values, column, rows = values[active], column[active], rows[active]
        self.top.offer(column, values, values, rows, batch)
        self.sample.offer(column, rng.random(len(rows)), values, rows, batch)
        before = self.others.key[0].copy()
        _, place, fresh = self.others.offer(
            np.zeros(n, dtype=np.int64), rng.random(n), np.zeros(n), np.arange(n), batch
        )
        self._peaks(before, place, fresh, csr_array((values, (rows, column)), shape=(n, len(self.latents))), batch)

    def _peaks(self, before: Floats, place: Ints, fresh: Ints, codes: csr_array, batch: Batch) -> None:
        """Largest activation within the windows of contexts that came in; the others keep theirs."""
        moved = np.searchsorted(-before, -self.others.key[0])
        self.others_peak = self.others_peak[np.minimum(moved, len(before) - 1)]
        for where, row in zip(place, fresh, strict=True):
            around = window_rows(batch.groups, np.array([row]), self.plan.window)[0]
            self.others_peak[where] = codes[around[around >= 0]].max(axis=0).toarray().ravel()
