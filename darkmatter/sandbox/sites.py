"""A world seen at three sites, with SAEs whose introduced errors are partly shared, and the population values of R²."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from darkmatter.errors import InputError
from darkmatter.sandbox.chunk import WorldChunk
from darkmatter.sandbox.config import check_choice, check_int, check_number, check_stream
from darkmatter.sandbox.factor_space import FactorSpace
from darkmatter.sandbox.population import pseudo_inverse
from darkmatter.sandbox.seeding import generator
from darkmatter.sandbox.sites_source import EARLIER, SITES, TARGET, SitesPair
from darkmatter.sandbox.world import World

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats, Integers, Singles


@dataclass(frozen=True, slots=True)
class SitesTruth:
    """Population values of a cross-site analysis, by the names that its result uses.

    Attributes:
        fvu: Var e / Var x at the target.
        r2_x: R²(e | x).
        r2_base: R²(e | base), the same where the base is x.
        rows: ``r2_alone``, ``r2_beside``, ``increment`` and ``share_nonlinear`` by "KIND REGRESSORS".
    """

    fvu: float
    r2_x: float
    r2_base: float
    rows: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Sites:
    """Two components of a model write x_late = x_early + x_write; each site has an SAE that knows some features.

    Every feature is written early or by the second component; the dense part is written early. At site s
    Sae_s = (1 − shrinkage) S1_s + N_s with S1_s the learned features of x_s and Gaussian N_s, independent of all true
    factors: N_early = a g_1, N_write = b g_2 and N_late = c (√(shared/2) (g_1 M_1 + g_2 M_2) + √(1 − shared) g_3) with
    random orthogonal M, so that a share of what the last SAE introduces is linear in what the earlier ones do. All
    second moments have a closed form.

    Attributes:
        world: The world.
        early: Share of the features that are written early, chosen at random; in (0, 1).
        learned: Share of its features that each SAE has learned, the most frequent first; in (0, 1].
        shrinkage: Of the learned features, in [0, 1).
        introduced_share: Var N_s / Var x_s at every site, > 0.
        shared: Share of Var N_late that comes from the earlier SAEs, in [0, 1].
        seed: Seeds who writes what, M and g.
    """

    world: World
    early: float = 0.5
    learned: float = 0.5
    shrinkage: float = 0.1
    introduced_share: float = 0.05
    shared: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("early", "learned", "shared"):
            check_number(getattr(self, name), name, 0.0, 1.0)
        check_number(self.shrinkage, "shrinkage", 0.0, 1.0, closed=False)
        check_number(self.introduced_share, "introduced_share", 0.0, np.inf)
        check_int(self.seed, "seed", 0)
        if not self.learned or not self.introduced_share or not all(len(self.features(site)) for site in EARLIER):
            raise InputError(
                f"early is {self.early:g}, learned {self.learned:g} and introduced_share {self.introduced_share:g}, "
                f"expected both components to write some of the {self.world.n_features} features, and the others "
                "above 0"
            )

    def features(self, site: str) -> Integers:
        """Indices of the features in a site's activation."""
        m = self.world.n_features
        if site == TARGET:
            return np.arange(m, dtype=np.int64)
        order = generator("sites", self.seed, "features").permutation(m)
        count = round(self.early * m)
        return np.sort(order[:count] if site == "early" else order[count:]).astype(np.int64)

    def learned_features(self, site: str) -> Integers:
        """Indices of the features that a site's SAE has learned."""
        own = self.features(site)
        return own[: max(1, round(self.learned * len(own)))]

    def pair(self, *, n_tokens: int, batch_size: int = 4096, stream: str = "eval") -> SitesPair:
        """The sites as a source of batches.

        Args:
            n_tokens: Length of the source, exactly.
            batch_size: Tokens per batch; it changes the cuts, never the content.
            stream: Name of the stream.

        Returns:
            A resumable `darkmatter.batch.SitesSource`.

        Raises:
            InputError: A count below 1, or a stream that is not a non-empty string.
        """
        check_int(n_tokens, "n_tokens", 1)
        check_int(batch_size, "batch_size", 1)
        check_stream(stream)
        return SitesPair(of=self, n_tokens=n_tokens, batch_size=batch_size, stream=stream)

    @cached_property
    def truth(self) -> SitesTruth:
        """Population values beside x of the target, in closed form; random features have none and are left out."""
        return self.population(beside="x")

    def population(self, *, beside: str) -> SitesTruth:
        """Population values, in closed form.

        Args:
            beside: "x" of the target, or the activations of "all" sites, as the analysis has it.

        Returns:
            The values.

        Raises:
            InputError: Another base.
        """
        check_choice(beside, "beside", ("x", "all"))
        at = ("x", TARGET)
        base = [at, *(("raw", site) for site in EARLIER if beside == "all")]
        r2_base = self.r2(base)
        rows = {}
        for kind in ("sae", "raw") if beside == "x" else ("sae",):
            for name, sites in {**{site: (site,) for site in EARLIER}, "all": EARLIER}.items():
                blocks = [(kind, site) for site in sites]
                rows[f"{kind} {name}"] = _row(self.r2(blocks), self.r2([*base, *blocks]), r2_base)
        for kind in ("shuffled", "noise"):
            rows |= {f"{kind} {name}": _row(0.0, r2_base, r2_base) for name in (*EARLIER, "all")}
        error, whole = (float(np.trace(self._between(key, key))) for key in (("error", TARGET), at))
        return SitesTruth(fvu=error / whole, r2_x=self.r2([at]), r2_base=r2_base, rows=rows)

    def r2(self, blocks: Sequence[tuple[str, str]]) -> float:
        """Population R² of the error at the target on some blocks.

        Args:
            blocks: ("x", "late"), ("sae", site) or ("raw", site).

        Returns:
            Pooled R², with an intercept.
        """
        error = ("error", TARGET)
        scatter = np.block([[self._between(a, b) for b in blocks] for a in blocks])
        crossed = np.vstack([self._between(a, error) for a in blocks])
        explained = float((crossed * (pseudo_inverse(scatter) @ crossed)).sum())
        return explained / float(np.trace(self._between(error, error)))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON types."""
        return {"kind": "sites", **asdict(self), "world": self.world.to_dict()}

    @cached_property
    def _coefficients(self) -> dict[tuple[str, str], tuple[Floats, Floats]]:
        """Every block as a linear function of the true factors, (m + k, d), and of g, (3 d, d)."""
        m, d, true = self.world.n_features, self.world.d_model, self._space.true
        found: dict[tuple[str, str], tuple[Floats, Floats]] = {}
        for site in SITES:
            x = np.zeros_like(true)
            x[self.features(site)] = true[self.features(site)]
            if site != "write":
                x[m:] = true[m:]
            learned = self.learned_features(site)
            sae = np.zeros_like(true)
            sae[learned] = (1.0 - self.shrinkage) * true[learned]
            none = np.zeros((3 * d, d))
            noise = self._scales[site] * self._mixing(site)
            kinds = {"raw": (x, none), "sae": (sae, noise), "error": (x - sae, -noise)}
            found |= {(kind, site): value for kind, value in kinds.items()}
        found["x", TARGET] = found["raw", TARGET]
        return found

    @cached_property
    def _scales(self) -> dict[str, float]:
        """Standard deviation of one coordinate of N_s."""
        found = {}
        for site in SITES:
            alone = np.zeros_like(self._space.true)
            own = self.features(site)
            alone[own] = self._space.true[own]
            if site != "write":
                alone[self.world.n_features :] = self._space.true[self.world.n_features :]
            found[site] = math.sqrt(self.introduced_share * self._space.variance(alone) / self.world.d_model)
        return found

    @cached_property
    def _space(self) -> FactorSpace:
        return FactorSpace.of(self.world)

    @cached_property
    def _rotations(self) -> tuple[Floats, Floats]:
        """M_1 and M_2, (d, d), orthogonal."""
        d, rng = self.world.d_model, generator("sites", self.seed, "rotations")
        first, second = (np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in EARLIER)
        return first, second

    def _mixing(self, site: str) -> Floats:
        """N_s over its scale as a linear function of g = (g_1, g_2, g_3), (3 d, d); of unit variance."""
        d = self.world.d_model
        parts = [np.zeros((d, d)) for _ in SITES]
        if site == TARGET:
            parts = [math.sqrt(self.shared / 2) * m for m in self._rotations] + [math.sqrt(1 - self.shared) * np.eye(d)]
        else:
            parts[EARLIER.index(site)] = np.eye(d)
        return np.vstack(parts)

    @cached_property
    def _covariances(self) -> dict[tuple[tuple[str, str], tuple[str, str]], Floats]:
        return {}

    def _between(self, first: tuple[str, str], second: tuple[str, str]) -> Floats:
        """Covariance of two blocks, (d, d)."""
        if (first, second) not in self._covariances:
            a, b = self._coefficients[first], self._coefficients[second]
            self._covariances[first, second] = a[0].T @ self._space.apply(b[0]) + a[1].T @ b[1]
        return self._covariances[first, second]

    def draw(self, chunk: WorldChunk) -> dict[str, tuple[Singles, Singles]]:
        """Activation and reconstruction of a chunk at every site, (n, d) each.

        Args:
            chunk: A whole chunk of the world: products of fewer rows would be rounded differently.

        Returns:
            (x, Sae(x)) by site.
        """
        shape = (len(chunk), 3 * self.world.d_model)
        noise = generator("sites", self.seed, chunk.stream, chunk.index).standard_normal(shape, dtype=np.float32)
        found = {}
        for site in SITES:
            x = chunk.x if site == TARGET else chunk.sparse_part(self.features(site))
            if site == "early" and self.world.dense_dim:
                x += chunk.dense
            recon = chunk.sparse_part(self.learned_features(site))
            recon *= np.float32(1.0 - self.shrinkage)
            recon += noise @ (self._scales[site] * self._mixing(site)).astype(np.float32)
            found[site] = x, recon
        return found


def _row(alone: float, beside: float, r2_base: float) -> dict[str, float]:
    """Population values of one set of regressors."""
    increment = beside - r2_base
    share = increment / (1 - r2_base) if r2_base < 1 else math.nan
    return {"r2_alone": alone, "r2_beside": beside, "increment": increment, "share_nonlinear": share}
