"""Non-negative least squares on few chosen rows, many tokens at a time: the active-set method of Lawson and Hanson."""

from __future__ import annotations

import torch
from torch import Tensor


class Chosen:
    """Chosen rows of n tokens, up to T each, with amplitudes of least squared error among the non-negative ones.

    The inverse of the Gram matrix of the rows whose amplitude is above zero is kept and updated by one outer product
    whenever a row enters or leaves, T² operations instead of T³. Tokens are independent.

    Attributes:
        gram: Inner products of the chosen rows, (n, T, T).
        inverse: Inverse of the part of `gram` that is `inside`, zero elsewhere, (n, T, T).
        target: Their inner products with the target, (n, T).
        amplitudes: (n, T), ≥ 0, zero outside.
        inside: Rows whose amplitude is above zero, (n, T).
        usable: Rows that may enter: chosen, and not a combination of those inside, (n, T).
    """

    def __init__(self, n: int, size: int, like: Tensor) -> None:
        """Start with nothing chosen.

        Args:
            n: Tokens.
            size: Most rows T.
            like: Gives dtype and device.
        """
        self.gram = like.new_zeros(n, size, size)
        self.inverse = like.new_zeros(n, size, size)
        self.target = like.new_zeros(n, size)
        self.amplitudes = like.new_zeros(n, size)
        self.inside = torch.zeros(n, size, dtype=torch.bool, device=like.device)
        self.usable = torch.zeros_like(self.inside)
        self.least = 0.1 * torch.finfo(like.dtype).eps ** 0.5
        """A row whose squared distance from the span of the others is below this share is one of their combinations."""

    @classmethod
    def of_support(cls, gram: Tensor, target: Tensor, mask: Tensor, start: Tensor, floor: Tensor) -> Chosen:
        """Least squares on a support that is known from the start.

        Args:
            gram: Inner products of the rows, (n, T, T).
            target: Their inner products with the target, (n, T).
            mask: Which of them belong to the support, (n, T).
            start: Amplitudes above zero to start from, (n, T): the result is never worse.
            floor: Correlations up to this are rounding, (n,).

        Returns:
            The solution.
        """
        size = target.shape[1]
        self = cls(0, 0, gram)
        both = mask[:, :, None] & mask[:, None, :]
        self.gram = gram * both
        self.target = target * mask
        lower, info = torch.linalg.cholesky_ex(self.gram + torch.diag_embed((~mask).to(gram)))
        regular = (info == 0) & (lower.diagonal(dim1=1, dim2=2).square().amin(dim=1) > self.least)
        lower = torch.where(regular[:, None, None], lower, torch.eye(size, dtype=gram.dtype, device=gram.device))
        self.inverse = torch.cholesky_inverse(lower) * (both & regular[:, None, None])
        self.inside = mask & regular[:, None]
        self.usable = mask.clone()
        self.amplitudes = start * self.inside  # dependent rows: one by one from nothing, to the same least error
        goal = torch.bmm(self.inverse, self.target[:, :, None])[:, :, 0]
        wrong = ~regular | ((goal <= 0) & self.inside).any(dim=1)
        self._settle(wrong, size, goal, floor)
        return self

    def add(self, position: int, inner: Tensor, target: Tensor, rest: Tensor, floor: Tensor) -> None:
        """Choose one more row for each of the first m tokens, and find the best amplitudes of all that are chosen.

        Args:
            position: How many rows were chosen before, t.
            inner: Inner products of the new row with the chosen ones and itself, (m, t + 1).
            target: Its inner product with the target, (m,).
            rest: Its inner product with what is left of the target, (m,).
            floor: What of that is rounding, (m,).
        """
        t, m = position, len(inner)
        upto = slice(t + 1)
        self.gram[:m, t, upto] = inner
        self.gram[:m, upto, t] = inner
        self.target[:m, t] = target
        before = torch.bmm(self.inverse[:m, :t, :t], inner[:, :t, None])[:, :, 0]
        distance = inner[:, t] - (before * inner[:, :t]).sum(dim=1)
        enters = (rest > floor) & (distance > self.least * inner[:, t])
        scale = torch.where(enters, 1 / distance, 0.0)
        change = torch.cat([before, -torch.ones_like(before[:, :1])], dim=1) if t else -torch.ones_like(inner)
        self.inverse[:m, upto, upto].addcmul_((change * scale[:, None])[:, :, None], change[:, None, :])
        amount = torch.where(enters, rest / distance, 0.0)  # rest is -inf where no candidate is left
        goal = self.amplitudes[:m, upto] - change * amount[:, None]
        self.inside[:m, t] = enters
        self.usable[:m, t] = enters
        inside = self.inside[:m, upto]
        wrong = (((goal <= 0) & inside) | (self.usable[:m, upto] & ~inside)).any(dim=1)
        self._settle(wrong, t + 1, goal, floor)

    def _settle(self, wrong: Tensor, size: int, goal: Tensor, floor: Tensor) -> None:
        """Take `goal`, the unconstrained optimum, as amplitudes; first make it non-negative where it is `wrong`."""
        m, upto = len(goal), slice(size)
        old = self.amplitudes[:m, upto].clone()
        self.amplitudes[:m, upto] = goal
        tokens = wrong.nonzero()[:, 0]
        if not len(tokens):
            return
        part = Chosen(0, 0, goal)
        part.gram, part.inverse = self.gram[tokens, upto, upto], self.inverse[tokens, upto, upto]
        part.target, part.amplitudes = self.target[tokens, upto], old[tokens]
        part.inside, part.usable = self.inside[tokens, upto], self.usable[tokens, upto]
        part._solve(goal[tokens], floor[tokens])
        self.inverse[tokens, upto, upto], self.amplitudes[tokens, upto] = part.inverse, part.amplitudes
        self.inside[tokens, upto], self.usable[tokens, upto] = part.inside, part.usable

    def _solve(self, goal: Tensor, floor: Tensor) -> None:
        """Lawson and Hanson: rows that would turn negative leave, rows that would lower the error enter, until none."""
        n, size = goal.shape
        tokens = torch.arange(n, device=goal.device)
        for _ in range(4 * size + 8):  # the error falls with every entry, so no set of rows comes twice
            negative = self.inside[tokens] & (goal[tokens] <= 0)
            blocked = negative.any(dim=1)
            self._leave(tokens[blocked], negative[blocked], goal)
            free = tokens[~blocked]
            self.amplitudes[free] = goal[free]
            rest = self.target[free] - torch.bmm(self.gram[free], goal[free][:, :, None])[:, :, 0]
            rest = rest.masked_fill(self.inside[free] | ~self.usable[free], -torch.inf)
            best, slot = rest.max(dim=1)
            more = best > floor[free]
            self._enter(free[more], slot[more], best[more], goal)
            tokens = torch.cat([tokens[blocked], free[more]])
            if not len(tokens):
                return

    def _leave(self, tokens: Tensor, negative: Tensor, goal: Tensor) -> None:
        """Go from the amplitudes towards the goal until the first row is at zero, and take it out."""
        if not len(tokens):
            return
        now, wanted = self.amplitudes[tokens], goal[tokens]
        tiny = torch.finfo(goal.dtype).tiny
        share = torch.where(negative, now / (now - wanted).clamp_min(tiny), torch.inf)
        step, slot = share.min(dim=1)
        self.amplitudes[tokens] = (now + step[:, None] * (wanted - now)).clamp_min(0)
        self.amplitudes[tokens, slot] = 0.0
        column = self.inverse[tokens, slot]
        pivot = column.gather(1, slot[:, None])
        self.inverse[tokens] -= column[:, :, None] * (column / pivot)[:, None, :]
        self.inverse[tokens, slot] = 0.0
        self.inverse[tokens, :, slot] = 0.0
        goal[tokens] = wanted - column * (wanted.gather(1, slot[:, None]) / pivot)
        goal[tokens, slot] = 0.0
        self.inside[tokens, slot] = False

    def _enter(self, tokens: Tensor, slot: Tensor, rest: Tensor, goal: Tensor) -> None:
        """Bring a row in; one that is a combination of those inside is put aside for good."""
        if not len(tokens):
            return
        inner = self.gram[tokens, slot]
        own = inner.gather(1, slot[:, None])[:, 0]
        change = torch.bmm(self.inverse[tokens], inner[:, :, None])[:, :, 0]
        distance = own - (change * inner).sum(dim=1)
        enters = distance > self.least * own
        change.scatter_(1, slot[:, None], -1.0)
        scale = torch.where(enters, 1 / distance, 0.0)
        self.inverse[tokens] += (change * scale[:, None])[:, :, None] * change[:, None, :]
        goal[tokens] -= change * (scale * rest)[:, None]
        self.inside[tokens, slot] = enters
        self.usable[tokens, slot] = enters
